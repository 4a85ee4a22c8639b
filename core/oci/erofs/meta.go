package erofs

// segmentBlocks is how many blocks of metadata are taken from the image at a time (64 KiB).
const segmentBlocks = 16

// maxOpen is how many partly filled metadata blocks are kept to find room for the next inode.
const maxOpen = 8

// metaBlock is one block of metadata that still has room.
type metaBlock struct {
	off  int64
	used int
	data [BlockSize]byte
}

// metaArea packs inodes with their tails into blocks, so that no tail crosses
// the end of a block: the kernel reads a tail from one block only.
type metaArea struct {
	open  []*metaBlock
	next  int64 // next free block of the current segment
	left  int   // free blocks of the current segment
	spare *metaBlock
}

// metaAlloc returns size zeroed bytes of metadata and their offset in the image.
// The caller fills them before the next call. More than a block is not written
// by the area: the caller hands it to writeData at once, where the offset points.
func (w *Writer) metaAlloc(size int) ([]byte, int64, error) {
	size = roundUp(size, slotSize)
	if size > BlockSize {
		return make([]byte, size), w.next * BlockSize, nil
	}
	var best *metaBlock
	for _, b := range w.meta.open {
		if room := BlockSize - b.used; room >= size && (best == nil || room < BlockSize-best.used) {
			best = b
		}
	}
	if best == nil {
		var err error
		if best, err = w.openBlock(); err != nil {
			return nil, 0, err
		}
	}
	p, off := best.data[best.used:best.used+size], best.off+int64(best.used)
	best.used += size
	return p, off, nil
}

// openBlock adds an empty metadata block, writing out the fullest one if there are too many.
func (w *Writer) openBlock() (*metaBlock, error) {
	a := &w.meta
	if len(a.open) == maxOpen {
		fullest := 0
		for i, b := range a.open {
			if b.used > a.open[fullest].used {
				fullest = i
			}
		}
		b := a.open[fullest]
		if _, err := w.f.WriteAt(b.data[:], b.off); err != nil {
			return nil, err
		}
		a.open = append(a.open[:fullest], a.open[fullest+1:]...)
		*b = metaBlock{}
		a.spare = b
	}
	if a.left == 0 {
		if err := w.flush(); err != nil {
			return nil, err
		}
		a.next, a.left = w.next, segmentBlocks
		if err := w.advance(segmentBlocks); err != nil {
			return nil, err
		}
	}
	b := a.spare
	if b == nil {
		b = new(metaBlock)
	}
	a.spare = nil
	b.off = a.next * BlockSize
	a.next++
	a.left--
	a.open = append(a.open, b)
	return b, nil
}

// flushMeta writes the blocks that are still open.
func (w *Writer) flushMeta() error {
	for _, b := range w.meta.open {
		if _, err := w.f.WriteAt(b.data[:], b.off); err != nil {
			return err
		}
	}
	w.meta.open = nil
	return nil
}
