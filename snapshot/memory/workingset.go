package memory

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// WorkingSet is the pages that a VM uses early: those it only read, and those it wrote. It is plain data for a file beside the image.
type WorkingSet struct {
	Read    []Extent `json:"read" msgpack:"read"`
	Written []Extent `json:"written" msgpack:"written"`
}

const (
	// maxPopulate bounds the ranges that Prefetch asks the kernel for.
	maxPopulate = 2048

	// readAround is the gap in bytes over which reading goes on: the kernel maps as much around a page that a guest touches.
	readAround = 64 << 10
)

// Touched returns the pages that are present in mem. If the guest runs meanwhile, the result is only roughly right.
func Touched(mem [][]byte) (WorkingSet, error) {
	l, err := layoutOf(mem)
	if err != nil {
		return WorkingSet{}, err
	}
	p, err := openPagemap()
	if err != nil {
		return WorkingSet{}, err
	}
	defer p.close()
	var set WorkingSet
	err = p.runs(l, mem, false, func(off, n int64, kind pageKind) {
		if kind == pagePrivate {
			set.Written = add(set.Written, off, n)
		} else {
			set.Read = add(set.Read, off, n)
		}
	})
	if err != nil {
		return WorkingSet{}, err
	}
	set.Read = coalesce(set.Read, 0, MaxExtents)
	set.Written = coalesce(set.Written, 0, MaxExtents)
	return set, nil
}

// Prefetch brings the set's pages into mem before the guest needs them: pages to read are mapped, and pages to write get their
// private copies. It changes no content, so the guest may run meanwhile, but mem has to stay mapped until it returns; ctx ends it early,
// with ctx's error. The set is checked, and may come from a hostile file. On kernels before Linux 5.14 nothing happens.
func Prefetch(ctx context.Context, mem [][]byte, set WorkingSet) error {
	l, err := layoutOf(mem)
	if err != nil {
		return err
	}
	for _, list := range [][]Extent{set.Read, set.Written} {
		if err := checkExtents(list, l.total); err != nil {
			return fmt.Errorf("working set: %w", err)
		}
	}
	// A gap that is read costs nothing but time; one that is written costs memory.
	read := coalesce(append([]Extent(nil), set.Read...), readAround, maxPopulate)
	written := coalesce(append([]Extent(nil), set.Written...), 0, maxPopulate)
	err = l.populate(ctx, mem, written, unix.MADV_POPULATE_WRITE)
	if err == nil {
		err = l.populate(ctx, mem, read, unix.MADV_POPULATE_READ)
	}
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

func (l layout) populate(ctx context.Context, mem [][]byte, list []Extent, advice int) error {
	for _, e := range list {
		for at := e.Off; at < e.end(); at += chunk {
			for _, b := range l.parts(mem, Extent{Off: at, Len: min(chunk, e.end()-at)}) {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := unix.Madvise(b, advice); err != nil {
					return fmt.Errorf("prefetch guest memory: %w", err)
				}
			}
		}
	}
	return nil
}
