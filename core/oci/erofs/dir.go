package erofs

import (
	"fmt"
	"hash/crc32"
	"sort"
)

// Dir is a directory of the tree that [Writer.Finish] writes. The caller owns
// and changes it freely until then. A Dir must have one parent only.
type Dir struct {
	Meta
	Entries map[string]Entry

	nid   uint64
	names []string
	sizes []int // bytes used in each block of entries
	xattr []byte
}

// Entry is one name in a directory: exactly one of Dir and Inode is set.
type Entry struct {
	Dir   *Dir
	Inode *Inode
	// Mark is the caller's; the Writer does not look at it.
	Mark int32
}

// Finish writes the directories below root and the superblock, and cuts the
// file to its size. It does not sync. The Writer cannot be used afterwards.
func (w *Writer) Finish(root *Dir) error {
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.flushMeta(); err != nil {
		return err
	}
	for in := range w.linked {
		var p [4]byte
		le.PutUint32(p[:], in.links)
		if _, err := w.f.WriteAt(p[:], int64(in.nid)*slotSize+nlinkOffset); err != nil {
			return err
		}
	}
	var head [BlockSize]byte
	if err := w.finishTree(root, head[superOffset+superSize:]); err != nil {
		return err
	}
	w.putSuper(head[:])
	if _, err := w.f.WriteAt(head[:], 0); err != nil {
		return err
	}
	return w.f.Truncate(w.next * BlockSize)
}

func (w *Writer) putSuper(head []byte) {
	sb := head[superOffset:]
	le.PutUint32(sb[0:], superMagic)
	le.PutUint32(sb[8:], compatChecksum|compatMtime)
	sb[12] = blockBits
	le.PutUint16(sb[14:], rootNid)
	le.PutUint64(sb[16:], w.count)
	le.PutUint32(sb[36:], uint32(w.next))
	copy(sb[48:64], w.uuid[:])
	le.PutUint32(sb[80:], incompatChunks)
	// The kernel's crc32c neither inverts its result nor covers what precedes the superblock.
	le.PutUint32(sb[4:], ^crc32.Checksum(sb, crc32.MakeTable(crc32.Castagnoli)))
}

const rootNid = (superOffset + superSize) / slotSize

// treeWriter lays directories out in one buffer that ends up at the image's end:
// first all full blocks of entries, then the inodes with the last, partial ones.
type treeWriter struct {
	w      *Writer
	dirs   []*Dir
	parent []*Dir
	blocks int   // full blocks of entries
	meta   int   // bytes of inodes and tails
	places []int // offset of each directory's inode in the second part; unused for the root
	inline []bool
}

func (w *Writer) finishTree(root *Dir, rootSpace []byte) error {
	t := &treeWriter{w: w}
	if err := t.place(root, root, len(rootSpace)); err != nil {
		return err
	}
	base := w.next
	size := (t.blocks + (t.meta+BlockSize-1)/BlockSize) * BlockSize
	if err := w.advance(size / BlockSize); err != nil {
		return err
	}
	area := make([]byte, size)
	metaBase := t.blocks * BlockSize
	for i, d := range t.dirs {
		if i > 0 {
			d.nid = (uint64(base)*BlockSize + uint64(metaBase+t.places[i])) / slotSize
		}
	}
	block := 0
	for i, d := range t.dirs {
		slot := rootSpace
		if i > 0 {
			slot = area[metaBase+t.places[i]:]
		}
		block += t.write(i, d, slot, area[block*BlockSize:], uint32(base)+uint32(block))
	}
	_, err := w.f.WriteAt(area, base*BlockSize)
	return err
}

