package hostdir

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// hostFlags returns what of a guest's flags an open on the host gets. O_APPEND and O_SYNC come with every WRITE; O_DIRECT has conditions that the
// guest's buffers do not meet, and O_NOATIME depends on who owns the file.
func (s *fileSystem) hostFlags(flags uint32) (host int, writable bool, err error) {
	host = int(flags) & (unix.O_ACCMODE | unix.O_TRUNC)
	access := host & unix.O_ACCMODE
	if access == unix.O_ACCMODE {
		return 0, false, unix.EINVAL
	}
	if s.dir.o.ReadOnly && host != unix.O_RDONLY {
		return 0, false, unix.EROFS
	}
	return host, access != unix.O_RDONLY, nil
}

// openNode opens n, which the caller holds, and returns the handle.
func (s *fileSystem) openNode(n *node, flags int, writable bool) (uint64, error) {
	if err := s.reserveFile(); err != nil {
		return 0, err
	}
	fd, err := reopen(n.fd, flags)
	if err != nil {
		s.unreserve(-1)
		return 0, err
	}
	h := &handle{fd: fd, node: n, writable: writable}
	if n.kind == unix.S_IFDIR {
		h.dir = new(dirStream)
	}
	s.keep(n)
	return s.addHandle(h), nil
}

// keep is another hold on a node that the caller holds.
func (t *table) keep(n *node) {
	t.mu.Lock()
	t.hold(n)
	t.mu.Unlock()
}

// Open implements fuse.RawFileSystem.
func (s *fileSystem) Open(_ cancel, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	flags, writable, err := s.hostFlags(in.Flags)
	if err != nil {
		return status(err)
	}
	n, err := s.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	if err = regular(n); err == nil {
		out.Fh, err = s.openNode(n, flags, writable)
	}
	return status(err)
}

// OpenDir implements fuse.RawFileSystem.
func (s *fileSystem) OpenDir(_ cancel, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := s.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	if n.kind != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	out.Fh, err = s.openNode(n, unix.O_RDONLY|unix.O_DIRECTORY, false)
	return status(err)
}

// Create implements fuse.RawFileSystem. A file that a host program made first is opened, unless the guest wants a new one.
func (s *fileSystem) Create(_ cancel, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	flags, writable, err := s.hostFlags(in.Flags)
	if err != nil {
		return status(err)
	}
	dir, err := s.in(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(dir)
	how := unix.OpenHow{
		Flags: uint64(flags) | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
		Mode:  uint64(in.Mode & 0o777), Resolve: resolveName,
	}
	err = s.create(dir, name, how, in, writable, out)
	if err != unix.EEXIST || in.Flags&unix.O_EXCL != 0 {
		return status(err)
	}
	if err := s.find(dir, name, &out.EntryOut); err != nil {
		return status(err)
	}
	n, err := s.node(out.NodeId)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	if err = regular(n); err == nil {
		out.Fh, err = s.openNode(n, flags, writable)
	}
	if err != nil {
		s.forget(n.id, 1) // the guest gets an error, and so does not count the lookup
	}
	return status(err)
}

// Tmpfile implements fuse.RawFileSystem.
func (s *fileSystem) Tmpfile(_ cancel, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	flags, writable, err := s.hostFlags(in.Flags)
	if err != nil {
		return status(err)
	}
	if !writable {
		return fuse.EINVAL
	}
	dir, err := s.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer s.put(dir)
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_TMPFILE | uint64(in.Flags)&unix.O_EXCL, Mode: uint64(in.Mode & 0o777), Resolve: resolveName}
	return status(s.create(dir, ".", how, in, writable, out))
}

