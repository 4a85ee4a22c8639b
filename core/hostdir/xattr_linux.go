package hostdir

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Extended attributes are those of users only: all others mean something to the host's kernel.
const userPrefix = "user."

const maxXattrName = 255 // XATTR_NAME_MAX

// xattrs returns the node of a request about an attribute. Linux keeps those of users at regular files and directories only.
func (s *fileSystem) xattrs(id uint64, name string) (*node, error) {
	switch {
	case !strings.HasPrefix(name, userPrefix):
		return nil, unix.ENOTSUP
	case len(name) == len(userPrefix):
		return nil, unix.EINVAL
	case len(name) > maxXattrName:
		return nil, unix.ERANGE
	}
	n, err := s.node(id)
	if err != nil {
		return nil, err
	}
	if n.kind != unix.S_IFREG && n.kind != unix.S_IFDIR {
		s.put(n)
		return nil, unix.EPERM
	}
	return n, nil
}

// GetXAttr implements fuse.RawFileSystem.
func (s *fileSystem) GetXAttr(_ cancel, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n, err := s.xattrs(h.NodeId, name)
	if err != nil {
		return 0, status(err)
	}
	defer s.put(n)
	size, err := unix.Getxattr(procPath(n.fd), name, dest)
	return uint32(max(size, 0)), status(err)
}

// ListXAttr implements fuse.RawFileSystem.
func (s *fileSystem) ListXAttr(_ cancel, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, err := s.node(h.NodeId)
	if err != nil {
		return 0, status(err)
	}
	defer s.put(n)
	if n.kind != unix.S_IFREG && n.kind != unix.S_IFDIR {
		return 0, fuse.OK
	}
	all := make([]byte, maxXattr) // XATTR_LIST_MAX
	size, err := unix.Listxattr(procPath(n.fd), all)
	if err != nil {
		return 0, status(err)
	}
	var names []byte
	for name := range bytes.SplitAfterSeq(all[:size], []byte{0}) {
		if bytes.HasPrefix(name, []byte(userPrefix)) {
			names = append(names, name...)
		}
	}
	if len(dest) > 0 && len(names) > len(dest) {
		return uint32(len(names)), fuse.ERANGE
	}
	copy(dest, names)
	return uint32(len(names)), fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (s *fileSystem) SetXAttr(_ cancel, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	n, err := s.xattrs(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	if in.Flags&^(unix.XATTR_CREATE|unix.XATTR_REPLACE) != 0 {
		return fuse.EINVAL
	}
	return status(unix.Setxattr(procPath(n.fd), name, data, int(in.Flags)))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (s *fileSystem) RemoveXAttr(_ cancel, h *fuse.InHeader, name string) fuse.Status {
	n, err := s.xattrs(h.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer s.put(n)
	return status(unix.Removexattr(procPath(n.fd), name))
}
