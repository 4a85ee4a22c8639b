package hostdir

import (
	"errors"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// maxMade is how many links that guests made a Dir remembers.
const maxMade = 1 << 16

// Dir is a directory that is served. Its methods may be called from any goroutine.
type Dir struct {
	o        Options
	fd       int // O_PATH
	key      key
	uid, gid uint32 // the host process's

	mu     sync.Mutex
	refs   int // Open's and each session's
	closed bool
	made   map[key]struct{} // symbolic links that guests made, under Opaque
}

// Open returns the directory at path, which is resolved once, links included. The caller closes it.
func Open(path string, o Options) (*Dir, error) {
	d, err := open(path, o)
	if err != nil {
		return nil, &OpenError{Path: path, Err: err}
	}
	return d, nil
}

func open(path string, o Options) (*Dir, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, os.NewSyscallError("getrlimit", err)
	}
	o, err := o.withDefaults(limit.Cur)
	if err != nil {
		return nil, err
	}
	fd, err := openHow(unix.AT_FDCWD, path, unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY})
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return nil, ErrNotDirectory
	case errors.Is(err, unix.ENOSYS):
		return nil, ErrUnsupported
	case err != nil:
		return nil, os.NewSyscallError("openat2", err)
	}
	d := &Dir{o: o, fd: fd, refs: 1, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), made: map[key]struct{}{}}
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("statx", err)
	}
	d.key = keyOf(&st)
	// All reading and writing is by way of /proc.
	probe, err := reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.ENOENT) {
			return nil, ErrUnsupported
		}
		return nil, os.NewSyscallError("open", err)
	}
	_ = unix.Close(probe)
	return d, nil
}

// Close gives the directory up. Sessions go on until they are closed. A second Close does nothing.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.unref()
}

// unref is called with mu held.
func (d *Dir) unref() error {
	if d.refs--; d.refs > 0 {
		return nil
	}
	return os.NewSyscallError("close", unix.Close(d.fd))
}

// remember notes a link that a guest made.
func (d *Dir) remember(k key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.made) >= maxMade {
		for old := range d.made {
			delete(d.made, old)
			break
		}
	}
	d.made[k] = struct{}{}
}

func (d *Dir) guestMade(k key) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.made[k]
	return ok
}

// key identifies an inode. Hard links share it; another mount of the same file does not, since it may have other rights. The time of birth tells an
// inode from a later one of the same number, where the file system keeps it.
type key struct {
	dev, ino, mount uint64
	birth           int64
}

func keyOf(st *unix.Statx_t) key {
	return key{
		dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino, mount: st.Mnt_id,
		birth: st.Btime.Sec*1e9 + int64(st.Btime.Nsec),
	}
}

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

func statFD(fd int, st *unix.Statx_t) error {
	return retry(func() error { return unix.Statx(fd, "", unix.AT_EMPTY_PATH, statMask, st) })
}

func statAt(dir int, name string, st *unix.Statx_t) error {
	return retry(func() error {
		return unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, st)
	})
}

// Resolution of one name in a directory, and of a path that may follow links but not leave the directory.
const (
	resolveName   = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS
	resolveInside = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
)

// openPath returns an O_PATH descriptor of a name in a directory, of a link itself if it is one.
func openPath(dir int, name string) (int, error) {
	return openHow(dir, name, unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW, Resolve: resolveName})
}

func openHow(dir int, name string, how unix.OpenHow) (fd int, err error) {
	how.Flags |= unix.O_CLOEXEC
	// EAGAIN: something was renamed while ".." was resolved beneath (openat2(2)); it can go on only as long as somebody renames.
	for range 64 {
		err = retry(func() (err error) {
			fd, err = unix.Openat2(dir, name, &how)
			return err
		})
		if err != unix.EAGAIN {
			break
		}
	}
	return fd, err
}

// reopen opens what the O_PATH descriptor fd refers to, which the caller knows to be a regular file or a directory, unless flags have O_PATH.
func reopen(fd, flags int) (n int, err error) {
	err = retry(func() (err error) {
		n, err = unix.Open(procPath(fd), flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		return err
	})
	return n, err
}

// procPath names what a descriptor refers to. The last step of such a path is not a link that could be changed.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// retry repeats f while signals interrupt it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// validName reports whether name can be one component of a path on the host.
func validName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > unix.NAME_MAX {
		return false
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return false
		}
	}
	return true
}