// create makes and opens a file; name is "." for one without a name.
func (s *fileSystem) create(dir *node, name string, how unix.OpenHow, in *fuse.CreateIn, writable bool, out *fuse.CreateOut) error {
	if err := s.reserveFile(); err != nil {
		return err
	}
	if err := s.reserveFile(); err != nil {
		s.unreserve(-1)
		return err
	}
	fd, err := openHow(dir.fd, name, how)
	if err != nil {
		s.unreserve(-1)
		s.unreserve(-1)
		return err
	}
	path, err := reopen(fd, unix.O_PATH)
	if err != nil {
		s.unreserve(-1)
		s.unreserve(fd)
		return err
	}
	f := &found{parent: dir, name: name, fd: path, nameless: name == "."}
	if err := s.settle(f, unix.S_IFREG|in.Mode&0o7777, in.Owner); err != nil {
		s.unreserve(path)
		s.unreserve(fd)
		return err
	}
	if err := s.show(f, &out.EntryOut); err != nil {
		s.unreserve(fd)
		return err
	}
	n, err := s.node(out.NodeId)
	if err != nil {
		s.unreserve(fd)
		return err
	}
	out.Fh = s.addHandle(&handle{fd: fd, node: n, writable: writable}) // with the hold
	return nil
}

// Release implements fuse.RawFileSystem.
func (s *fileSystem) Release(_ cancel, in *fuse.ReleaseIn) { s.releaseHandle(in.Fh, false) }

// ReleaseDir implements fuse.RawFileSystem.
func (s *fileSystem) ReleaseDir(in *fuse.ReleaseIn) { s.releaseHandle(in.Fh, true) }

const fsyncDataOnly = 1 // FUSE_FSYNC_FDATASYNC

// Fsync implements fuse.RawFileSystem.
func (s *fileSystem) Fsync(_ cancel, in *fuse.FsyncIn) fuse.Status { return s.sync(in, false) }

// FsyncDir implements fuse.RawFileSystem.
func (s *fileSystem) FsyncDir(_ cancel, in *fuse.FsyncIn) fuse.Status { return s.sync(in, true) }

func (s *fileSystem) sync(in *fuse.FsyncIn, dir bool) fuse.Status {
	h, err := s.handle(in.Fh, dir)
	if err != nil {
		return status(err)
	}
	defer s.done(h)
	if in.FsyncFlags&fsyncDataOnly != 0 {
		return status(retry(func() error { return unix.Fdatasync(h.fd) }))
	}
	return status(retry(func() error { return unix.Fsync(h.fd) }))
}

// Fallocate implements fuse.RawFileSystem.
func (s *fileSystem) Fallocate(_ cancel, in *fuse.FallocateIn) fuse.Status {
	const modes = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	if in.Mode&^modes != 0 {
		return fuse.ENOTSUP
	}
	if int64(in.Offset) < 0 || int64(in.Length) < 0 {
		return fuse.EINVAL
	}
	h, err := s.handle(in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer s.done(h)
	return status(retry(func() error { return unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length)) }))
}

// Lseek implements fuse.RawFileSystem, for SEEK_DATA and SEEK_HOLE. It moves the file's own position, which nothing uses.
func (s *fileSystem) Lseek(_ cancel, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if (in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE) || int64(in.Offset) < 0 {
		return fuse.EINVAL
	}
	h, err := s.handle(in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer s.done(h)
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}

// maxCopy is the most that one COPY_FILE_RANGE does, so that it takes bounded time; the guest goes on with the next.
const maxCopy = 64 << 20

// CopyFileRange implements fuse.RawFileSystem.
func (s *fileSystem) CopyFileRange(_ cancel, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if in.Flags != 0 || int64(in.OffIn) < 0 || int64(in.OffOut) < 0 {
		return 0, fuse.EINVAL
	}
	from, err := s.handle(in.FhIn, false)
	if err != nil {
		return 0, status(err)
	}
	defer s.done(from)
	to, err := s.handle(in.FhOut, false)
	if err != nil {
		return 0, status(err)
	}
	defer s.done(to)
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	n, err := unix.CopyFileRange(from.fd, &offIn, to.fd, &offOut, int(min(in.Len, maxCopy)), 0)
	return uint32(max(n, 0)), status(err)
}
