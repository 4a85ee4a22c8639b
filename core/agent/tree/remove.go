package tree

import (
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// RemoveAll removes a name of an open directory and everything below it; links are removed and not followed. It calls stop, if it is not nil, now
// and then, and ends with its error. Any other error ends it too, with a part of the tree gone. What vanishes meanwhile is no error, but a name that is
// not there to begin with is.
func RemoveAll(dir int, name string, stop func() error) error {
	r := &remover{stop: stop, top: -1}
	if err := unlink(dir, name); err == nil || !isDirectory(err) {
		return pathError(name, err)
	}
	return r.directory(dir, name, name, 1)
}

type remover struct {
	stop  func() error
	top   int // the directory to remove
	moved int // how many directories were
}

// emptyRounds is how often a directory may seem empty and not be.
const emptyRounds = 100

func (r *remover) stopped() error {
	if r.stop == nil {
		return nil
	}
	return r.stop()
}

// directory removes a directory. Removing changes what reading returns, so it is read from the beginning until nothing is left.
func (r *remover) directory(parent int, name, path string, depth int) error {
	for left := emptyRounds; ; {
		if err := r.stopped(); err != nil {
			return err
		}
		dir, err := OpenDir(parent, name)
		if vanished(err) {
			return nil
		}
		if replaced(err) {
			err = unlink(parent, name)
		}
		if dir == nil {
			return pathError(path, err)
		}
		if depth == 1 {
			r.top = int(dir.Fd())
		}
		n, err := r.entries(dir, path, depth)
		dir.Close()
		if err != nil {
			return err
		}
		if n > 0 {
			continue
		}
		switch err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err {
		case nil, unix.ENOENT:
			return nil
		case unix.ENOTEMPTY, unix.EEXIST, unix.ENOTDIR: // somebody puts more there
			if left--; left == 0 {
				return pathError(path, err)
			}
		default:
			return pathError(path, err)
		}
	}
}

// entries removes some of a directory's entries and returns how many.
func (r *remover) entries(dir *os.File, path string, depth int) (int, error) {
	names, err := dir.Readdirnames(4 * batch)
	if err != nil && err != io.EOF && !vanished(err) {
		return 0, pathError(path, errno(err))
	}
	for _, name := range names {
		if err := r.stopped(); err != nil {
			return 0, err
		}
		err := unlink(int(dir.Fd()), name)
		switch {
		case err == nil || vanished(err):
			continue
		case !isDirectory(err):
			return 0, pathError(path+"/"+name, err)
		case depth < MaxDepth:
			err = r.directory(int(dir.Fd()), name, path+"/"+name, depth+1)
		default:
			err = pathError(path+"/"+name, r.flatten(int(dir.Fd()), name))
		}
		if err != nil {
			return 0, err
		}
	}
	return len(names), nil
}

// flatten moves a directory that is too deep to be reached with the descriptors there are to the top, where its turn comes.
func (r *remover) flatten(dir int, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(dir, name, r.top, ".supermachine-deep-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		if err != unix.EEXIST {
			return err
		}
	}
}

// unlink removes what is no directory.
func unlink(dir int, name string) error { return unix.Unlinkat(dir, name, 0) }

// isDirectory reports whether unlink failed because of that: EISDIR on Linux, EPERM by POSIX.
func isDirectory(err error) bool { return err == unix.EISDIR || err == unix.EPERM }

func pathError(path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: "remove", Path: path, Err: err}
}
