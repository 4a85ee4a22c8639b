package tree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Options say what Unpack takes over from an archive. The zero value is the careful one.
type Options struct {
	Owners     bool         // owners, by number; it takes root. Else files belong to UID and GID
	UID, GID   int          // without Owners; if both are 0, to the caller
	Setuid     bool         // the bits set-user-ID and set-group-ID
	Special    bool         // devices and FIFOs; else they are ErrSpecial
	Skip       bool         // devices and FIFOs are left out
	MaxBytes   int64        // of all files' contents; 0 is no limit
	MaxEntries int64        // 0 is no limit
	Stop       func() error // if not nil, called before each entry; its error ends the unpacking
}

// Unpacker unpacks one archive into a directory, and never outside of it: names that are absolute or have "..", symbolic links that lead out and are
// in the way of a name, and hard links to what is outside are ErrUnsafe. Symbolic links are made as they are, whatever they point to.
type Unpacker struct {
	o     Options
	tr    *tar.Reader
	first *tar.Header
	err   error // of reading first

	root    *os.Root
	parent  *os.File // directory of the last entry
	name    string   // parent's, below root
	pending []directory
	bytes   int64
	entries int64
	buf     []byte
}

// directory is one that gets its mode and times when the archive has left it.
type directory struct {
	name string
	h    *tar.Header
}

// NewUnpacker reads the archive's beginning.
func NewUnpacker(r io.Reader, o Options) (*Unpacker, error) {
	u := &Unpacker{o: o, tr: tar.NewReader(r)}
	u.first, u.err = u.next()
	if u.err != nil && u.err != io.EOF {
		return nil, u.err
	}
	return u, nil
}

// Directory reports whether the archive is a directory's, as Pack makes them: its first entry is "./".
func (u *Unpacker) Directory() bool {
	return u.err == nil && u.first.Typeflag == tar.TypeDir && path.Clean(u.first.Name) == "."
}

func (u *Unpacker) next() (*tar.Header, error) {
	h, err := u.tr.Next()
	switch {
	case err == nil || err == io.EOF:
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("%w: %w", ErrArchive, err)
	}
	return h, err
}

// Extract unpacks into root, which stays the caller's. What an existing file's name is needed for replaces the file; a directory is replaced by nothing,
// and a link to one is followed as long as it stays inside. The directory's own entry "./" is applied if own is set. With as, the archive must be a
// single file, which gets that name.
func (u *Unpacker) Extract(root *os.Root, as string, own bool) error {
	u.root, u.buf = root, make([]byte, 64<<10)
	defer u.leave()
	for h, err := u.first, u.err; ; h, err = u.next() {
		if err == io.EOF {
			if as != "" && u.entries == 0 {
				return fmt.Errorf("%w: it is empty", ErrArchive)
			}
			return u.finish("")
		}
		if err != nil {
			return err
		}
		if u.o.Stop != nil {
			if err := u.o.Stop(); err != nil {
				return err
			}
		}
		if u.entries++; u.o.MaxEntries > 0 && u.entries > u.o.MaxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrLimit, u.o.MaxEntries)
		}
		if as != "" {
			if h.Typeflag == tar.TypeDir || u.entries > 1 {
				return fmt.Errorf("%w: not the one file that was asked for", ErrArchive)
			}
			h.Name = as
		}
		name, err := checkName(h.Name)
		if err == nil {
			err = u.finish(name)
		}
		if err != nil {
			return err
		}
		if name == "." {
			if h.Typeflag != tar.TypeDir {
				return &os.PathError{Op: "unpack", Path: h.Name, Err: ErrUnsafe}
			}
			if own {
				u.pending = append(u.pending, directory{".", h})
			}
			continue
		}
		if err := u.entry(name, h); err != nil {
			return named(name, err)
		}
	}
}

