package hostdir

import (
	"encoding/binary"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirStream is the reading of a directory. The guest's offsets are the host's (d_off), 0 the beginning.
type dirStream struct {
	buf  []byte // of getdents, kept
	left []byte // of buf: entries that were not returned
	next uint64 // the offset of the first of left
}

const (
	dirBuffer  = 16 << 10
	direntName = 19 // offset of d_name in struct linux_dirent64
)

// entry is a directory entry. after is the offset of the next one.
type entry struct {
	name  string
	kind  uint32
	ino   uint64
	after uint64
	size  int // bytes in dirStream.left
}

// peek returns the next entry, if there is one, without taking it.
func (d *dirStream) peek(fd int) (e entry, ok bool, err error) {
	if len(d.left) == 0 {
		if d.buf == nil {
			d.buf = make([]byte, dirBuffer)
		}
		var n int
		err := retry(func() (err error) {
			n, err = unix.Getdents(fd, d.buf)
			return err
		})
		if err != nil || n <= 0 {
			return entry{}, false, err
		}
		d.left = d.buf[:n]
	}
	// A host's file system may be a network's or a program's: its entries are not trusted to be well-formed either.
	le := binary.LittleEndian
	if len(d.left) < direntName {
		return entry{}, false, unix.EIO
	}
	e = entry{
		ino: le.Uint64(d.left), after: le.Uint64(d.left[8:]), size: int(le.Uint16(d.left[16:])),
		kind: uint32(d.left[18]) << 12,
	}
	if e.size <= direntName || e.size > len(d.left) {
		return entry{}, false, unix.EIO
	}
	e.name, _, _ = strings.Cut(string(d.left[direntName:e.size]), "\x00")
	return e, true, nil
}

func (d *dirStream) take(e *entry) { d.left, d.next = d.left[e.size:], e.after }

// seek goes to an offset that the guest names.
func (d *dirStream) seek(fd int, off uint64) error {
	if off == d.next && (off != 0 || d.buf == nil) {
		return nil
	}
	if int64(off) < 0 {
		return unix.EINVAL
	}
	d.left, d.next = nil, off
	_, err := unix.Seek(fd, int64(off), unix.SEEK_SET)
	return err
}

// ReadDir implements fuse.RawFileSystem.
func (s *fileSystem) ReadDir(_ cancel, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readdir(in, func(_ *node, e fuse.DirEntry) bool {
		if s.dir.o.Symlinks == Follow && e.Mode == unix.S_IFLNK {
			e.Mode = 0 // unknown: it may be shown as what it leads to
		}
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus implements fuse.RawFileSystem. What cannot be looked up has a name only, and the guest learns why when it looks itself.
func (s *fileSystem) ReadDirPlus(_ cancel, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readdir(in, func(dir *node, e fuse.DirEntry) bool {
		place := out.AddDirLookupEntry(e)
		if place == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true
		}
		if err := s.find(dir, e.Name, place); err != nil {
			*place = fuse.EntryOut{}
			return true
		}
		out.FixMode(place.Mode)
		return true
	})
}

func (s *fileSystem) readdir(in *fuse.ReadIn, add func(dir *node, e fuse.DirEntry) bool) fuse.Status {
	h, err := s.handle(in.Fh, true)
	if err != nil {
		return status(err)
	}
	defer s.done(h)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.dir.seek(h.fd, in.Offset); err != nil {
		return status(err)
	}
	for count := 0; ; count++ {
		e, ok, err := h.dir.peek(h.fd)
		switch {
		case err != nil && count == 0:
			return status(err)
		case err != nil || !ok:
			return fuse.OK
		}
		d := fuse.DirEntry{Name: e.name, Mode: e.kind, Ino: e.ino, Off: e.after}
		switch {
		case e.name == "..":
			d.Ino = h.node.key.ino // the root's parent is not the guest's concern, and nobody uses it of others
		case e.name != "." && !validName(e.name):
			h.dir.take(&e)
			continue
		}
		if !add(h.node, d) {
			if count == 0 {
				return fuse.EINVAL // no room for a single entry, as getdents(2)
			}
			return fuse.OK
		}
		h.dir.take(&e)
	}
}
