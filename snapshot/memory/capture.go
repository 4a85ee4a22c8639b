package memory

import (
	"fmt"
	"os"
)

// maxCaptured bounds the files in memory that chains of Capture put into one image.
const maxCaptured = 24

// minShare is the bytes of memory for which another goroutine and another file pay. Tests change it.
var minShare int64 = 2 << 20

// WriteLayer writes the given pages of mem to f, which must be empty, so that f can be a layer with these extents. f
// becomes as long as the image; it is sparse, and not synced to disk. Nobody may write to mem meanwhile.
func WriteLayer(f *os.File, mem [][]byte, extents []Extent) error {
	l, err := layoutOf(mem)
	if err != nil {
		return err
	}
	if err := checkExtents(extents, l.total); err != nil {
		return err
	}
	if st, err := f.Stat(); err != nil {
		return err
	} else if st.Size() != 0 {
		return fmt.Errorf("write memory layer: %s is not empty", f.Name())
	}
	if err := f.Truncate(l.total); err != nil {
		return err
	}
	return l.write(f, mem, extents)
}

func (l layout) write(f *os.File, mem [][]byte, extents []Extent) error {
	for _, e := range extents {
		for off, b := range l.parts(mem, e) {
			if _, err := f.WriteAt(b, off); err != nil {
				return err
			}
		}
	}
	return nil
}

// Capture returns a new image of what mem holds now. i is the image that Map filled mem from, or nil for memory that was all zeros,
// as Reserve returns it. The new image shares i's files and has what was written in files in memory; it outlives i and mem.
// Nobody may write to mem meanwhile, but the VM may go on before the first Map of the new image, which copies more.
//
// mem's own private pages stay as they are. Mapping the new image into it (the content is the same) gives them back and makes the next
// Capture of mem, from the new image, copy only what changes from then on.
func (i *Image) Capture(mem [][]byte) (*Image, error) {
	l, done, err := i.use(mem)
	if err != nil {
		return nil, err
	}
	defer done()
	image := &Image{layout: l}
	image.refs.Store(1)
	var plan []piece
	if i != nil {
		if plan, err = i.mappings(); err != nil {
			return nil, err
		}
		i.mu.Lock()
		image.content, image.captured = i.content, i.captured
		i.mu.Unlock()
	}
	list, err := writtenPages(l, mem)
	if err == nil {
		// To find which pages hold what the image does would cost as much as copying them.
		list, err = l.differing(mem, nil, list, plan)
	}
	if err != nil {
		return nil, err
	}
	if image.own, err = l.copyOut(mem, list); err != nil {
		return nil, fmt.Errorf("capture guest memory: %w", err)
	}
	seen := make(map[*file]bool)
	for _, p := range image.own {
		part := within(pieces(p.file, list), []piece{p})
		image.content = overlay(image.content, part)
		image.files = append(image.files, p.file)
		seen[p.file] = true
	}
	image.captured = Union(image.captured, list)
	for _, p := range image.content {
		if !seen[p.file] {
			seen[p.file] = true
			p.file.refs.Add(1) // i, which is in use, holds one
			image.files = append(image.files, p.file)
		}
	}
	return image, nil
}

// copyOut copies the pages in list to new files in memory. They are several because writers of one wait for each other.
func (l layout) copyOut(mem [][]byte, list []Extent) (targets, error) {
	out := l.shares(list)
	err := parallel(len(out), func(k int) error {
		f, err := newMemfd(l.total)
		if err != nil {
			return err
		}
		out[k].file = f
		f.held = out[k].len // until the file is complete, all that counts is that it holds something
		return l.write(f.File, mem, extents(within(pieces(nil, list), out[k:k+1])))
	})
	if err != nil {
		for _, p := range out {
			if p.file != nil {
				_ = p.file.Close()
			}
		}
		return nil, err
	}
	return out, nil
}

// shares divides the image into parts in which list has about as many bytes each; none if the list is empty.
func (l layout) shares(list []Extent) targets {
	sum := Bytes(list)
	if sum == 0 {
		return nil
	}
	n := min(int64(workers()), max(1, sum/minShare))
	var (
		out  targets
		from int64
		done int64
	)
	for _, e := range list {
		for k := int64(len(out)) + 1; k < n && done+e.Len >= sum*k/n; k++ {
			to := e.Off + (sum*k/n-done)/PageSize*PageSize
			if to > from {
				out = append(out, piece{off: from, len: to - from})
				from = to
			}
		}
		done += e.Len
	}
	return append(out, piece{off: from, len: l.total - from})
}
