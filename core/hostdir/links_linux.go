package hostdir

import (
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// openFollow opens what a link leads to, wherever that is (Follow).
func openFollow(dir int, name string) (int, error) {
	return openHow(dir, name, unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_NO_MAGICLINKS})
}

// link decides about a symbolic link that was looked up, whose descriptor is in f: whether the guest is shown the link (nil), nothing (an error), or
// what it leads to, which then is in f. Only the guest's view depends on it: the host follows no link afterwards, so it does no harm when
// another link takes its place meanwhile.
func (s *fileSystem) link(f *found) error {
	if s.dir.o.Symlinks == Follow {
		if _, inside := s.path(f.parent); !inside {
			// The guest does not know the place as it is on the host, so it could not follow.
			return s.follow(f)
		}
	}
	if s.dir.o.Symlinks == Opaque && s.dir.guestMade(keyOf(&f.st)) {
		return nil
	}
	leaves, err := s.leaves(f)
	switch {
	case err != nil:
		return err
	case !leaves:
		return nil
	case s.dir.o.Symlinks == Follow:
		return s.follow(f)
	}
	return unix.EACCES
}

// follow replaces a link by what it leads to; one that leads nowhere stays.
func (s *fileSystem) follow(f *found) error {
	fd, err := openFollow(f.parent.fd, f.name)
	if err == unix.ENOENT || err == unix.ELOOP || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return err
	}
	_ = unix.Close(f.fd)
	f.fd, f.followed = fd, true
	return statFD(fd, &f.st)
}

// leaves reports whether a link leads out of the directory. What an absolute target leads to is inside if it begins with the directory's own path; a
// relative one that passes through an absolute one counts as leading out.
func (s *fileSystem) leaves(f *found) (bool, error) {
	target, err := readlink(f.fd)
	if err != nil {
		return false, err
	}
	if !filepath.IsAbs(target) {
		leaves, err := resolves(f.parent.fd, f.name)
		if err != nil || !leaves {
			return leaves, err
		}
		// It leads out of its own directory at least.
		at, ok := s.path(f.parent)
		if !ok {
			return true, nil
		}
		return resolves(s.root.fd, filepath.Join(at, f.name))
	}
	root, err := unixReadlink(procPath(s.root.fd))
	if err != nil {
		return false, err
	}
	rest, ok := beneath(root, filepath.Clean(target))
	if !ok {
		return true, nil
	}
	return resolves(s.root.fd, rest)
}

// resolves reports whether a path leads out of dir. A path that ends inside, as it leads nowhere or in a circle, does not.
func resolves(dir int, path string) (bool, error) {
	fd, err := openHow(dir, path, unix.OpenHow{Flags: unix.O_PATH, Resolve: resolveInside})
	switch err {
	case nil:
		_ = unix.Close(fd)
		return false, nil
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return false, nil
	case unix.EXDEV:
		return true, nil
	}
	return false, err
}

// path returns where a directory is now, relative to the root ("." for the root itself), if it is inside.
func (s *fileSystem) path(dir *node) (string, bool) {
	root, err := unixReadlink(procPath(s.root.fd))
	if err != nil {
		return "", false
	}
	at, err := unixReadlink(procPath(dir.fd))
	if err != nil {
		return "", false
	}
	return beneath(root, at)
}

// beneath returns path relative to root, both absolute and clean, if it is root or lies in it.
func beneath(root, path string) (string, bool) {
	if path == root {
		return ".", true
	}
	if root != "/" {
		root += "/"
	}
	return strings.CutPrefix(path, root)
}

// staysInside reports whether a link with this target, made or moved by the guest into dir, can lead only to places inside or where the host's own links
// lead (Follow). Its target must be steps up, not beyond the root, and then steps down: after a step through another link, ".." would be somewhere else.
func (s *fileSystem) staysInside(dir *node, target string) bool {
	at, ok := s.path(dir)
	if !ok || filepath.IsAbs(target) {
		return false
	}
	depth := 0
	if at != "." {
		depth = 1 + strings.Count(at, "/")
	}
	down := false
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == "" || part == ".":
		case part != "..":
			down = true
		case down || depth == 0:
			return false
		default:
			depth--
		}
	}
	return true
}

// mayMove decides whether what a name in a directory refers to may get a name in another one (Follow). It is called with s.links held.
func (s *fileSystem) mayMove(from *node, name string, to *node) error {
	fd, err := openPath(from.fd, name)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return s.mayPlace(fd, from, to)
}

func (s *fileSystem) mayPlace(fd int, from, to *node) error {
	var st unix.Statx_t
	if err := statFD(fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		// There may be links inside, which mean something else there.
		if from != to {
			return unix.EXDEV
		}
	case unix.S_IFLNK:
		target, err := readlink(fd)
		if err != nil {
			return err
		}
		if from != to && !s.staysInside(to, target) {
			return unix.EPERM
		}
	}
	return nil
}

// readlink returns the target of the link that an O_PATH descriptor refers to.
func readlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func unixReadlink(path string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink(path, buf)
	if err != nil {
		return "", err
	}
	if n == len(buf) {
		return "", unix.ENAMETOOLONG
	}
	return string(buf[:n]), nil
}