// named gives an error the entry's name, and ErrUnsafe if os.Root is its origin: those alone are no errors of the system.
func named(name string, err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		if n := (unix.Errno)(0); errors.As(p.Err, &n) || errors.Is(err, ErrSpecial) || errors.Is(err, ErrUnsafe) || errors.Is(err, ErrTooDeep) {
			return &os.PathError{Op: "unpack", Path: name, Err: p.Err}
		}
		if p.Op != "read" && p.Op != "write" {
			return &os.PathError{Op: "unpack", Path: name, Err: fmt.Errorf("%w: %w", ErrUnsafe, p.Err)}
		}
	}
	if n := (unix.Errno)(0); errors.As(err, &n) {
		return &os.PathError{Op: "unpack", Path: name, Err: n}
	}
	return err
}

func (u *Unpacker) entry(name string, h *tar.Header) error {
	dir, base := path.Split(name)
	if err := u.enter(path.Clean(dir)); err != nil {
		return err
	}
	fd := int(u.parent.Fd())
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(fd, base, h)
	case tar.TypeDir:
		return u.directory(fd, name, base, h)
	case tar.TypeSymlink:
		if err := u.replace(fd, base); err != nil {
			return err
		}
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return err
		}
		return u.dress(fd, base, h)
	case tar.TypeLink:
		return u.link(fd, base, h)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return u.special(fd, base, h)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("%w: entry %q of type %q", ErrArchive, name, h.Typeflag)
}

// enter makes dir the parent, and makes it if there is none.
func (u *Unpacker) enter(dir string) error {
	if u.parent != nil && u.name == dir {
		return nil
	}
	u.leave()
	f, err := u.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err = u.root.MkdirAll(dir, 0o755); err == nil {
			f, err = u.root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
		}
	}
	if err != nil {
		return err
	}
	u.parent, u.name = f, dir
	return nil
}

func (u *Unpacker) leave() {
	if u.parent != nil {
		u.parent.Close()
		u.parent = nil
	}
}

// replace makes room for a name. A directory stays where it is.
func (u *Unpacker) replace(dir int, name string) error {
	err := unlink(dir, name)
	if err == unix.EPERM {
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = unix.EISDIR
		}
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

func (u *Unpacker) file(dir int, name string, h *tar.Header) error {
	if u.bytes += h.Size; h.Size < 0 || u.bytes < 0 || u.o.MaxBytes > 0 && u.bytes > u.o.MaxBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrLimit, u.o.MaxBytes)
	}
	if err := u.replace(dir, name); err != nil {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, &stoppable{u.tr, u.o.Stop}, u.buf); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: %w", ErrArchive, err)
		}
		return err
	}
	if err := u.own(func(uid, gid int) error { return unix.Fchown(fd, uid, gid) }, h); err != nil {
		return err
	}
	if err := setXattrs(fd, h); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, u.mode(h)); err != nil {
		return err
	}
	return setTimes(dir, name, h)
}

type stoppable struct {
	r    io.Reader
	stop func() error
}

func (s *stoppable) Read(p []byte) (int, error) {
	if s.stop != nil {
		if err := s.stop(); err != nil {
			return 0, err
		}
	}
	return s.r.Read(p)
}

// directory makes one, or takes an existing one, also behind a link that stays inside.
func (u *Unpacker) directory(dir int, name, base string, h *tar.Header) error {
	err := unix.Mkdirat(dir, base, 0o700)
	if err == unix.EEXIST {
		info, statErr := u.root.Stat(name)
		if statErr == nil && info.IsDir() {
			err = nil
		} else if err = u.replace(dir, base); err == nil {
			err = unix.Mkdirat(dir, base, 0o700)
		}
	}
	if err != nil {
		return err
	}
	u.pending = append(u.pending, directory{name, h})
	return nil
}

