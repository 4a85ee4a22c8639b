package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/tree"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// files handles the requests about files but for those that read and write a whole one.
func (st *stream) files(req *wire.Files) error {
	var err error
	switch {
	case req.Read != nil:
		err = st.readFile(req.Read)
	case req.Write != nil:
		err = st.writeFile(req.Write)
	case req.Stat != nil:
		err = st.stat(req.Stat)
	case req.Walk != nil:
		err = st.walk(req.Walk)
	case req.Mkdir != nil:
		err = st.onPath("mkdir", req.Mkdir.Path, func(string) error { return mkdir(req.Mkdir) })
	case req.Remove != nil:
		err = st.remove(req.Remove)
	case req.Rename != nil:
		err = st.rename(req.Rename)
	case req.Chmod != nil:
		err = st.chmod(req.Chmod)
	case req.Chown != nil:
		err = st.chown(req.Chown)
	case req.Symlink != nil:
		err = st.onPath("symlink", req.Symlink.Path, func(p string) error { return unix.Symlink(req.Symlink.Target, p) })
	case req.Watch != nil:
		err = st.watch(req.Watch)
	case req.Pack != nil:
		err = st.pack(req.Pack)
	case req.Unpack != nil:
		err = st.unpack(req.Unpack)
	default:
		err = &wire.Error{Kind: wire.KindInvalid, Message: "a request about files of a kind this agent does not know"}
	}
	if err != nil {
		return &wire.Error{Kind: fileKind(err), Message: err.Error()}
	}
	return nil
}

// fileKind tells more kinds of errors apart than kindOf.
func fileKind(err error) string {
	var own *wire.Error
	switch {
	case errors.As(err, &own):
		return own.Kind
	case errors.Is(err, unix.EEXIST):
		return wire.KindExists
	case errors.Is(err, unix.ENOTEMPTY):
		return wire.KindNotEmpty
	case errors.Is(err, tree.ErrTooDeep), errors.Is(err, tree.ErrLimit), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE),
		errors.Is(err, unix.EMLINK):
		return wire.KindLimit
	case errors.Is(err, tree.ErrUnsafe), errors.Is(err, tree.ErrSpecial), errors.Is(err, tree.ErrArchive), errors.Is(err, unix.EXDEV),
		errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENXIO):
		return wire.KindInvalid
	}
	return kindOf(err)
}

// cleanPath checks a path that may be a directory's and takes slashes off its end.
func cleanPath(op, p string) (string, error) {
	if !path.IsAbs(p) || strings.IndexByte(p, 0) >= 0 {
		return "", &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%s %q: not an absolute path", op, p)}
	}
	if trimmed := strings.TrimRight(p, "/"); trimmed != "" {
		return trimmed, nil
	}
	return "/", nil
}

// onPath runs f with a path, on a thread in the container, and gives its error the operation and the path.
func (st *stream) onPath(op, p string, f func(string) error) error {
	name, err := cleanPath(op, p)
	if err != nil {
		return err
	}
	err = st.inside(func() error { return f(name) })
	if errno, ok := err.(unix.Errno); ok {
		return &os.PathError{Op: op, Path: p, Err: errno}
	}
	return err
}

// openDir opens the directory dir, which p is or is in; its descriptor may be used on any thread.
func (st *stream) openDir(op, p, dir string, flags int) (f *os.File, err error) {
	err = st.onPath(op, p, func(string) error {
		fd, err := unix.Open(dir, flags|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(fd), dir)
			return nil
		}
		return notDirectory(op, dir, err)
	})
	return f, err
}

// notDirectory tells what is no directory itself from what is in none.
func notDirectory(op, name string, err error) error {
	if err != nil {
		if info, statErr := os.Stat(name); statErr == nil && !info.IsDir() {
			return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%s %s: not a directory", op, name)}
		}
	}
	return err
}

