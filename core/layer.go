package core

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/virtio/block"
)

// layer is a read-only part of scratch disks. The disks and layers above it share it; the last one closes it.
type layer struct {
	block.Backend
	overlay *block.Overlay // nil for the empty file system at the bottom
	below   *layer         // nil at the bottom, and below a disk that was saved whole
	refs    atomic.Int32
}

// newLayer takes over the backend and the reference to what is below. The caller has the only reference to the layer.
func newLayer(b block.Backend, below *layer) *layer {
	l := &layer{Backend: b, below: below}
	l.overlay, _ = b.(*block.Overlay)
	l.refs.Store(1)
	return l
}

// hold adds a reference.
func (l *layer) hold() *layer {
	if l != nil {
		l.refs.Add(1)
	}
	return l
}

// Close gives up a reference.
func (l *layer) Close() error {
	if l == nil || l.refs.Add(-1) > 0 {
		return nil
	}
	return errors.Join(l.Backend.Close(), l.below.Close())
}

// depth is the number of layers from this one down.
func (l *layer) depth() int {
	n := 0
	for ; l != nil; l = l.below {
		n++
	}
	return n
}

// scratch is a VM's writable layer: an overlay over what is below.
type scratch struct {
	*block.Overlay
	below *layer
}

// newScratch returns an empty writable layer. It takes over the reference to below, even after an error.
func newScratch(stateDir string, below *layer) (*scratch, error) {
	file, err := scratchFile(stateDir)
	if err == nil {
		var o *block.Overlay
		if o, err = block.NewOverlay(below, below.Size(), file); err == nil {
			return &scratch{o, below}, nil
		}
	}
	below.Close()
	return nil, err
}

// Close releases the overlay and what is below.
func (s *scratch) Close() error { return errors.Join(s.Overlay.Close(), s.below.Close()) }

// maxLayers bounds how many files a read of a scratch disk may have to look at.
const maxLayers = 12

// split makes what the VM has written so far a layer of its own and returns it, with a reference for the caller. The VM must be paused.
// Layers above keep, which may be nil, are merged when there are too many.
func (s *scratch) split(stateDir string, keep *layer) (*layer, error) {
	if len(s.Overlay.State().Written) == 0 {
		return s.below.hold(), nil // nothing was written since the last time
	}
	file, err := scratchFile(stateDir)
	if err != nil {
		return nil, err
	}
	lower, err := s.Overlay.Split(file)
	if err != nil {
		return nil, err
	}
	s.below = newLayer(lower, s.below)
	if s.below.depth() > maxLayers+keep.depth() {
		merged, err := merge(s.below, keep, stateDir)
		if err != nil {
			return nil, err
		}
		s.Overlay.Rebase(merged)
		old := s.below
		s.below = merged
		old.Close()
	}
	return s.below.hold(), nil
}

// merge returns a layer that holds what top and the layers below it hold, down to keep or the empty file system, which it goes on with.
func merge(top, keep *layer, stateDir string) (*layer, error) {
	below := top
	var lists [][]block.Extent
	for ; below != nil && below != keep && below.overlay != nil; below = below.below {
		lists = append(lists, below.overlay.State().Written)
	}
	file, err := scratchFile(stateDir)
	if err != nil {
		return nil, err
	}
	var base block.Backend
	if below != nil {
		base = below
	}
	o, err := block.NewOverlay(base, top.Size(), file)
	if err != nil {
		return nil, err
	}
	if err := copyClusters(o, top, union(lists...)); err != nil {
		o.Close()
		return nil, err
	}
	return newLayer(o, below.hold()), nil
}

// copyClusters writes to dst what src has in the extents.
func copyClusters(dst *block.Overlay, src block.Backend, extents []block.Extent) error {
	buf := make([]byte, 1<<20)
	var v block.Vec
	for _, e := range extents {
		off, end := e.First*block.ClusterSize, min((e.First+e.Count)*block.ClusterSize, src.Size())
		for off < end {
			b := buf[:min(int64(len(buf)), end-off)]
			v.Reset(b)
			if err := src.ReadV(&v, off, int64(len(b))); err != nil {
				return err
			}
			v.Reset(b)
			if err := dst.WriteV(&v, off, int64(len(b))); err != nil {
				return err
			}
			off += int64(len(b))
		}
	}
	return nil
}

// written returns the clusters in which the disk may differ from the layer until, nil meaning one of zeros, and whether until is below it.
func (l *layer) written(until *layer) (extents []block.Extent, reached bool, err error) {
	var lists [][]block.Extent
	for ; l != until; l = l.below {
		switch {
		case l == nil:
			return nil, false, nil
		case l.overlay != nil:
			lists = append(lists, l.overlay.State().Written)
		default:
			data, err := l.Backend.(*block.Raw).Data()
			if err != nil {
				return nil, false, err
			}
			lists = append(lists, data)
		}
	}
	return union(lists...), true, nil
}

// scratchFile returns an empty file for what one VM writes. It has no name, so it is gone with the VM however that ends.
func scratchFile(stateDir string) (*os.File, error) {
	dir := filepath.Join(stateDir, "tmp")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil { // not every file system can
		return block.TempFile(dir)
	}
	return os.NewFile(uintptr(fd), dir+"/scratch"), nil
}
