package hostdir

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fileSystem does what requests ask for; what it does not implement fails with ENOSYS. Names and arguments are copies, which the guest cannot change
// any more.
type fileSystem struct {
	fuse.RawFileSystem
	table
	dir   *Dir
	links sync.Mutex // Follow: what moves links is done one at a time, so that what was checked is what is moved
}

type cancel = <-chan struct{}

// node is get for a request's node id.
func (s *fileSystem) node(id uint64) (*node, error) {
	if id == fuse.FUSE_ROOT_ID {
		id = rootID
	}
	return s.get(id)
}

// in returns the node of a directory in which the request names something; the kernel finds out if it is none.
func (s *fileSystem) in(id uint64, name string) (*node, error) {
	if !validName(name) {
		if len(name) > unix.NAME_MAX {
			return nil, unix.ENAMETOOLONG
		}
		return nil, unix.EINVAL
	}
	return s.node(id)
}

// find looks a name up, counts it and fills in the reply.
func (s *fileSystem) find(dir *node, name string, out *fuse.EntryOut) error {
	if err := s.reserveFile(); err != nil {
		return err
	}
	fd, err := openPath(dir.fd, name)
	if err != nil {
		s.unreserve(-1)
		return err
	}
	f := &found{parent: dir, name: name, fd: fd}
	if err = statFD(fd, &f.st); err == nil && f.st.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = s.link(f)
	}
	if err != nil {
		s.unreserve(f.fd)
		return err
	}
	return s.show(f, out)
}

// show enters what was found and fills in the reply.
func (s *fileSystem) show(f *found, out *fuse.EntryOut) error {
	n, err := s.enter(f)
	if err != nil {
		return err
	}
	*out = fuse.EntryOut{NodeId: n.id}
	out.SetEntryTimeout(s.dir.o.Validity)
	out.SetAttrTimeout(s.dir.o.Validity)
	s.attr(&f.st, &out.Attr)
	return nil
}

// attr translates attributes.
func (s *fileSystem) attr(st *unix.Statx_t, a *fuse.Attr) {
	*a = fuse.Attr{
		Ino: st.Ino, Size: st.Size, Blocks: st.Blocks,
		Atime: uint64(st.Atime.Sec), Mtime: uint64(st.Mtime.Sec), Ctime: uint64(st.Ctime.Sec),
		Atimensec: st.Atime.Nsec, Mtimensec: st.Mtime.Nsec, Ctimensec: st.Ctime.Nsec,
		Mode: uint32(st.Mode), Nlink: st.Nlink,
		Rdev:    st.Rdev_major&0xfff<<8 | st.Rdev_minor&0xff | st.Rdev_minor&^0xff<<12, // new_encode_dev
		Blksize: st.Blksize,
	}
	if dev := unix.Mkdev(st.Dev_major, st.Dev_minor); dev != s.dir.key.dev {
		// All that is mounted inside is one device to the guest, where tar takes files of the same number for hard links.
		a.Ino ^= (dev*0x9e3779b97f4a7c15)>>48<<48 | 1<<47
	}
	a.Uid, a.Gid = st.Uid, st.Gid
	if s.dir.o.IDs == Squash {
		a.Mode &^= unix.S_ISUID | unix.S_ISGID
		a.Uid, a.Gid = Nobody, Nobody
		if st.Uid == s.dir.uid {
			a.Uid = s.dir.o.UID
		}
		if st.Gid == s.dir.gid {
			a.Gid = s.dir.o.GID
		}
	}
}

// Lookup implements fuse.RawFileSystem.
func (s *fileSystem) Lookup(_ cancel, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.in(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(dir)
	return status(s.find(dir, name, out))
}

// Forget implements fuse.RawFileSystem.
func (s *fileSystem) Forget(id, lookups uint64) { s.forget(id, lookups) }

// GetAttr implements fuse.RawFileSystem.
func (s *fileSystem) GetAttr(_ cancel, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := s.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	return status(s.getattr(n, out))
}

func (s *fileSystem) getattr(n *node, out *fuse.AttrOut) error {
	var st unix.Statx_t
	if err := statFD(n.fd, &st); err != nil {
		return err
	}
	out.SetTimeout(s.dir.o.Validity)
	s.attr(&st, &out.Attr)
	return nil
}

// SetAttr implements fuse.RawFileSystem. Owners come first, since changing them clears setuid and setgid; then the size, while the mode may still allow it.
func (s *fileSystem) SetAttr(_ cancel, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := s.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		err = s.chown(n, in)
	}
	if err == nil && in.Valid&fuse.FATTR_SIZE != 0 {
		err = s.truncate(n, in)
	}
	if err == nil && in.Valid&fuse.FATTR_MODE != 0 {
		err = s.chmod(n, in.Mode)
	}
	if err == nil && in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		err = utimes(n, in)
	}
	if err == nil {
		err = s.getattr(n, out)
	}
	return status(err)
}