// under gives an error of package tree the whole path and the operation.
func under(op, base string, err error) error {
	var e *os.PathError
	if err == nil || errors.Is(err, errCanceled) {
		return err
	}
	if errors.As(err, &e) {
		return &os.PathError{Op: op, Path: path.Join(base, e.Path), Err: e.Err}
	}
	return fmt.Errorf("%s %s: %w", op, base, err)
}

func (st *stream) stat(req *wire.Stat) error {
	var info wire.FileInfo
	err := st.onPath("stat", req.Path, func(name string) error {
		var s unix.Stat_t
		flags := unix.AT_SYMLINK_NOFOLLOW
		if req.Follow {
			flags = 0
		}
		if err := unix.Fstatat(unix.AT_FDCWD, name, &s, flags); err != nil {
			return err
		}
		var err error
		info, err = fileInfo(unix.AT_FDCWD, name, path.Base(name), &s)
		return err
	})
	if err == nil {
		st.reply(wire.Reply{File: &info})
	}
	return err
}

// fileInfo describes the file name in dir.
func fileInfo(dir int, name, p string, s *unix.Stat_t) (wire.FileInfo, error) {
	info := wire.FileInfo{
		Path: p, Size: s.Size, Mode: s.Mode, UID: s.Uid, GID: s.Gid, ModTime: s.Mtim.Nano(),
		Dev: s.Dev, Ino: s.Ino, Links: uint64(s.Nlink),
	}
	if s.Mode&unix.S_IFMT != unix.S_IFLNK {
		return info, nil
	}
	var err error
	info.Target, err = tree.Readlink(dir, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) { // gone, or one of those in /proc that point nowhere; or no link any more
		err = nil
	}
	return info, err
}