// place assigns d and all below it their room. The root's inode has its own, of rootSpace bytes.
func (t *treeWriter) place(d, parent *Dir, rootSpace int) error {
	t.w.count++
	if err := d.measure(); err != nil {
		return err
	}
	last := d.sizes[len(d.sizes)-1]
	fixed := inodeSize + len(d.xattr)
	room := BlockSize
	if d == parent {
		d.nid, room = rootNid, rootSpace
		if fixed > room {
			return fmt.Errorf("extended attributes of the root directory: %d bytes: %w", len(d.xattr), ErrTooLarge)
		}
	}
	inline := fixed+last <= room
	size := fixed
	if inline {
		size += last
	}
	t.blocks += len(d.sizes)
	if inline {
		t.blocks--
	}
	place := 0
	if d != parent {
		if used := t.meta % BlockSize; used+size > BlockSize {
			t.meta += (BlockSize - used) % BlockSize
		}
		place = t.meta
		t.meta += roundUp(size, slotSize)
	}
	t.dirs, t.parent = append(t.dirs, d), append(t.parent, parent)
	t.places, t.inline = append(t.places, place), append(t.inline, inline)
	for _, name := range d.names {
		if e := d.Entries[name]; e.Dir != nil {
			if err := t.place(e.Dir, d, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// measure sorts d's names, "." and ".." among them, and splits them into blocks.
func (d *Dir) measure() error {
	var err error
	if d.xattr, err = encodeXattrs(d.Xattrs); err != nil {
		return err
	}
	d.names = make([]string, 0, len(d.Entries)+2)
	d.names = append(d.names, ".", "..")
	for name, e := range d.Entries {
		if name == "" || len(name) > MaxName {
			return fmt.Errorf("name of %d bytes: %w", len(name), ErrTooLarge)
		}
		if (e.Dir == nil) == (e.Inode == nil) {
			panic("erofs: an entry must be a directory or an inode: " + name)
		}
		d.names = append(d.names, name)
	}
	sort.Strings(d.names)
	d.sizes = []int{0}
	for _, name := range d.names {
		last := len(d.sizes) - 1
		if d.sizes[last]+direntSize+len(name) > BlockSize {
			d.sizes = append(d.sizes, 0)
			last++
		}
		d.sizes[last] += direntSize + len(name)
	}
	return nil
}

// write fills in directory i: its inode at slot, and its full blocks of entries
// at data, which is block first of the image. It returns how many those are.
func (t *treeWriter) write(i int, d *Dir, slot, data []byte, first uint32) int {
	links := uint32(2)
	for _, e := range d.Entries {
		if e.Dir != nil {
			links++
		}
	}
	last := len(d.sizes) - 1
	rec := t.w.record(d.Meta, ModeDir, uint64(last*BlockSize+d.sizes[last]))
	rec.nlink, rec.xattrs, rec.u = links, len(d.xattr), first
	if t.inline[i] {
		rec.layout = layoutInline
	}
	rec.put(slot)
	copy(slot[inodeSize:], d.xattr)

	names := d.names
	blocks := 0
	for b, size := range d.sizes {
		dst := slot[inodeSize+len(d.xattr):]
		if b < last || !t.inline[i] {
			dst = data[blocks*BlockSize:]
			blocks++
		}
		n := 0
		for used := 0; used < size; n++ {
			used += direntSize + len(names[n])
		}
		t.writeEntries(d, t.parent[i], names[:n], dst)
		names = names[n:]
	}
	return blocks
}

// writeEntries writes one block: fixed-size records, then the names they point at.
func (t *treeWriter) writeEntries(d, parent *Dir, names []string, dst []byte) {
	at := len(names) * direntSize
	for k, name := range names {
		nid, kind := d.nid, direntType[ModeDir]
		switch e := d.Entries[name]; {
		case name == "..":
			nid = parent.nid
		case e.Dir != nil:
			nid = e.Dir.nid
		case e.Inode != nil:
			nid, kind = e.Inode.nid, direntType[e.Inode.mode]
		}
		p := dst[k*direntSize:]
		le.PutUint64(p, nid)
		le.PutUint16(p[8:], uint16(at))
		p[10] = kind
		at += copy(dst[at:], name)
	}
}