func (s *fileSystem) chown(n *node, in *fuse.SetAttrIn) error {
	uid, gid := -1, -1
	if in.Valid&fuse.FATTR_UID != 0 {
		uid = int(in.Uid)
	}
	if in.Valid&fuse.FATTR_GID != 0 {
		gid = int(in.Gid)
	}
	if s.dir.o.IDs == Squash {
		if (uid != -1 && uid != int(s.dir.o.UID)) || (gid != -1 && gid != int(s.dir.o.GID)) {
			return unix.EPERM
		}
		return nil
	}
	return unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
}

func (s *fileSystem) truncate(n *node, in *fuse.SetAttrIn) error {
	if int64(in.Size) < 0 {
		return unix.EINVAL
	}
	if in.Valid&fuse.FATTR_FH != 0 {
		// A file that is open for writing can be truncated whatever its mode is now.
		if h, err := s.handle(in.Fh, false); err == nil {
			defer s.done(h)
			if h.node == n && h.writable {
				return retry(func() error { return unix.Ftruncate(h.fd, int64(in.Size)) })
			}
		}
	}
	if err := regular(n); err != nil {
		return err
	}
	if err := s.reserveFile(); err != nil {
		return err
	}
	fd, err := reopen(n.fd, unix.O_WRONLY)
	if err != nil {
		s.unreserve(-1)
		return err
	}
	defer s.unreserve(fd)
	return retry(func() error { return unix.Ftruncate(fd, int64(in.Size)) })
}

// regular fails unless n can be opened for reading and writing: by opening other files the host would do what the guest's kernel has to.
func regular(n *node) error {
	switch n.kind {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return unix.EISDIR
	case unix.S_IFLNK:
		return unix.ELOOP
	}
	return unix.ENXIO
}

func (s *fileSystem) chmod(n *node, mode uint32) error {
	if n.kind == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	mode &= 0o7777
	if s.dir.o.IDs == Squash {
		mode &^= unix.S_ISUID | unix.S_ISGID
		if n.kind == unix.S_IFDIR {
			// The guest does not see that files made here get the directory's group, and must not end it in passing.
			var st unix.Statx_t
			if err := statFD(n.fd, &st); err != nil {
				return err
			}
			mode |= uint32(st.Mode) & unix.S_ISGID
		}
	}
	return unix.Chmod(procPath(n.fd), mode)
}

func utimes(n *node, in *fuse.SetAttrIn) error {
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	for i, t := range []struct {
		set, now bool
		sec      uint64
		nsec     uint32
	}{
		{in.Valid&fuse.FATTR_ATIME != 0, in.Valid&fuse.FATTR_ATIME_NOW != 0, in.Atime, in.Atimensec},
		{in.Valid&fuse.FATTR_MTIME != 0, in.Valid&fuse.FATTR_MTIME_NOW != 0, in.Mtime, in.Mtimensec},
	} {
		switch {
		case !t.set:
		case t.now:
			ts[i].Nsec = unix.UTIME_NOW
		case t.nsec >= 1e9:
			return unix.EINVAL
		default:
			ts[i] = unix.Timespec{Sec: int64(t.sec), Nsec: int64(t.nsec)}
		}
	}
	return unix.UtimesNanoAt(n.fd, "", ts, unix.AT_EMPTY_PATH)
}

// Readlink implements fuse.RawFileSystem.
func (s *fileSystem) Readlink(_ cancel, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := s.node(h.NodeId)
	if err != nil {
		return nil, status(err)
	}
	defer s.put(n)
	if n.kind != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	target, err := readlink(n.fd)
	return []byte(target), status(err)
}

// StatFs implements fuse.RawFileSystem.
func (s *fileSystem) StatFs(_ cancel, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n, err := s.node(h.NodeId)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(n.fd, &st) }); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: uint32(st.Namelen), Frsize: uint32(st.Frsize),
	}
	return fuse.OK
}
