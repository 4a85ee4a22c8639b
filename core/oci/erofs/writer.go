package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// ErrTooLarge is matched by errors about something that the format, or Linux, has no room for.
var ErrTooLarge = errors.New("too large for EROFS")

// MaxFile is the largest regular file in bytes (1 TiB).
const MaxFile = 1 << 40

// Meta is what every inode has. Times before 1970 are negative.
type Meta struct {
	Mode    uint16 // permission bits with setuid, setgid and sticky (07777); the type comes from the call
	UID     uint32
	GID     uint32
	Mtime   int64             // seconds since 1970
	MtimeNs uint32            // nanoseconds, below 1e9
	Xattrs  map[string]string // full names; names outside user, trusted, security and POSIX ACLs are left out
}

// Inode is a finished file that is not a directory. Each [Entry] that holds it
// is one of its hard links; the Writer keeps the count through Link and Discard.
type Inode struct {
	// Target is the target if the inode is a symbolic link, else empty.
	Target string

	nid    uint64
	mode   uint16
	links  uint32
	block  uint32 // first data block
	blocks uint32 // data blocks, without tail and holes
}

// Writer writes one image. It is not safe for concurrent use. After an error
// the image is worthless; the caller removes the file.
type Writer struct {
	f    *os.File
	uuid [16]byte

	next   int64  // first block that is not allocated
	buf    []byte // contents that end at block next, not yet written
	meta   metaArea
	count  uint64 // inodes in use
	serial uint32
	linked map[*Inode]struct{} // inodes whose link count on disk is out of date
}

const bufferSize = 2 << 20

// NewWriter returns a Writer for an empty file, which stays the caller's. The
// UUID names the file system; give equal images equal ones.
func NewWriter(f *os.File, uuid [16]byte) *Writer {
	return &Writer{f: f, uuid: uuid, next: 1, buf: make([]byte, 0, bufferSize), linked: map[*Inode]struct{}{}}
}

// File adds a regular file of size bytes read from r, with one link. Runs of
// zeros of at least 64 KiB (more in files above 4 GiB) become holes.
func (w *Writer) File(m Meta, size int64, r io.Reader) (*Inode, error) {
	if size < 0 || size > MaxFile {
		return nil, fmt.Errorf("file of %d bytes: %w", size, ErrTooLarge)
	}
	xattrs, err := encodeXattrs(m.Xattrs)
	if err != nil {
		return nil, err
	}
	c := contents{w: w, inlineRoom: BlockSize - inodeSize - len(xattrs), bits: minChunkBits}
	for c.bits < 20 && size>>c.bits > maxChunks {
		c.bits++
	}
	if err := c.copy(size, r); err != nil {
		return nil, err
	}
	rec := w.record(m, ModeRegular, uint64(size))
	in := &Inode{mode: ModeRegular, block: c.first, blocks: c.blocks}
	extra := c.tail
	switch {
	case c.holes:
		rec.layout, rec.u, extra = layoutChunked, uint32(c.bits-blockBits), c.encodeMap()
	case len(c.tail) > 0:
		rec.layout, rec.u = layoutInline, c.first
	default:
		rec.layout, rec.u = layoutPlain, c.first
	}
	return w.addInode(in, &rec, xattrs, extra)
}

// Symlink adds a symbolic link, with one link of its own.
func (w *Writer) Symlink(m Meta, target string) (*Inode, error) {
	if target == "" || len(target) > MaxSymlink {
		return nil, fmt.Errorf("symbolic link with a target of %d bytes: %w", len(target), ErrTooLarge)
	}
	xattrs, err := encodeXattrs(m.Xattrs)
	if err != nil {
		return nil, err
	}
	rec := w.record(m, ModeSymlink, uint64(len(target)))
	in := &Inode{mode: ModeSymlink, Target: target}
	if len(target) <= BlockSize-inodeSize-len(xattrs) {
		rec.layout = layoutInline
		return w.addInode(in, &rec, xattrs, []byte(target))
	}
	if err := w.writeData([]byte(target)); err != nil {
		return nil, err
	}
	in.block, in.blocks = uint32(w.next-1), 1
	rec.u = in.block
	return w.addInode(in, &rec, xattrs, nil)
}

// Node adds a device, FIFO or socket: kind is one of ModeChar, ModeBlock,
// ModeFIFO and ModeSocket, rdev the result of Rdev for the first two, else 0.
func (w *Writer) Node(m Meta, kind uint16, rdev uint32) (*Inode, error) {
	switch kind {
	case ModeChar, ModeBlock, ModeFIFO, ModeSocket:
	default:
		return nil, fmt.Errorf("node of type %#o: %w", kind, errors.ErrUnsupported)
	}
	xattrs, err := encodeXattrs(m.Xattrs)
	if err != nil {
		return nil, err
	}
	rec := w.record(m, kind, 0)
	rec.u = rdev
	return w.addInode(&Inode{mode: kind}, &rec, xattrs, nil)
}

