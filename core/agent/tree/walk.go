// Package tree walks, removes, packs and unpacks trees of files that somebody else may change meanwhile. Every step goes from an open directory to
// one name in it and follows no symbolic link, so that nobody can lead it to another place. Memory does not grow with the size of a tree. Host and
// guest share it.
package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Bounds of a tree. Each open directory costs a descriptor.
const (
	MaxDepth = 256      // directories below one another
	MaxPath  = 32 << 10 // bytes of a path in the tree
	batch    = 256      // names read at once
)

var (
	// ErrTooDeep means that a tree has more directories below one another than MaxDepth, or longer paths than MaxPath.
	ErrTooDeep = fmt.Errorf("the tree is deeper than %d directories", MaxDepth)
	// ErrUnsafe means that an archive would reach out of the directory that it is unpacked into.
	ErrUnsafe = errors.New("the archive leads out of its directory")
	// ErrSpecial means that an archive has a device or a FIFO, which Options do not allow.
	ErrSpecial = errors.New("the archive has a device or a FIFO")
	// ErrLimit means that an archive is larger than Options allow.
	ErrLimit = errors.New("the archive is too large")
	// ErrArchive means that the bytes are not an archive, or one of a kind that is not understood.
	ErrArchive = errors.New("malformed archive")
)

// Entry is what Walk has come to.
type Entry struct {
	Path string      // below the walk's directory, with slashes
	Dir  int         // descriptor of the directory that it is in, while the visit lasts
	Name string      // in Dir
	Stat unix.Stat_t // of itself, also of a symbolic link
	Err  error       // it cannot be examined, or, as a second entry for a directory, not be read to its end; Stat may be unset
}

// IsDir reports whether the entry is a directory.
func (e *Entry) IsDir() bool { return e.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// WalkOptions restrict a walk.
type WalkOptions struct {
	Depth int  // 1 is the directory's own entries; 0 everything
	OneFS bool // directories on which something is mounted are entries, but not entered
}

// Walk visits what is below dir, directories before what is in them, in no order else. It stops at the first error of visit. What vanishes
// meanwhile is left out.
func Walk(dir *os.File, o WalkOptions, visit func(*Entry) error) error {
	w := &walker{o: o, visit: visit}
	if o.OneFS {
		var st unix.Stat_t
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			return &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
		}
		w.dev = st.Dev
	}
	err := w.walk(dir, "", 1)
	var read *readError
	if errors.As(err, &read) {
		return read.error
	}
	return err
}

type walker struct {
	o     WalkOptions
	dev   uint64
	visit func(*Entry) error
}

// readError tells a directory that cannot be read from an error of visit.
type readError struct{ error }

func (w *walker) walk(dir *os.File, prefix string, depth int) error {
	for {
		names, err := dir.Readdirnames(batch)
		for _, name := range names {
			if err := w.entry(dir, prefix, name, depth); err != nil {
				return err
			}
		}
		if err == io.EOF || vanished(err) || err == nil && len(names) == 0 {
			return nil
		}
		if err != nil {
			return &readError{err}
		}
	}
}

func (w *walker) entry(dir *os.File, prefix, name string, depth int) error {
	e := Entry{Path: prefix + name, Dir: int(dir.Fd()), Name: name}
	if err := unix.Fstatat(e.Dir, name, &e.Stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if vanished(err) {
			return nil
		}
		e.Err = &os.PathError{Op: "stat", Path: e.Path, Err: err}
		return w.visit(&e)
	}
	if err := w.visit(&e); err != nil {
		return err
	}
	if !e.IsDir() || depth == w.o.Depth || w.o.OneFS && e.Stat.Dev != w.dev {
		return nil
	}
	var err error
	if depth == MaxDepth || len(e.Path) > MaxPath {
		err = &os.PathError{Op: "open", Path: e.Path, Err: ErrTooDeep}
	} else if sub, openErr := OpenDir(e.Dir, name); openErr == nil {
		defer sub.Close()
		err = w.walk(sub, e.Path+"/", depth+1)
		var read *readError
		if err == nil || !errors.As(err, &read) {
			return err
		}
		err = &os.PathError{Op: "read", Path: e.Path, Err: errno(read.error)}
	} else if vanished(openErr) || replaced(openErr) {
		return nil
	} else {
		err = &os.PathError{Op: "open", Path: e.Path, Err: openErr}
	}
	e.Err = err
	return w.visit(&e)
}

// OpenDir opens a directory in a directory, and no symbolic link to one. The error is bare.
func OpenDir(dir int, name string) (*os.File, error) {
	return openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
}

func openAt(dir int, name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), name), nil
		}
		if err != unix.EINTR {
			return nil, err
		}
	}
}

// Readlink returns a symbolic link's target, at most 4 KiB of it. The error is bare.
func Readlink(dir int, name string) (string, error) {
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// vanished also knows what /proc says of processes that have ended.
func vanished(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// replaced reports whether something else has taken a directory's place.
func replaced(err error) bool { return errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) }

// errno takes the system's error out of those of package os, whose names are not the tree's.
func errno(err error) error {
	var n unix.Errno
	if errors.As(err, &n) {
		return n
	}
	return err
}
