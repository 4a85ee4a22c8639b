package tree

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Source is what a copy is made of, by the path that the caller gave.
type Source struct {
	Base     string // last name of the path
	Contents bool   // the path ends in "/.": what is in the directory, not the directory
}

// NewSource splits a path for a copy. The file system's root and paths that end in ".." have no name of their own: they need "/.".
func NewSource(path string) (dir string, s Source, err error) {
	if path == "." || strings.HasSuffix(path, "/.") {
		return path, Source{Contents: true}, nil
	}
	trimmed := strings.TrimRight(path, "/")
	dir, s.Base = filepath.Split(trimmed)
	if s.Base == "" || s.Base == ".." || strings.IndexByte(path, 0) >= 0 {
		return "", s, &os.PathError{Op: "copy", Path: path, Err: fmt.Errorf("%w: no name to copy it to; end it with \"/.\"", unix.EINVAL)}
	}
	if dir == "" {
		dir = "."
	}
	return dir, s, nil
}

// Place is where a copy goes.
type Place struct {
	Root *os.Root // the caller closes it
	Dir  string   // Root's path
	As   string   // the file's name in Root; empty for a directory's contents
	New  bool     // Root was made for the copy
}

// OpenPlace finds the place of a copy by the rule of cp -a and docker cp: in an existing directory the copy gets the source's name, unless the source
// is a directory's contents; else dst is the copy's own name, in a directory that exists. Where the source's name is in the target's directory already, a
// directory is merged into a directory and a file replaces a file; a link there is never followed, as it may have come with an earlier copy.
func OpenPlace(dst string, s Source, directory bool) (Place, error) {
	info, err := os.Stat(dst)
	switch {
	case err == nil && info.IsDir():
		root, err := os.OpenRoot(dst)
		if err != nil || s.Contents && directory {
			return Place{Root: root, Dir: dst}, err
		}
		if !directory {
			return Place{Root: root, Dir: dst, As: s.Base}, nil
		}
		defer root.Close()
		return openOwn(root, s.Base, dst)
	case err == nil && directory:
		return Place{}, &os.PathError{Op: "copy", Path: dst, Err: fmt.Errorf("%w: a directory cannot replace a file", unix.EEXIST)}
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return Place{}, err
	case strings.HasSuffix(dst, "/") && !directory:
		return Place{}, &os.PathError{Op: "copy", Path: dst, Err: unix.ENOENT}
	}
	dir, base := filepath.Split(strings.TrimRight(dst, "/"))
	if base == "" || base == "." || base == ".." {
		return Place{}, &os.PathError{Op: "copy", Path: dst, Err: unix.ENOENT}
	}
	if dir == "" {
		dir = "."
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Place{}, &os.PathError{Op: "copy", Path: dst, Err: noDirectory(err)}
	}
	if !directory {
		return Place{Root: root, Dir: dir, As: base}, nil
	}
	defer root.Close()
	return openOwn(root, base, dir)
}

// openOwn opens or makes a directory in root.
func openOwn(root *os.Root, name, dir string) (Place, error) {
	err := root.Mkdir(name, 0o755)
	if errors.Is(err, os.ErrExist) {
		info, statErr := root.Lstat(name)
		if statErr != nil {
			return Place{}, statErr
		}
		if !info.IsDir() {
			return Place{}, &os.PathError{Op: "copy", Path: filepath.Join(dir, name), Err: fmt.Errorf("%w: a directory cannot replace a file", unix.EEXIST)}
		}
	} else if err != nil {
		return Place{}, err
	}
	sub, openErr := root.OpenRoot(name)
	return Place{Root: sub, Dir: filepath.Join(dir, name), New: err == nil}, openErr
}

// noDirectory gives os.OpenRoot's errors those of the system: its error for what is no directory is none of them.
func noDirectory(err error) error {
	var n unix.Errno
	if errors.As(err, &n) {
		return n
	}
	return fmt.Errorf("%w: %w", unix.ENOTDIR, err)
}
