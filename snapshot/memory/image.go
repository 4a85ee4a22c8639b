package memory

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Layer is a file with a part of an image. File holds the bytes of every extent at the extent's image offset and zeros elsewhere;
// it has to be open for reading, on a file system that can map it. See the package's rules for files.
type Layer struct {
	File    *os.File
	Extents []Extent
}

// Image is the immutable content of a VM's RAM. It is safe for concurrent use.
//
// It begins with one reference; each Retain takes another and each Close gives one back. The files are closed with the last
// one, after calls that still run. A VM whose memory came from Map does not need the image to run, only for Changed, Reset and Capture.
type Image struct {
	layout   layout
	captured []Extent
	refs     atomic.Int64

	mu      sync.Mutex
	files   []*file // one reference to each
	content []piece // what the layers show; all else is zeros
	own     targets // in memory, for what no other file has; sealed with the plan. May be empty
	planned bool
	plan    []piece // what to map
	view    [][]byte
}

// NewImage returns the image of regions with the given sizes in bytes that the layers make, bottom up: a later one hides earlier
// ones. What none holds reads as zeros. Everything is checked, and extents may come from a hostile file. On success the files belong
// to the image; after an error they remain the caller's. The extents are not kept.
func NewImage(sizes []int64, layers ...Layer) (*Image, error) {
	l, err := newLayout(sizes)
	if err != nil {
		return nil, err
	}
	if len(layers) > MaxLayers {
		return nil, fmt.Errorf("%w: %d layers", ErrInvalid, len(layers))
	}
	for i, layer := range layers {
		if err := checkLayer(layer, l.total); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	image := &Image{layout: l}
	image.refs.Store(1)
	for _, layer := range layers {
		f := newFile(layer.File)
		image.files = append(image.files, f)
		image.content = overlay(image.content, pieces(f, layer.Extents))
	}
	return image, nil
}

func checkLayer(l Layer, size int64) error {
	if l.File == nil {
		return fmt.Errorf("%w: no file", ErrInvalid)
	}
	if err := checkExtents(l.Extents, size); err != nil {
		return err
	}
	st, err := l.File.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a regular file", ErrInvalid, l.File.Name())
	}
	if k := len(l.Extents); k > 0 && st.Size() < l.Extents[k-1].end() {
		return fmt.Errorf("%w: %s has %d bytes, want %d", ErrInvalid, l.File.Name(), st.Size(), l.Extents[k-1].end())
	}
	return nil
}

// Retain takes another reference. It returns os.ErrClosed if there is none any more.
func (i *Image) Retain() error {
	for {
		n := i.refs.Load()
		if n <= 0 {
			return fmt.Errorf("memory image: %w", os.ErrClosed)
		}
		if i.refs.CompareAndSwap(n, n+1) {
			return nil
		}
	}
}

// Close gives one reference back, and with the last one releases the image. Memory that was mapped from it goes on as it is.
func (i *Image) Close() error {
	for {
		n := i.refs.Load()
		if n <= 0 {
			return fmt.Errorf("memory image: %w", os.ErrClosed)
		}
		if i.refs.CompareAndSwap(n, n-1) {
			if n > 1 {
				return nil
			}
			return i.destroy()
		}
	}
}

func (i *Image) destroy() error {
	errs := []error{Release(i.view)}
	for _, f := range i.files {
		errs = append(errs, f.release())
	}
	i.view, i.files = nil, nil
	return errors.Join(errs...)
}

// done ends a call that began with a successful Retain.
func (i *Image) done() { _ = i.Close() }

// Sizes returns the sizes of the regions in bytes.
func (i *Image) Sizes() []int64 { return slices.Clone(i.layout.sizes) }

// Content returns where the image may hold anything but zeros.
func (i *Image) Content() []Extent {
	i.mu.Lock()
	defer i.mu.Unlock()
	return extents(i.content)
}

