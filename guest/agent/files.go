package agent

import (
	"errors"
	"fmt"
	"io"
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

// readFile sends a file's contents, or a part.
func (st *stream) readFile(req *wire.ReadFile) error {
	if err := checkPath(req.Path); err != nil {
		return err
	}
	if req.Offset < 0 || req.Length != nil && *req.Length < 0 {
		return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("read %s: a negative offset or length", req.Path)}
	}
	var f *os.File
	var info os.FileInfo
	err := st.inside(func() (err error) {
		f, info, err = openRegular(req.Path)
		return err
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if req.Offset > 0 {
		if _, err := f.Seek(req.Offset, io.SeekStart); err != nil {
			return err
		}
	}
	st.reply(wire.Reply{Size: info.Size(), Mode: uint32(info.Mode().Perm())})
	if req.Length != nil {
		return wire.Copy(st.out, io.LimitReader(f, *req.Length))
	}
	return wire.Copy(st.out, f)
}

// writeFile writes a new file under a hidden name beside the wanted one and renames it when it is whole; or it writes into a file.
func (st *stream) writeFile(req *wire.WriteFile) error {
	if err := checkPath(req.Path); err != nil {
		return err
	}
	if req.Append || req.At != nil {
		return st.writeInto(req)
	}
	var f *os.File
	var name string
	threads := st.c.s.threads
	err := st.inside(func() (err error) {
		if name, err = writeTarget(req.Path); err == nil {
			f, err = createBeside(name, req.Owner)
		}
		return err
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
	if err := st.inside(func() error { return os.Rename(tmp, name) }); err != nil {
		return hideTemp(err, req.Path)
	}
	done = true
	return nil
}

// writeInto writes to the end of a file or over a part of it.
func (st *stream) writeInto(req *wire.WriteFile) error {
	if req.At != nil && (req.Append || *req.At < 0) {
		return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("write %s: a negative offset, or one to append at", req.Path)}
	}
	var f *os.File
	err := st.inside(func() (err error) {
		name, err := writeTarget(req.Path)
		if err == nil {
			f, err = openForWriting(name, req)
		}
		return err
	})
	if err != nil {
		return hideTemp(err, req.Path)
	}
	defer f.Close()
	var w io.Writer = f
	if req.At != nil {
		w = io.NewOffsetWriter(f, *req.At)
	}
	_, err = st.in.WriteTo(w)
	return hideTemp(err, req.Path)
}

// openForWriting opens a file as writeInto needs it, on a thread in the container; it makes one to append to.
func openForWriting(name string, req *wire.WriteFile) (*os.File, error) {
	flags := os.O_WRONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW
	if req.Append {
		flags |= os.O_APPEND
		f, err := os.OpenFile(name, flags|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			if err := dressNew(f, req); err != nil {
				f.Close()
				os.Remove(name)
				return nil, err
			}
			return f, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return nil, err
		}
	}
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular("write", name, info)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// dressNew gives a new file its owner and mode.
func dressNew(f *os.File, req *wire.WriteFile) error {
	if req.Owner != "" {
		u, err := lookupUser(req.Owner)
		if err != nil {
			return err
		}
		if err := f.Chown(int(u.uid), int(u.gid)); err != nil {
			return err
		}
	}
	return f.Chmod(os.FileMode(req.Mode & 0o777))
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
