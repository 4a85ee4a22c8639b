package memory

import (
	"bytes"
	"fmt"
	"runtime"
	"runtime/debug"
)

// chunk is the bytes of a guest's memory that one goroutine works on at a time.
const chunk = 2 << 20

var zeros [PageSize]byte

// Changed returns the pages of mem that differ from the image that Map filled it from. With i nil, mem is memory that was all
// zeros, as Reserve returns it. Pages that were written but hold what the image does are left out. There are at most
// MaxExtents; a guest with more gaps between changed pages gets the smallest gaps included. Nobody may write to mem meanwhile.
func (i *Image) Changed(mem [][]byte) ([]Extent, error) {
	l, done, err := i.use(mem)
	if err != nil {
		return nil, err
	}
	defer done()
	written, err := writtenPages(l, mem)
	if err != nil {
		return nil, err
	}
	return i.compare(l, mem, written)
}

// compare returns the pages in list that differ from the image, or from zeros with i nil.
func (i *Image) compare(l layout, mem [][]byte, list []Extent) ([]Extent, error) {
	var (
		plan []piece
		view [][]byte
		err  error
	)
	if i != nil {
		if view, err = i.readable(); err != nil {
			return nil, err
		}
		if plan, err = i.mappings(); err != nil {
			return nil, err
		}
	}
	list, err = l.differing(mem, view, list, plan)
	if err != nil {
		return nil, err
	}
	return coalesce(list, 0, MaxExtents), nil
}

// use checks mem and keeps the image, which may be nil, until done is called.
func (i *Image) use(mem [][]byte) (l layout, done func(), err error) {
	if i == nil {
		l, err = layoutOf(mem)
		return l, func() {}, err
	}
	if err := i.layout.check(mem); err != nil {
		return layout{}, nil, err
	}
	return i.layout, i.done, i.Retain()
}

// writtenPages returns the pages of mem that may have been written.
func writtenPages(l layout, mem [][]byte) ([]Extent, error) {
	p, err := openPagemap()
	if err != nil {
		return nil, err
	}
	defer p.close()
	var list []Extent
	err = p.runs(l, mem, true, func(off, n int64, kind pageKind) {
		if kind != pageShared {
			list = add(list, off, n)
		}
	})
	return list, err
}

// differing returns the pages in list that differ from view where plan has content, and from zeros elsewhere. With view nil,
// all pages count as differing where plan has content.
func (l layout) differing(mem, view [][]byte, list []Extent, plan []piece) ([]Extent, error) {
	type run struct {
		mem, image []byte // image nil: zeros
		off        int64
		sure       bool
	}
	var runs []run
	cut := func(off, n int64, content bool) {
		for n > 0 {
			e := Extent{Off: off, Len: min(n, chunk)}
			for at, b := range l.parts(mem, e) {
				r := run{mem: b, off: at, sure: content && view == nil}
				if content && view != nil {
					for _, r.image = range l.parts(view, Extent{Off: at, Len: int64(len(b))}) {
					}
				}
				runs = append(runs, r)
			}
			off, n = off+e.Len, n-e.Len
		}
	}
	next := 0
	for _, e := range list {
		at := e.Off
		for next < len(plan) && plan[next].end() <= at {
			next++
		}
		for k := next; k < len(plan) && plan[k].off < e.end(); k++ {
			p := plan[k].clip(at, e.end())
			cut(at, p.off-at, false)
			cut(p.off, p.len, true)
			at = p.end()
		}
		cut(at, e.end()-at, false)
	}
	found := make([][]Extent, len(runs))
	err := parallel(len(runs), func(k int) error {
		r := runs[k]
		if r.sure {
			found[k] = []Extent{{Off: r.off, Len: int64(len(r.mem))}}
			return nil
		}
		return readGuarded(func() {
			for at := 0; at < len(r.mem); at += PageSize {
				want := zeros[:]
				if r.image != nil {
					want = r.image[at : at+PageSize]
				}
				if !bytes.Equal(r.mem[at:at+PageSize], want) {
					found[k] = add(found[k], r.off+int64(at), PageSize)
				}
			}
		})
	})
	if err != nil {
		return nil, err
	}
	var out []Extent
	for _, f := range found {
		for _, e := range f {
			out = add(out, e.Off, e.Len)
		}
	}
	return out, nil
}

// readGuarded calls f, which reads memory that files are mapped into, and returns an error where that is not possible: a disk that
// fails must not end the process.
func readGuarded(f func()) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		switch e := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			err = fmt.Errorf("read guest memory: %w", e)
		default:
			panic(e)
		}
	}()
	f()
	return nil
}