// Link counts one more directory entry that holds the inode.
func (w *Writer) Link(in *Inode) {
	in.links++
	w.linked[in] = struct{}{}
}

// Discard counts one directory entry less. When the last one is gone, the
// blocks of the contents are given back to the host's file system, where it can.
func (w *Writer) Discard(in *Inode) error {
	in.links--
	if in.links > 0 {
		w.linked[in] = struct{}{}
		return nil
	}
	delete(w.linked, in)
	w.count--
	if in.blocks == 0 {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	punchHole(w.f, int64(in.block)*BlockSize, int64(in.blocks)*BlockSize)
	return nil
}

func (w *Writer) record(m Meta, kind uint16, size uint64) inodeRecord {
	w.serial++
	return inodeRecord{
		mode: kind | m.Mode&^modeType, size: size, ino: w.serial, uid: m.UID, gid: m.GID,
		mtime: m.Mtime, mtimeNs: m.MtimeNs, nlink: 1,
	}
}

// addInode stores an inode with its attributes and, behind them, its tail or chunk map.
func (w *Writer) addInode(in *Inode, rec *inodeRecord, xattrs, extra []byte) (*Inode, error) {
	rec.xattrs = len(xattrs)
	p, off, err := w.metaAlloc(inodeSize + len(xattrs) + len(extra))
	if err != nil {
		return nil, err
	}
	rec.put(p)
	copy(p[inodeSize:], xattrs)
	copy(p[inodeSize+len(xattrs):], extra)
	if len(p) > BlockSize {
		err = w.writeData(p)
	}
	in.nid, in.links = uint64(off)/slotSize, 1
	w.count++
	return in, err
}

// contents writes one regular file's data blocks.
type contents struct {
	w          *Writer
	inlineRoom int  // bytes that fit behind the inode in one block
	bits       uint // log2 of the chunk size
	first      uint32
	blocks     uint32
	holes      bool
	chunks     []uint32 // first block of each chunk; filled from the first hole on
	tail       []byte
}

var zeros [64 << 10]byte

func (c *contents) copy(size int64, r io.Reader) error {
	chunk := int64(1) << c.bits
	c.first = uint32(c.w.next)
	for pos := int64(0); pos < size; {
		n := min(chunk, size-pos)
		p, err := c.w.reserve(roundUp(int(n), BlockSize))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(r, p[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		index := int(pos >> c.bits)
		pos += n
		if size > chunk && allZero(p[:n]) {
			c.startMap(index)
			c.chunks = append(c.chunks, nullBlock)
			continue
		}
		keep := int(n)
		if rest := keep % BlockSize; rest > 0 && !c.holes && rest <= c.inlineRoom {
			keep -= rest
			c.tail = p[keep:n]
		}
		if c.holes {
			c.chunks = append(c.chunks, uint32(c.w.next))
		}
		if err := c.w.commit(p, keep); err != nil {
			return err
		}
		c.blocks += uint32((keep + BlockSize - 1) / BlockSize)
	}
	return nil
}

// startMap turns the chunks before the first hole into map entries.
func (c *contents) startMap(index int) {
	if c.holes {
		return
	}
	c.holes = true
	for i := range index {
		c.chunks = append(c.chunks, c.first+uint32(i)<<(c.bits-blockBits))
	}
}

func (c *contents) encodeMap() []byte {
	p := make([]byte, 4*len(c.chunks))
	for i, block := range c.chunks {
		le.PutUint32(p[4*i:], block)
	}
	return p
}

func allZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// reserve returns n bytes of the buffer behind what is pending. They belong to
// the image only after commit, which must be the next call that allocates.
func (w *Writer) reserve(n int) ([]byte, error) {
	if cap(w.buf)-len(w.buf) < n {
		if err := w.flush(); err != nil {
			return nil, err
		}
	}
	return w.buf[len(w.buf) : len(w.buf)+n], nil
}

// commit allocates blocks for the first n of the reserved bytes, padding the last block with zeros.
func (w *Writer) commit(reserved []byte, n int) error {
	padded := roundUp(n, BlockSize)
	clear(reserved[n:padded])
	w.buf = w.buf[:len(w.buf)+padded]
	return w.advance(padded / BlockSize)
}

// writeData allocates blocks for p and writes it there.
func (w *Writer) writeData(p []byte) error {
	if err := w.flush(); err != nil {
		return err
	}
	if _, err := w.f.WriteAt(p, w.next*BlockSize); err != nil {
		return err
	}
	return w.advance((len(p) + BlockSize - 1) / BlockSize)
}

func (w *Writer) advance(blocks int) error {
	w.next += int64(blocks)
	if w.next >= math.MaxUint32 {
		return fmt.Errorf("image of %d blocks: %w", w.next, ErrTooLarge)
	}
	return nil
}

func (w *Writer) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.f.WriteAt(w.buf, w.next*BlockSize-int64(len(w.buf)))
	w.buf = w.buf[:0]
	return err
}
