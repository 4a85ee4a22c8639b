package hostdir

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// made finishes what the guest made under a name: looks it up, gives it owner and mode, and fills in the reply. mode is what the guest wants, of which the
// host's umask may have taken something; 0 for links.
func (s *fileSystem) made(dir *node, name string, mode uint32, owner fuse.Owner, out *fuse.EntryOut) error {
	if err := s.reserveFile(); err != nil {
		return err
	}
	fd, err := openPath(dir.fd, name)
	if err != nil {
		s.unreserve(-1)
		return err
	}
	f := &found{parent: dir, name: name, fd: fd}
	if err := s.settle(f, mode, owner); err != nil {
		s.unreserve(fd)
		return err
	}
	return s.show(f, out)
}

// settle gives what was just made its owner and mode, and reads its attributes.
func (s *fileSystem) settle(f *found, mode uint32, owner fuse.Owner) error {
	if err := statFD(f.fd, &f.st); err != nil {
		return err
	}
	want := mode & 0o7777
	if s.dir.o.IDs == Identity {
		// A host program may have put something of its own there. Owners are given away only of what looks new.
		if f.st.Uid != s.dir.uid || uint32(f.st.Mode)&unix.S_IFMT != mode&unix.S_IFMT {
			return unix.EEXIST
		}
		var st unix.Statx_t
		if err := statFD(f.parent.fd, &st); err != nil {
			return err
		}
		gid := int(owner.Gid)
		if st.Mode&unix.S_ISGID != 0 {
			gid = -1 // already the directory's
			if mode&unix.S_IFMT == unix.S_IFDIR {
				want |= unix.S_ISGID
			}
		}
		if err := unix.Fchownat(f.fd, "", int(owner.Uid), gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	} else {
		want = want&^(unix.S_ISUID|unix.S_ISGID) | uint32(f.st.Mode)&unix.S_ISGID
	}
	if mode&unix.S_IFMT != unix.S_IFLNK && uint32(f.st.Mode)&unix.S_IFMT == mode&unix.S_IFMT && uint32(f.st.Mode)&0o7777 != want {
		if err := unix.Chmod(procPath(f.fd), want); err != nil {
			return err
		}
	}
	return statFD(f.fd, &f.st)
}

// Mkdir implements fuse.RawFileSystem.
func (s *fileSystem) Mkdir(_ cancel, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.in(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(dir)
	if err := unix.Mkdirat(dir.fd, name, in.Mode&0o777); err != nil {
		return status(err)
	}
	return status(s.made(dir, name, unix.S_IFDIR|in.Mode&0o7777, in.Owner, out))
}

// Mknod implements fuse.RawFileSystem: regular files, FIFOs and sockets, never devices.
func (s *fileSystem) Mknod(_ cancel, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind := in.Mode & unix.S_IFMT
	switch kind {
	case 0:
		kind = unix.S_IFREG
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	case unix.S_IFCHR, unix.S_IFBLK:
		return fuse.EPERM
	default:
		return fuse.EINVAL
	}
	dir, err := s.in(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(dir)
	if err := unix.Mknodat(dir.fd, name, kind|in.Mode&0o777, 0); err != nil {
		return status(err)
	}
	return status(s.made(dir, name, kind|in.Mode&0o7777, in.Owner, out))
}

// Symlink implements fuse.RawFileSystem.
func (s *fileSystem) Symlink(_ cancel, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if s.dir.o.Symlinks == Deny {
		return fuse.EPERM
	}
	dir, err := s.in(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(dir)
	if s.dir.o.Symlinks == Follow {
		s.links.Lock()
		defer s.links.Unlock()
		if !s.staysInside(dir, target) {
			return fuse.EPERM
		}
	}
	if err := unix.Symlinkat(target, dir.fd, name); err != nil {
		return status(err)
	}
	if s.dir.o.Symlinks == Opaque {
		var st unix.Statx_t
		if statAt(dir.fd, name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			s.dir.remember(keyOf(&st))
		}
	}
	return status(s.made(dir, name, unix.S_IFLNK, h.Owner, out))
}

// Link implements fuse.RawFileSystem.
func (s *fileSystem) Link(_ cancel, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if s.dir.o.Symlinks == Deny {
		return fuse.EPERM
	}
	dir, err := s.in(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(dir)
	n, err := s.node(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	if n.kind == unix.S_IFDIR {
		return fuse.EPERM
	}
	if s.dir.o.Symlinks == Follow {
		s.links.Lock()
		defer s.links.Unlock()
		if err := s.mayPlace(n.fd, nil, dir); err != nil {
			return status(err)
		}
	}
	// The path names the inode itself, so that what is followed is not a link that n may be.
	if err := unix.Linkat(unix.AT_FDCWD, procPath(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return status(err)
	}
	return status(s.find(dir, name, out))
}

// Unlink implements fuse.RawFileSystem.
func (s *fileSystem) Unlink(_ cancel, h *fuse.InHeader, name string) fuse.Status {
	return s.remove(h, name, 0)
}

// Rmdir implements fuse.RawFileSystem.
func (s *fileSystem) Rmdir(_ cancel, h *fuse.InHeader, name string) fuse.Status {
	return s.remove(h, name, unix.AT_REMOVEDIR)
}

func (s *fileSystem) remove(h *fuse.InHeader, name string, flags int) fuse.Status {
	dir, err := s.in(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(dir)
	n := s.known(dir, name)
	defer s.release(n)
	if err := unix.Unlinkat(dir.fd, name, flags); err != nil {
		return status(err)
	}
	s.removed(n, dir, name)
	return fuse.OK
}

// Rename implements fuse.RawFileSystem, for RENAME2 too.
func (s *fileSystem) Rename(_ cancel, in *fuse.RenameIn, name, newName string) fuse.Status {
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	from, err := s.in(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(from)
	to, err := s.in(in.Newdir, newName)
	if err != nil {
		return status(err)
	}
	defer s.put(to)
	if s.dir.o.Symlinks == Follow {
		s.links.Lock()
		defer s.links.Unlock()
		err := s.mayMove(from, name, to)
		if err == nil && in.Flags&unix.RENAME_EXCHANGE != 0 {
			err = s.mayMove(to, newName, from)
		}
		if err != nil {
			return status(err)
		}
	}
	moving, other := s.known(from, name), s.known(to, newName)
	defer s.release(moving)
	defer s.release(other)
	if err := unix.Renameat2(from.fd, name, to.fd, newName, uint(in.Flags)); err != nil {
		return status(err)
	}
	switch {
	case moving == other && other != nil: // two names of one file: nothing happens
	case in.Flags&unix.RENAME_EXCHANGE != 0:
		s.moved(other, from, name)
		s.moved(moving, to, newName)
	default:
		s.removed(other, to, newName)
		s.moved(moving, to, newName)
	}
	return fuse.OK
}