// walk sends what is below a directory.
func (st *stream) walk(req *wire.Walk) error {
	dir, err := st.openDir("list", req.Path, req.Path, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer dir.Close()
	st.reply(wire.Reply{})
	w := wire.NewRecordWriter(st.out)
	err = tree.Walk(dir, tree.WalkOptions{Depth: max(req.Depth, 0), OneFS: req.OneFS}, func(e *tree.Entry) error {
		if err := st.stopped(); err != nil {
			return err
		}
		info, err := fileInfo(e.Dir, e.Name, e.Path, &e.Stat)
		if e.Err != nil {
			err = under("list", req.Path, e.Err)
		}
		if err != nil {
			info.Error = toWire(&wire.Error{Kind: fileKind(err), Message: err.Error()})
		}
		return w.Write(info)
	})
	if flushErr := w.Flush(); err == nil {
		return flushErr
	}
	return under("list", req.Path, err)
}

// owner resolves who shall own something, on a thread in the container; nil means nobody in particular.
func owner(spec string) (*user, error) {
	if spec == "" {
		return nil, nil
	}
	u, err := lookupUser(spec)
	return &u, err
}

// mkdir makes a directory, on a thread in the container.
func mkdir(req *wire.Mkdir) error {
	u, err := owner(req.Owner)
	if err != nil {
		return err
	}
	name, _ := cleanPath("mkdir", req.Path)
	if req.Parents {
		for i := 1; i < len(name); i++ {
			if name[i] == '/' && name[i-1] != '/' {
				if err := makeDir(name[:i], 0o755, u, true); err != nil {
					return err
				}
			}
		}
	}
	return makeDir(name, req.Mode&0o7777, u, req.Parents)
}

// makeDir makes one directory. Owner and mode are set by its descriptor: the name may be somebody else's by then.
func makeDir(name string, mode uint32, u *user, mayExist bool) error {
	err := unix.Mkdir(name, 0o700)
	if err == unix.EEXIST && mayExist {
		if info, statErr := os.Stat(name); statErr == nil && info.IsDir() {
			return nil
		}
	}
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	f, err := tree.OpenDir(unix.AT_FDCWD, name)
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	defer f.Close()
	if u != nil {
		if err := f.Chown(int(u.uid), int(u.gid)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(int(f.Fd()), mode); err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

func (st *stream) remove(req *wire.Remove) error {
	name, err := cleanPath("remove", req.Path)
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	if base == "" || base == "." || base == ".." {
		return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("remove %s: no name to remove", req.Path)}
	}
	if !req.Recursive {
		return st.onPath("remove", name, func(name string) error {
			err := unix.Unlink(name)
			if err != unix.EISDIR && err != unix.EPERM {
				return err
			}
			rmdirErr := unix.Rmdir(name)
			if rmdirErr == unix.ENOTDIR { // a file that may not be removed
				return err
			}
			return rmdirErr
		})
	}
	parent, err := st.openDir("remove", name, dir, unix.O_PATH)
	if err != nil {
		return err
	}
	defer parent.Close()
	return under("remove", dir, tree.RemoveAll(int(parent.Fd()), base, st.stopped))
}

func (st *stream) rename(req *wire.Rename) error {
	to, err := cleanPath("rename", req.To)
	if err != nil {
		return err
	}
	var flags uint
	if req.NoReplace {
		flags = unix.RENAME_NOREPLACE
	}
	return st.onPath("rename", req.From, func(from string) error {
		if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags); err != nil {
			return &os.LinkError{Op: "rename", Old: req.From, New: req.To, Err: err}
		}
		return nil
	})
}

func (st *stream) chmod(req *wire.Chmod) error {
	mode := req.Mode & 0o7777
	return st.change("chmod", req.Path, req.Recursive, func(name string) error { return unix.Chmod(name, mode) }, func(e *tree.Entry) error {
		if e.Stat.Mode&unix.S_IFMT == unix.S_IFLNK {
			return nil
		}
		err := unix.Fchmodat(e.Dir, e.Name, mode, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.EOPNOTSUPP { // a link has taken its place
			return nil
		}
		return err
	})
}

func (st *stream) chown(req *wire.Chown) error {
	uid, gid := -1, -1
	err := st.onPath("chown", req.Path, func(string) error {
		spec, onlyGroup := req.Owner, strings.HasPrefix(req.Owner, ":")
		if strings.Trim(spec, ":") == "" {
			return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("chown %s: no owner", req.Path)}
		}
		if onlyGroup {
			spec = "0" + spec
		}
		u, err := lookupUser(spec)
		uid, gid = int(u.uid), int(u.gid)
		switch {
		case onlyGroup:
			uid = -1
		case !strings.Contains(req.Owner, ":"): // as chown(1) has it
			gid = -1
		}
		return err
	})
	if err != nil {
		return err
	}
	set := unix.Chown
	if req.NoFollow {
		set = unix.Lchown
	}
	return st.change("chown", req.Path, req.Recursive, func(name string) error { return set(name, uid, gid) }, func(e *tree.Entry) error {
		return unix.Fchownat(e.Dir, e.Name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// change changes a file, and with recursive what is below it, which it does not look for behind a link.
func (st *stream) change(op, p string, recursive bool, self func(string) error, entry func(*tree.Entry) error) error {
	var dir *os.File
	err := st.onPath(op, p, func(name string) error {
		if err := self(name); err != nil || !recursive {
			return err
		}
		fd, err := tree.OpenDir(unix.AT_FDCWD, name)
		if err == unix.ENOTDIR || err == unix.ELOOP {
			return nil
		}
		dir = fd
		return err
	})
	if err != nil || dir == nil {
		return err
	}
	defer dir.Close()
	err = tree.Walk(dir, tree.WalkOptions{}, func(e *tree.Entry) error {
		if err := st.stopped(); err != nil {
			return err
		}
		if e.Err != nil {
			return e.Err
		}
		if err := entry(e); err != nil && err != unix.ENOENT {
			return &os.PathError{Op: op, Path: e.Path, Err: err}
		}
		return nil
	})
	return under(op, p, err)
}