// Captured returns the part of Content that Capture took from running VMs and no file that was given to NewImage has. To save
// memory that was mapped from such an image as a layer on top of these files, write it with what Changed returns.
func (i *Image) Captured() []Extent { return slices.Clone(i.captured) }

// Prepare does now what the first Map would do before it maps: it copies parts that are too small to be mappings of their own to a
// file in memory. That takes milliseconds for some images of several layers or from Capture, and no time for others.
func (i *Image) Prepare() error {
	if err := i.Retain(); err != nil {
		return err
	}
	defer i.done()
	_, err := i.mappings()
	return err
}

// mappings returns what to map, ascending.
func (i *Image) mappings() ([]piece, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.planned {
		return i.plan, nil
	}
	if err := i.prepare(); err != nil {
		return nil, fmt.Errorf("prepare memory image: %w", err)
	}
	return i.plan, nil
}

// prepare makes the plan and completes the image's own files for it. Its caller holds mu.
func (i *Image) prepare() error {
	target := i.own
	if len(target) == 0 {
		target = targets{{file: new(file), len: i.layout.total}} // stands for one to be made
	}
	content := stale(i.content, target)
	plan := i.layout.plan(content, target, fileMappings)
	if len(target.clusters(plan)) > 0 {
		plan = i.layout.plan(content, target, maxMappings)
	}
	if clusters := target.clusters(plan); len(clusters) > 0 {
		if len(i.own) == 0 {
			f, err := newMemfd(i.layout.total)
			if err != nil {
				return err
			}
			i.own = targets{{file: f, len: i.layout.total}}
			i.files = append(i.files, f)
			plan = relabel(plan, func(p piece) *file {
				if p.file == target[0].file {
					return f
				}
				return p.file
			})
		}
		if err := i.complete(plan); err != nil {
			return err
		}
	}
	i.plan, i.planned = plan, true
	i.dropUnused()
	return nil
}

// complete copies to the own files what the plan wants there and they do not have.
func (i *Image) complete(plan []piece) error {
	fills := make([][]piece, len(i.own))
	err := parallel(len(i.own), func(k int) error {
		f := i.own[k].file
		fills[k] = within(i.content, targets{i.own[k]}.clusters(plan))
		return f.fill(fills[k])
	})
	if err != nil {
		return err
	}
	for k, fill := range fills {
		f := i.own[k].file
		i.content = overlay(i.content, relabel(fill, func(piece) *file { return f }))
		f.held = bytesOf(fill)
		f.seal()
	}
	return nil
}

// dropUnused gives back the files that nothing shows any more.
func (i *Image) dropUnused() {
	used := make(map[*file]bool)
	for _, p := range i.content {
		used[p.file] = true
	}
	i.files = slices.DeleteFunc(i.files, func(f *file) bool {
		if !used[f] {
			_ = f.release()
		}
		return !used[f]
	})
}

// stale marks as the targets' what is to be copied to let go of files in memory: of those that later captures hide for the most part,
// and all if there are too many.
func stale(content []piece, target targets) []piece {
	shown := make(map[*file]int64)
	for _, p := range content {
		if p.file.held > 0 && !target.has(p.file) {
			shown[p.file] += p.len
		}
	}
	return relabel(content, func(p piece) *file {
		if n, ok := shown[p.file]; ok && (len(shown) > maxCaptured || n < p.file.held/2) {
			return target.at(p.off)
		}
		return p.file
	})
}

// readable returns a mapping of the image that is only for reading. The parts where the plan has nothing must not be touched.
func (i *Image) readable() ([][]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.view != nil {
		return i.view, nil
	}
	if !i.planned {
		if err := i.prepare(); err != nil {
			return nil, fmt.Errorf("prepare memory image: %w", err)
		}
	}
	view, err := Reserve(i.layout.sizes)
	if err != nil {
		return nil, err
	}
	if err := i.layout.mapOver(view, i.plan, unix.PROT_READ); err != nil {
		return nil, errors.Join(err, Release(view))
	}
	i.view = view
	return view, nil
}
