package agent

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// openNonblock keeps an open of a FIFO or a device from blocking the thread that all opens share.
const openNonblock = unix.O_NONBLOCK

// readFile sends a file's contents.
func (st *stream) readFile(req *wire.ReadFile) error {
	if err := checkPath(req.Path); err != nil {
		return err
	}
	var f *os.File
	var err error
	st.c.s.files.do(func() { f, err = os.OpenFile(req.Path, os.O_RDONLY|openNonblock, 0) })
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return &os.PathError{Op: "read", Path: req.Path, Err: unix.EISDIR}
	}
	st.reply(wire.Reply{Size: info.Size(), Mode: uint32(info.Mode().Perm())})
	buf := make([]byte, wire.MaxData)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if _, werr := st.out.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// writeFile writes a new file under a hidden name beside the wanted one and renames it when it is whole.
func (st *stream) writeFile(req *wire.WriteFile) error {
	if err := checkPath(req.Path); err != nil {
		return err
	}
	var f *os.File
	var err error
	files := st.c.s.files
	dir, base := path.Split(req.Path)
	files.do(func() {
		// The name of an existing symbolic link stays a link; what it points to is replaced.
		if target, e := os.Readlink(req.Path); e == nil {
			if !path.IsAbs(target) {
				target = path.Join(dir, target)
			}
			dir, base = path.Split(target)
		}
		if info, e := os.Stat(dir + base); e == nil && info.IsDir() {
			err = &os.PathError{Op: "write", Path: req.Path, Err: unix.EISDIR}
			return
		}
		f, err = os.CreateTemp(firstOf(dir, "/"), ".supermachine-*")
	})
	if err != nil {
		return hideTemp(err, req.Path)
	}
	tmp := f.Name()
	done := false
	defer func() {
		f.Close()
		if !done {
			files.do(func() { os.Remove(tmp) })
		}
	}()
	for {
		b, err := st.in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if _, err := f.Write(b); err != nil {
			return hideTemp(err, req.Path)
		}
	}
	if err := f.Chmod(os.FileMode(req.Mode & 0o777)); err != nil {
		return hideTemp(err, req.Path)
	}
	files.do(func() { err = os.Rename(tmp, dir+base) })
	if err != nil {
		return hideTemp(err, req.Path)
	}
	done = true
	return nil
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
	if !path.IsAbs(p) || strings.IndexByte(p, 0) >= 0 {
		return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%q is not an absolute path", p)}
	}
	return nil
}
