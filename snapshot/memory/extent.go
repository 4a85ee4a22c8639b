package memory

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"unsafe"
)

// PageSize is the unit of images, in bytes.
const PageSize = 4096

// Limits of an image.
const (
	MaxRegions = 8
	MaxSize    = 1 << 40 // bytes, of all regions
	MaxLayers  = 64
	MaxExtents = 1 << 20 // of one layer or working set
)

var (
	// ErrInvalid is wrapped by errors about sizes, layers and working sets that are damaged or forged.
	ErrInvalid = errors.New("invalid memory image")

	// ErrMismatch is wrapped by errors about memory that has not the regions it must have: their number, sizes, alignment.
	ErrMismatch = errors.New("memory does not fit the image")
)

// Extent is a run of pages of an image. In a list, extents are ascending and do not overlap.
type Extent struct {
	Off int64 `json:"off" msgpack:"off"` // image offset, bytes; a multiple of PageSize
	Len int64 `json:"len" msgpack:"len"` // bytes; a positive multiple of PageSize
}

func (e Extent) end() int64 { return e.Off + e.Len }

// checkExtents checks a list that may come from anywhere against an image of size bytes.
func checkExtents(list []Extent, size int64) error {
	if len(list) > MaxExtents {
		return fmt.Errorf("%w: %d extents", ErrInvalid, len(list))
	}
	var next int64
	for i, e := range list {
		if e.Len <= 0 || e.Off < next || e.Off%PageSize != 0 || e.Len%PageSize != 0 || e.Off > size || e.Len > size-e.Off {
			return fmt.Errorf("%w: extent %d of %d bytes at %d, want it in %d to %d", ErrInvalid, i, e.Len, e.Off, next, size)
		}
		next = e.end()
	}
	return nil
}

// add appends an extent that begins at or after the list's end, joined with the last one where they touch.
func add(list []Extent, off, n int64) []Extent {
	if k := len(list); k > 0 && list[k-1].end() == off {
		list[k-1].Len += n
		return list
	}
	return append(list, Extent{Off: off, Len: n})
}

// Union returns the pages that are in a or in b.
func Union(a, b []Extent) []Extent {
	return extents(overlay(pieces(nil, a), pieces(nil, b)))
}

// Bytes returns the sum of the extents' lengths.
func Bytes(list []Extent) int64 {
	var n int64
	for _, e := range list {
		n += e.Len
	}
	return n
}

// coalesce joins neighbours over gaps of at most gap bytes, and over the smallest ones beyond that until there are at most limit.
// It works in place.
func coalesce(list []Extent, gap int64, limit int) []Extent {
	if excess := len(list) - limit; excess > 0 {
		gaps := make([]int64, 0, len(list)-1)
		for i := range list[1:] {
			gaps = append(gaps, list[i+1].Off-list[i].end())
		}
		slices.Sort(gaps)
		gap = max(gap, gaps[excess-1])
	}
	out := list[:0]
	for _, e := range list {
		if k := len(out); k > 0 && e.Off-out[k-1].end() <= gap {
			out[k-1].Len = e.end() - out[k-1].Off
			continue
		}
		out = append(out, e)
	}
	return out
}

// layout is where regions lie in an image.
type layout struct {
	sizes, starts []int64
	total         int64
}

func newLayout(sizes []int64) (layout, error) {
	if len(sizes) == 0 || len(sizes) > MaxRegions {
		return layout{}, fmt.Errorf("%w: %d regions, want 1 to %d", ErrInvalid, len(sizes), MaxRegions)
	}
	l := layout{sizes: slices.Clone(sizes)}
	for i, n := range sizes {
		if n <= 0 || n%PageSize != 0 || n > MaxSize-l.total {
			return layout{}, fmt.Errorf("%w: region %d of %d bytes", ErrInvalid, i, n)
		}
		l.starts = append(l.starts, l.total)
		l.total += n
	}
	return l, nil
}

// layoutOf returns the layout of an image of mem.
func layoutOf(mem [][]byte) (layout, error) {
	sizes := make([]int64, len(mem))
	for i, b := range mem {
		sizes[i] = int64(len(b))
	}
	l, err := newLayout(sizes)
	if err != nil {
		return layout{}, fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	return l, l.check(mem)
}

// check reports whether mem has the layout.
func (l layout) check(mem [][]byte) error {
	if len(mem) != len(l.sizes) {
		return fmt.Errorf("%w: %d regions instead of %d", ErrMismatch, len(mem), len(l.sizes))
	}
	for i, b := range mem {
		if int64(len(b)) != l.sizes[i] {
			return fmt.Errorf("%w: region %d has %d bytes instead of %d", ErrMismatch, i, len(b), l.sizes[i])
		}
		if address(b)%PageSize != 0 {
			return fmt.Errorf("%w: region %d is not aligned to pages", ErrMismatch, i)
		}
	}
	return nil
}

// parts returns the extent's bytes in mem with their image offsets: one slice for each region that it touches.
func (l layout) parts(mem [][]byte, e Extent) iter.Seq2[int64, []byte] {
	return func(yield func(int64, []byte) bool) {
		for i, start := range l.starts {
			from, to := max(e.Off, start), min(e.end(), start+l.sizes[i])
			if from < to && !yield(from, mem[i][from-start:to-start]) {
				return
			}
		}
	}
}

func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