// finish gives the directories that name is not in their owners, modes and times.
func (u *Unpacker) finish(name string) error {
	for len(u.pending) > 0 {
		d := u.pending[len(u.pending)-1]
		if d.name == "." && name != "" || name != "" && strings.HasPrefix(name, d.name+"/") {
			return nil
		}
		u.pending = u.pending[:len(u.pending)-1]
		if err := u.finishDirectory(d); err != nil {
			return named(d.name, err)
		}
	}
	return nil
}

func (u *Unpacker) finishDirectory(d directory) error {
	f, err := u.root.OpenFile(d.name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := u.own(func(uid, gid int) error { return unix.Fchown(fd, uid, gid) }, d.h); err != nil {
		return err
	}
	if err := setXattrs(fd, d.h); err != nil {
		return err
	}
	if err := setTimes(fd, ".", d.h); err != nil {
		return err
	}
	return unix.Fchmod(fd, u.mode(d.h))
}

func (u *Unpacker) link(dir int, base string, h *tar.Header) error {
	target, err := checkName(h.Linkname)
	if err != nil {
		return err
	}
	from, to := path.Split(target)
	source, err := u.root.OpenFile(path.Clean(from), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	var a, b unix.Stat_t
	if err := unix.Fstatat(int(source.Fd()), to, &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if unix.Fstatat(dir, base, &b, unix.AT_SYMLINK_NOFOLLOW) == nil && a.Dev == b.Dev && a.Ino == b.Ino {
		return nil // the same file: replacing the name could take the last one
	}
	if err := u.replace(dir, base); err != nil {
		return err
	}
	return unix.Linkat(int(source.Fd()), to, dir, base, 0)
}

func (u *Unpacker) special(dir int, base string, h *tar.Header) error {
	switch {
	case u.o.Skip:
		return nil
	case !u.o.Special:
		return &os.PathError{Op: "unpack", Path: base, Err: ErrSpecial}
	case h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32:
		return fmt.Errorf("%w: device %d:%d", ErrArchive, h.Devmajor, h.Devminor)
	}
	if err := u.replace(dir, base); err != nil {
		return err
	}
	kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
	if err := unix.Mknodat(dir, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
		return err
	}
	if err := u.dress(dir, base, h); err != nil {
		return err
	}
	return unix.Fchmodat(dir, base, u.mode(h), unix.AT_SYMLINK_NOFOLLOW)
}

// dress gives what cannot be opened its owner and times.
func (u *Unpacker) dress(dir int, name string, h *tar.Header) error {
	err := u.own(func(uid, gid int) error { return unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) }, h)
	if err != nil {
		return err
	}
	return setTimes(dir, name, h)
}

func (u *Unpacker) own(chown func(uid, gid int) error, h *tar.Header) error {
	switch {
	case !u.o.Owners && u.o.UID == 0 && u.o.GID == 0:
		return nil
	case !u.o.Owners:
		return chown(u.o.UID, u.o.GID)
	case h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32: // -1 means "unchanged" to the kernel
		return fmt.Errorf("%w: owner %d:%d", ErrArchive, h.Uid, h.Gid)
	}
	return chown(h.Uid, h.Gid)
}

func (u *Unpacker) mode(h *tar.Header) uint32 {
	mode := uint32(h.Mode) & 0o7777
	if !u.o.Setuid {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	return mode
}

func setTimes(dir int, name string, h *tar.Header) error {
	if h.ModTime.IsZero() {
		return nil
	}
	m := unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, m}, unix.AT_SYMLINK_NOFOLLOW)
}

// setXattrs sets the attributes user.*, where the file system has such.
func setXattrs(fd int, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || !strings.HasPrefix(name, "user.") || strings.IndexByte(name, 0) >= 0 {
			continue
		}
		switch err := unix.Fsetxattr(fd, name, []byte(value), 0); err {
		case nil, unix.EOPNOTSUPP, unix.EPERM, unix.ERANGE, unix.ENOSPC, unix.E2BIG:
		default:
			return err
		}
	}
	return nil
}
