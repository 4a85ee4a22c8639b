package tree

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on what Pack remembers and reads.
const (
	maxLinks  = 1 << 16   // files with several names; of those past it, every name becomes a file
	maxXattrs = 512 << 10 // bytes of one file's extended attributes; past it they are left out
)

// PackOptions say what Pack does.
type PackOptions struct {
	OneFS bool         // what is mounted in the tree is left out, but for the directory that it is mounted on
	Stop  func() error // if not nil, called now and then; its error ends the packing
}

// Pack writes a tree as a PAX archive with modes, numeric owners, times to the nanosecond, symbolic and hard links, devices, FIFOs and the extended
// attributes user.*; sockets are left out. name is in dir and not followed if it is a link; "." is dir. A directory is the entry "./", followed
// by what is in it; anything else is one entry of its own name. A file that shrinks while it is read is filled up with zeros, of one that grows the
// beginning is packed.
func Pack(w io.Writer, dir *os.File, name string, o PackOptions) error {
	p := &packer{w: tar.NewWriter(w), o: o, links: map[inode]*link{}, buf: make([]byte, 64<<10)}
	root := Entry{Dir: int(dir.Fd()), Name: name, Path: name}
	if err := unix.Fstatat(root.Dir, name, &root.Stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if !root.IsDir() {
		if err := p.add(&root); err != nil {
			return err
		}
		return p.w.Close()
	}
	sub, err := OpenDir(root.Dir, name)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer sub.Close()
	root = Entry{Dir: int(sub.Fd()), Name: ".", Path: ".", Stat: root.Stat}
	if err := p.add(&root); err != nil {
		return err
	}
	if err := Walk(sub, WalkOptions{OneFS: o.OneFS}, p.add); err != nil {
		return err
	}
	return p.w.Close()
}

type packer struct {
	w     *tar.Writer
	o     PackOptions
	links map[inode]*link
	buf   []byte
}

type inode struct{ dev, ino uint64 }

// link is a file some of whose names are still to come.
type link struct {
	path string
	left uint64
}

func (p *packer) add(e *Entry) error {
	if e.Err != nil {
		return e.Err
	}
	if p.o.Stop != nil {
		if err := p.o.Stop(); err != nil {
			return err
		}
	}
	err := p.entry(e)
	if vanished(err) || replaced(err) {
		return nil
	}
	if n := (unix.Errno)(0); errors.As(err, &n) && !errors.As(err, new(*os.PathError)) {
		return &os.PathError{Op: "pack", Path: e.Path, Err: err}
	}
	return err
}

func (p *packer) entry(e *Entry) (err error) {
	h := header(e.Path, &e.Stat)
	switch e.Stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if p.linked(h, &e.Stat) {
			break
		}
		return p.file(e)
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		if d, err := OpenDir(e.Dir, e.Name); err == nil {
			h.PAXRecords = xattrs(int(d.Fd()))
			d.Close()
		}
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = Readlink(e.Dir, e.Name); err != nil {
			return err
		}
		p.linked(h, &e.Stat)
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if e.Stat.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(e.Stat.Rdev)), int64(unix.Minor(e.Stat.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil
	}
	return p.w.WriteHeader(h)
}

// linked makes the header a hard link if the file was packed under another name.
func (p *packer) linked(h *tar.Header, st *unix.Stat_t) bool {
	if st.Nlink < 2 {
		return false
	}
	id := inode{st.Dev, st.Ino}
	first := p.links[id]
	if first == nil {
		if len(p.links) < maxLinks {
			p.links[id] = &link{h.Name, uint64(st.Nlink) - 1}
		}
		return false
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first.path, 0
	if first.left--; first.left == 0 {
		delete(p.links, id)
	}
	return true
}

// file packs a regular file as it is when it is opened.
func (p *packer) file(e *Entry) error {
	f, err := openAt(e.Dir, e.Name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		p.unlinked(&e.Stat)
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if st.Ino != e.Stat.Ino || st.Dev != e.Stat.Dev { // replaced
		p.unlinked(&e.Stat)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	h := header(e.Path, &st)
	h.Size, h.PAXRecords = st.Size, xattrs(int(f.Fd()))
	if err := p.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{p.w}, struct{ io.Reader }{io.LimitReader(f, st.Size)}, p.buf)
	if err != nil {
		return err
	}
	clear(p.buf)
	for n < st.Size {
		k, err := p.w.Write(p.buf[:min(st.Size-n, int64(len(p.buf)))])
		if n += int64(k); err != nil {
			return err
		}
	}
	return nil
}

// unlinked forgets a name that others were to be linked to.
func (p *packer) unlinked(st *unix.Stat_t) { delete(p.links, inode{st.Dev, st.Ino}) }

func header(name string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
}

const xattrRecord = "SCHILY.xattr."

// xattrs returns the extended attributes user.* of an open file, as far as an archive can hold them.
func xattrs(fd int) map[string]string {
	n, err := unix.Flistxattr(fd, nil)
	if err != nil || n <= 0 {
		return nil
	}
	list := make([]byte, n)
	if n, err = unix.Flistxattr(fd, list); err != nil {
		return nil
	}
	var records map[string]string
	total := 0
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") || strings.Contains(name, "=") {
			continue
		}
		size, err := unix.Fgetxattr(fd, name, nil)
		if total += size + len(name); err != nil || total > maxXattrs {
			return records
		}
		value := make([]byte, size)
		if size > 0 {
			if size, err = unix.Fgetxattr(fd, name, value); err != nil {
				continue
			}
		}
		if records == nil {
			records = map[string]string{}
		}
		records[xattrRecord+name] = string(value[:size])
	}
	return records
}

// checkName returns an archive's name without "./" and a slash at its end: "." for the directory itself.
func checkName(name string) (string, error) {
	if path.IsAbs(name) || name == "" || strings.IndexByte(name, 0) >= 0 {
		return "", &os.PathError{Op: "unpack", Path: name, Err: ErrUnsafe}
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", &os.PathError{Op: "unpack", Path: name, Err: ErrUnsafe}
		}
	}
	name = path.Clean(name)
	if strings.Count(name, "/") >= MaxDepth || len(name) > MaxPath+256 {
		return "", &os.PathError{Op: "unpack", Path: name[:min(len(name), 256)], Err: ErrTooDeep}
	}
	return name, nil
}
