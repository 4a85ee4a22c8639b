package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// openRegular opens a file for reading, on a thread in the container. It refuses what is no regular file, and what might block.
func openRegular(name string) (*os.File, os.FileInfo, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular("open", name, info)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

func notRegular(op, name string, info os.FileInfo) error {
	if info.IsDir() {
		return &os.PathError{Op: op, Path: name, Err: unix.EISDIR}
	}
	return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%s %s: not a regular file", op, name)}
}

// readFile sends a file's contents.
func (st *stream) readFile(req *wire.ReadFile) error {
	if err := checkPath(req.Path); err != nil {
		return err
	}
	var f *os.File
	var info os.FileInfo
	var err error
	st.c.s.threads.do(func() { f, info, err = openRegular(req.Path) })
	if err != nil {
		return err
	}
	defer f.Close()
	st.reply(wire.Reply{Size: info.Size(), Mode: uint32(info.Mode().Perm())})
	return wire.Copy(st.out, f)
}

// writeFile writes a new file under a hidden name beside the wanted one and renames it when it is whole.
func (st *stream) writeFile(req *wire.WriteFile) error {
	if err := checkPath(req.Path); err != nil {
		return err
	}
	var f *os.File
	var name string
	var err error
	threads := st.c.s.threads
	threads.do(func() {
		if name, err = writeTarget(req.Path); err == nil {
			f, err = createBeside(name, req.Owner)
		}
	})
	if err != nil {
		return hideTemp(err, req.Path)
	}
	tmp := f.Name()
	done := false
	defer func() {
		f.Close()
		if !done {
			threads.do(func() { os.Remove(tmp) })
		}
	}()
	if _, err := st.in.WriteTo(f); err != nil {
		return hideTemp(err, req.Path)
	}
	if err := f.Chmod(os.FileMode(req.Mode & 0o777)); err != nil {
		return hideTemp(err, req.Path)
	}
	threads.do(func() { err = os.Rename(tmp, name) })
	if err != nil {
		return hideTemp(err, req.Path)
	}
	done = true
	return nil
}

// writeTarget follows the symbolic links at the end of a path: a link stays a link, what it points to is replaced.
func writeTarget(name string) (string, error) {
	for range 40 { // as many as the kernel follows
		info, err := os.Lstat(name)
		if errors.Is(err, unix.ENOENT) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
		if info.Mode()&os.ModeSymlink == 0 {
			if !info.Mode().IsRegular() {
				return "", notRegular("write", name, info)
			}
			return name, nil
		}
		target, err := os.Readlink(name)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			dir, _ := path.Split(name)
			target = dir + target // not cleaned: the directory may be a link, whose .. is elsewhere
		}
		name = target
	}
	return "", &os.PathError{Op: "write", Path: name, Err: unix.ELOOP}
}

// createBeside makes a temporary file that can be renamed to name.
func createBeside(name, owner string) (*os.File, error) {
	var u user
	var err error
	if owner != "" {
		if u, err = lookupUser(owner); err != nil {
			return nil, err
		}
	}
	dir, _ := path.Split(name)
	f, err := os.CreateTemp(dir, ".supermachine-*")
	if err != nil {
		return nil, err
	}
	if owner != "" {
		if err := f.Chown(int(u.uid), int(u.gid)); err != nil {
			f.Close()
			os.Remove(f.Name())
			return nil, err
		}
	}
	return f, nil
}

// hideTemp names the file that the user knows in an error.
func hideTemp(err error, name string) error {
	switch e := err.(type) {
	case *os.PathError:
		return &os.PathError{Op: "write", Path: name, Err: e.Err}
	case *os.LinkError:
		return &os.PathError{Op: "write", Path: name, Err: e.Err}
	}
	return err
}

func checkPath(p string) error {
	if !path.IsAbs(p) || strings.HasSuffix(p, "/") || strings.IndexByte(p, 0) >= 0 {
		return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%q is not the absolute path of a file", p)}
	}
	return nil
}
