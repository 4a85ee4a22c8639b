package hostdir

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLookupAndAttributes(t *testing.T) {
	g := mount(t, Options{})
	g.host("a/b/file", "content")
	e := g.must("a", "b", "file")
	require.EqualValues(t, 7, e.Size)
	require.EqualValues(t, unix.S_IFREG|0o644, e.Mode)
	require.Equal(t, time.Second, e.EntryTimeout())
	require.Equal(t, time.Second, e.AttrTimeout())
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(g.root, "a/b/file"), &st))
	require.Equal(t, st.Ino, e.Ino)
	require.EqualValues(t, st.Mtim.Sec, e.Mtime)
	require.EqualValues(t, st.Mtim.Nsec, e.Mtimensec)

	again := g.must("a", "b", "file")
	require.Equal(t, e.NodeId, again.NodeId)
	require.NoError(t, os.Link(filepath.Join(g.root, "a/b/file"), filepath.Join(g.root, "a/hard")))
	hard := g.must("a", "hard")
	require.Equal(t, e.NodeId, hard.NodeId, "hard links are one node")
	require.EqualValues(t, 2, hard.Nlink)

	_, errno := g.lookup(guestRoot, "missing")
	require.Equal(t, unix.ENOENT, errno)
	_, errno = g.lookup(e.NodeId, "x")
	require.Equal(t, unix.ENOTDIR, errno)

	g.host("a/b/file", "changed on the host")
	a, errno := g.getattr(e.NodeId)
	require.Zero(t, errno)
	require.EqualValues(t, 19, a.Size)
	root, errno := g.getattr(guestRoot)
	require.Zero(t, errno)
	require.EqualValues(t, unix.S_IFDIR|0o755, root.Mode)
}

func TestNames(t *testing.T) {
	g := mount(t, Options{})
	for _, s := range []string{"", ".", "..", "a/b", "/", "../x", "/etc"} {
		_, errno := g.lookup(guestRoot, s)
		require.Equal(t, unix.EINVAL, errno, s)
		_, errno = g.mkdir(guestRoot, s, 0o755)
		require.Equal(t, unix.EINVAL, errno, s)
		require.Equal(t, unix.EINVAL, g.unlink(guestRoot, s), s)
		require.Equal(t, unix.EINVAL, g.rename(guestRoot, "x", guestRoot, s, 0), s)
		_, errno = g.create(guestRoot, s, unix.O_RDWR, 0o644)
		require.Equal(t, unix.EINVAL, errno, s)
	}
	_, errno := g.lookup(guestRoot, strings.Repeat("x", 256))
	require.Equal(t, unix.ENAMETOOLONG, errno)
	long := strings.Repeat("x", 255)
	_, errno = g.mkdir(guestRoot, long, 0o755)
	require.Zero(t, errno)
	// A name that go-fuse would take for its own.
	g.host(".go-fuse-epoll-hack", "mine")
	require.EqualValues(t, 4, g.must(".go-fuse-epoll-hack").Size)
	_, errno = g.getattr(^uint64(0))
	require.Equal(t, unix.ESTALE, errno)
}

func TestZeroValidity(t *testing.T) {
	g := mount(t, Options{Validity: -1})
	g.host("f", "")
	e := g.must("f")
	require.Zero(t, e.EntryTimeout())
	require.Zero(t, e.AttrTimeout())
}

func TestReadWrite(t *testing.T) {
	for _, cut := range []int{1 << 21, 4096, 1000, 41} {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			g := mount(t, Options{})
			g.cut = cut
			c, errno := g.create(guestRoot, "f", unix.O_RDWR, 0o640)
			require.Zero(t, errno)
			require.EqualValues(t, unix.S_IFREG|0o640, c.Mode)
			data := bytes.Repeat([]byte("0123456789abcdefg"), 100000/17)
			n, errno := g.write(c.Fh, 0, data, 0)
			require.Zero(t, errno)
			require.Equal(t, len(data), n)
			require.Equal(t, string(data), g.content("f"))
			got, errno := g.read(c.Fh, 17, len(data))
			require.Zero(t, errno)
			require.True(t, bytes.Equal(data[17:], got), "short only at the end")
			got, errno = g.read(c.Fh, 1<<40, 100)
			require.Zero(t, errno)
			require.Empty(t, got)
			_, errno = g.read(c.Fh, 1<<63, 100)
			require.Equal(t, unix.EINVAL, errno)
			_, errno = g.write(c.Fh, 1<<63-2, []byte("xx"), 0)
			require.Equal(t, unix.EINVAL, errno)
			g.release(c.Fh)
			_, errno = g.read(c.Fh, 0, 1)
			require.Equal(t, unix.EBADF, errno)
			require.Equal(t, 1, g.files())
		})
	}
}

func TestLargestTransfer(t *testing.T) {
	g := mount(t, Options{})
	c, errno := g.create(guestRoot, "f", unix.O_RDWR, 0o644)
	require.Zero(t, errno)
	data := bytes.Repeat([]byte{7}, MaxTransfer)
	n, errno := g.write(c.Fh, 0, data, 0)
	require.Zero(t, errno)
	require.Equal(t, MaxTransfer, n)
	got, errno := g.read(c.Fh, 0, MaxTransfer)
	require.Zero(t, errno)
	require.True(t, bytes.Equal(data, got))
	_, errno = g.write(c.Fh, 0, append(data, 1), 0)
	require.Equal(t, unix.EINVAL, errno)
	g.cut = 512 // more pieces than one system call takes
	got, errno = g.read(c.Fh, 0, MaxTransfer)
	require.Zero(t, errno)
	require.True(t, bytes.Equal(data, got))
}

func TestOpenFlags(t *testing.T) {
	g := mount(t, Options{})
	g.host("f", "0123456789")
	f := g.must("f").NodeId
	r, errno := g.open(f, unix.O_RDONLY|unix.O_DIRECT|unix.O_NOATIME)
	require.Zero(t, errno)
	_, errno = g.write(r, 0, []byte("x"), 0)
	require.Equal(t, unix.EBADF, errno)
	w, errno := g.open(f, unix.O_WRONLY)
	require.Zero(t, errno)
	_, errno = g.read(w, 0, 1)
	require.Equal(t, unix.EBADF, errno)
	_, errno = g.open(f, unix.O_ACCMODE)
	require.Equal(t, unix.EINVAL, errno)
	_, errno = g.open(guestRoot, unix.O_RDONLY)
	require.Equal(t, unix.EISDIR, errno)

	// What is appended goes to the end, wherever the guest thinks that is; what is written back of a mapping does not.
	_, errno = g.write(w, 0, []byte("end"), unix.O_APPEND)
	require.Zero(t, errno)
	require.Equal(t, "0123456789end", g.content("f"))
	in := fuse.WriteIn{Fh: w, Offset: 1, Size: 1, Flags: unix.O_APPEND, WriteFlags: fuse.WRITE_CACHE}
	_, errno = do(g, opWrite, f, &in, 8, []byte("X"))
	require.Zero(t, errno)
	require.Equal(t, "0X23456789end", g.content("f"))
	_, errno = g.write(w, 2, []byte("S"), unix.O_SYNC)
	require.Zero(t, errno)

	_, errno = g.open(f, unix.O_WRONLY|unix.O_TRUNC)
	require.Zero(t, errno)
	require.Empty(t, g.content("f"))
}

func TestCreate(t *testing.T) {
	g := mount(t, Options{})
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	c, errno := g.create(guestRoot, "new", unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL, 0o664)
	require.Zero(t, errno)
	require.EqualValues(t, unix.S_IFREG|0o664, c.Mode, "the host's umask does not matter")
	d, errno := g.mkdir(guestRoot, "dir", 0o1777)
	require.Zero(t, errno)
	require.EqualValues(t, unix.S_IFDIR|0o1777, d.Mode)
	_, errno = g.create(guestRoot, "new", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o644)
	require.Equal(t, unix.EEXIST, errno)
	g.host("theirs", "content")
	c, errno = g.create(guestRoot, "theirs", unix.O_RDWR|unix.O_CREAT, 0o600)
	require.Zero(t, errno)
	require.EqualValues(t, 7, c.Size)
	got, errno := g.read(c.Fh, 0, 10)
	require.Zero(t, errno)
	require.Equal(t, "content", string(got))
	_, errno = g.create(guestRoot, "theirs", unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC, 0o600)
	require.Zero(t, errno)
	require.Empty(t, g.content("theirs"))
	_, errno = g.create(guestRoot, "dir", unix.O_RDWR|unix.O_CREAT, 0o600)
	require.Equal(t, unix.EISDIR, errno)
	require.NoError(t, unix.Mkfifo(filepath.Join(g.root, "fifo"), 0o644))
	_, errno = g.create(guestRoot, "fifo", unix.O_RDWR|unix.O_CREAT, 0o600)
	require.Equal(t, unix.ENXIO, errno)
}

func TestSetattr(t *testing.T) {
	g := mount(t, Options{})
	g.host("f", "0123456789")
	f := g.must("f").NodeId
	a, errno := g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE | fuse.FATTR_MODE, Size: 4, Mode: unix.S_IFREG | 0o400})
	require.Zero(t, errno)
	require.EqualValues(t, 4, a.Size)
	require.EqualValues(t, unix.S_IFREG|0o400, a.Mode)
	require.Equal(t, "0123", g.content("f"))
	fh, errno := g.open(f, unix.O_WRONLY)
	require.Zero(t, errno)
	a, errno = g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE | fuse.FATTR_FH, Size: 1, Fh: fh})
	require.Zero(t, errno)
	require.EqualValues(t, 1, a.Size)
	_, errno = g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE, Size: 1 << 63})
	require.Equal(t, unix.EINVAL, errno)
	_, errno = g.setattr(guestRoot, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE})
	require.Equal(t, unix.EISDIR, errno)

	a, errno = g.setattr(f, fuse.SetAttrInCommon{
		Valid: fuse.FATTR_ATIME | fuse.FATTR_MTIME, Atime: 1000, Atimensec: 5, Mtime: ^uint64(0), Mtimensec: 6,
	})
	require.Zero(t, errno)
	require.Equal(t, []uint64{1000, ^uint64(0)}, []uint64{a.Atime, a.Mtime}, "before 1970 too")
	require.Equal(t, []uint32{5, 6}, []uint32{a.Atimensec, a.Mtimensec})
	before := time.Now().Add(-time.Minute).Unix()
	a, errno = g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW})
	require.Zero(t, errno)
	require.Greater(t, int64(a.Mtime), before)
	require.EqualValues(t, 1000, a.Atime)
	_, errno = g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_MTIME, Mtimensec: 1e9})
	require.Equal(t, unix.EINVAL, errno)

	// Of a link itself, never of what it leads to.
	l, errno := g.symlink(guestRoot, "l", "f")
	require.Zero(t, errno)
	a, errno = g.setattr(l.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_MTIME, Mtime: 77})
	require.Zero(t, errno)
	require.EqualValues(t, 77, a.Mtime)
	a, _ = g.getattr(f)
	require.NotEqualValues(t, 77, a.Mtime)
	_, errno = g.setattr(l.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o777})
	require.Equal(t, unix.EOPNOTSUPP, errno)
	_, errno = g.setattr(l.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE})
	require.Equal(t, unix.ELOOP, errno)
}

func TestMknod(t *testing.T) {
	g := mount(t, Options{})
	for s, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "sock": unix.S_IFSOCK, "reg": unix.S_IFREG} {
		e, errno := g.mknod(guestRoot, s, mode|0o620)
		require.Zero(t, errno)
		require.Equal(t, mode|0o620, e.Mode)
		_, errno = g.open(e.NodeId, unix.O_RDWR)
		if s == "reg" {
			require.Zero(t, errno)
		} else {
			require.Equal(t, unix.ENXIO, errno, "special files are never opened on the host")
			_, errno = g.setattr(e.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE})
			require.Equal(t, unix.ENXIO, errno)
		}
	}
	for _, mode := range []uint32{unix.S_IFCHR, unix.S_IFBLK} {
		_, errno := g.mknod(guestRoot, "dev", mode|0o600)
		require.Equal(t, unix.EPERM, errno)
	}
	for _, mode := range []uint32{unix.S_IFDIR, unix.S_IFLNK, unix.S_IFMT} {
		_, errno := g.mknod(guestRoot, "other", mode|0o600)
		require.Equal(t, unix.EINVAL, errno)
	}
}

func TestRemove(t *testing.T) {
	g := mount(t, Options{})
	g.host("d/f", "content")
	d := g.must("d").NodeId
	f := g.must("d", "f").NodeId
	require.Equal(t, unix.ENOTEMPTY, g.rmdir(guestRoot, "d"))
	require.Equal(t, unix.EISDIR, g.unlink(guestRoot, "d"))
	require.Equal(t, unix.ENOTDIR, g.rmdir(d, "f"))
	fh, errno := g.open(f, unix.O_RDWR)
	require.Zero(t, errno)
	require.Zero(t, g.unlink(d, "f"))
	require.Equal(t, unix.ENOENT, g.unlink(d, "f"))
	require.Zero(t, g.rmdir(guestRoot, "d"))

	// What is open goes on.
	a, errno := g.getattr(f)
	require.Zero(t, errno)
	require.Zero(t, a.Nlink)
	got, errno := g.read(fh, 0, 100)
	require.Zero(t, errno)
	require.Equal(t, "content", string(got))
	_, errno = g.write(fh, 7, []byte("!"), 0)
	require.Zero(t, errno)
	a, errno = g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE, Size: 3})
	require.Zero(t, errno)
	require.EqualValues(t, 3, a.Size)
	_, errno = g.mkdir(d, "x", 0o755)
	require.Equal(t, unix.ENOENT, errno)
	g.release(fh)
	g.forget(f, 1)
	_, errno = g.getattr(f)
	require.Equal(t, unix.ESTALE, errno)
	g.forget(d, 2)
	require.Zero(t, g.files())
}

func TestRename(t *testing.T) {
	g := mount(t, Options{})
	g.host("a/f", "f")
	g.host("b/g", "g")
	a, b, f := g.must("a").NodeId, g.must("b").NodeId, g.must("a", "f").NodeId
	fh, errno := g.open(f, unix.O_RDWR)
	require.Zero(t, errno)
	require.Equal(t, unix.EEXIST, g.rename(a, "f", b, "g", unix.RENAME_NOREPLACE))
	require.Zero(t, g.rename(a, "f", b, "g", unix.RENAME_EXCHANGE))
	require.Equal(t, "g", g.content("a/f"))
	require.Equal(t, "f", g.content("b/g"))
	require.Equal(t, f, g.must("b", "g").NodeId)
	require.Equal(t, unix.EINVAL, g.rename(a, "f", b, "g", unix.RENAME_WHITEOUT))
	require.Zero(t, g.rename(b, "g", a, "new", unix.RENAME_NOREPLACE))
	// The old form of the request.
	_, errno = g.raw(g.frame(opRename, a, bytesOf(&fuse.RenameIn{Newdir: a})[:48], name("new"), name("f")), 16)
	require.Zero(t, errno)
	require.Equal(t, "f", g.content("a/f"))
	_, errno = g.write(fh, 0, []byte("F"), 0)
	require.Zero(t, errno)
	require.Equal(t, "F", g.content("a/f"))
	require.Zero(t, g.rename(guestRoot, "b", a, "b", 0))
	require.Equal(t, unix.EINVAL, g.rename(guestRoot, "a", b, "inside itself", 0))
	require.Equal(t, b, g.must("a", "b").NodeId)
	require.Equal(t, unix.ENOENT, g.rename(a, "none", a, "x", 0))
	require.Equal(t, unix.ESTALE, g.rename(a, "f", 12345, "x", 0))
}

func TestReaddir(t *testing.T) {
	g := mount(t, Options{})
	want := map[string]bool{".": true, "..": true}
	g.host("f", "")
	want["f"] = true
	for i := range 5000 {
		s := fmt.Sprintf("entry with a name of its own %d", i)
		want[s] = true
		require.NoError(t, os.Link(filepath.Join(g.root, "f"), filepath.Join(g.root, s)))
	}
	fh, errno := g.opendir(guestRoot)
	require.Zero(t, errno)
	var offsets []uint64
	var names []string
	got := map[string]bool{}
	for off := uint64(0); ; {
		e, errno := g.readdir(fh, off, 4096)
		require.Zero(t, errno)
		if len(e) == 0 {
			break
		}
		for _, d := range e {
			require.False(t, got[d.Name], d.Name)
			got[d.Name] = true
			offsets, names = append(offsets, off), append(names, d.Name)
			off = d.Off
		}
	}
	require.Equal(t, want, got)
	// Any offset that was given can be used again, in any order.
	for _, i := range []int{4000, 17, 4999, 0, 1, 2500} {
		e, errno := g.readdir(fh, offsets[i], 4096)
		require.Zero(t, errno)
		require.Equal(t, names[i], e[0].Name)
	}
	_, errno = g.readdir(fh, 1<<63, 4096)
	require.Equal(t, unix.EINVAL, errno)
	_, errno = g.readdir(fh, 0, 16)
	require.Equal(t, unix.EINVAL, errno, "no room for one")
	_, errno = g.read(fh, 0, 10)
	require.Equal(t, unix.EBADF, errno, "a directory is no file")
	_, errno = do(g, opFsyncdir, guestRoot, &fuse.FsyncIn{Fh: fh}, 0)
	require.Zero(t, errno)
	_, errno = do(g, opReleasedir, guestRoot, &fuse.ReleaseIn{Fh: fh}, 0)
	require.Zero(t, errno)
	_, errno = g.readdir(fh, 0, 4096)
	require.Equal(t, unix.EBADF, errno)
	f := g.must(names[100]).NodeId
	_, errno = g.opendir(f)
	require.Equal(t, unix.ENOTDIR, errno)
}

func TestReaddirRewind(t *testing.T) {
	g := mount(t, Options{})
	fh, _ := g.opendir(guestRoot)
	e, _ := g.readdir(fh, 0, 4096)
	require.Len(t, e, 2)
	require.Equal(t, e[0].Ino, e[1].Ino, "the root's parent stays the host's secret")
	g.host("new", "")
	e, errno := g.readdir(fh, 0, 4096)
	require.Zero(t, errno)
	require.Len(t, e, 3)
}

func TestReaddirplus(t *testing.T) {
	g := mount(t, Options{})
	for i := range 300 {
		g.host(fmt.Sprintf("f%d", i), strings.Repeat("x", i))
	}
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(g.root, "out")))
	fh, errno := g.opendir(guestRoot)
	require.Zero(t, errno)
	nodes := map[string]fuse.EntryOut{}
	for off := uint64(0); ; {
		e, out, errno := g.readdirplus(fh, off, 4096)
		require.Zero(t, errno)
		if len(e) == 0 {
			break
		}
		for i, d := range e {
			nodes[d.Name], off = out[i], d.Off
		}
	}
	require.Len(t, nodes, 303)
	for _, s := range []string{".", "..", "out"} {
		require.Zero(t, nodes[s].NodeId, s)
	}
	e := nodes["f123"]
	require.EqualValues(t, 123, e.Size)
	a, errno := g.getattr(e.NodeId)
	require.Zero(t, errno)
	require.Equal(t, e.Ino, a.Ino)
	// Exactly one lookup each, whatever fitted into the replies.
	for s, e := range nodes {
		if e.NodeId != 0 {
			g.forget(e.NodeId, 1)
			_, errno := g.getattr(e.NodeId)
			require.Equal(t, unix.ESTALE, errno, s)
		}
	}
	require.Equal(t, 1, g.files())
}

func TestXattr(t *testing.T) {
	g := mount(t, Options{})
	g.host("f", "")
	if err := unix.Setxattr(filepath.Join(g.root, "f"), "user.host", []byte("h"), 0); err != nil {
		t.Skip("no extended attributes here: ", err)
	}
	f := g.must("f").NodeId
	set := func(node uint64, s, v string, flags uint32) unix.Errno {
		in := fuse.SetXAttrIn{Size: uint32(len(v)), Flags: flags}
		_, errno := g.raw(g.frame(opSetxattr, node, bytesOf(&in)[:48], name(s), []byte(v)), 16)
		return errno
	}
	get := func(node uint64, s string, size int) ([]byte, unix.Errno) {
		return do(g, opGetxattr, node, &fuse.GetXAttrIn{Size: uint32(size)}, max(size, 8), name(s))
	}
	require.Zero(t, set(f, "user.a", "value", unix.XATTR_CREATE))
	require.Equal(t, unix.EEXIST, set(f, "user.a", "value", unix.XATTR_CREATE))
	require.Zero(t, set(f, "user.empty", "", 0))
	v, errno := get(f, "user.a", 100)
	require.Zero(t, errno)
	require.Equal(t, "value", string(v))
	v, errno = get(f, "user.a", 0)
	require.Zero(t, errno)
	require.Equal(t, []byte{5, 0, 0, 0, 0, 0, 0, 0}, v)
	_, errno = get(f, "user.a", 3)
	require.Equal(t, unix.ERANGE, errno)
	_, errno = get(f, "user.none", 3)
	require.Equal(t, unix.ENODATA, errno)

	// With CAP_SYS_ADMIN the host's kernel lists attributes of its own, too.
	_ = unix.Setxattr(filepath.Join(g.root, "f"), "trusted.secret", []byte("s"), 0)
	list, errno := do(g, opListxattr, f, &fuse.GetXAttrIn{Size: 1000}, 1000)
	require.Zero(t, errno)
	names := strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
	require.ElementsMatch(t, []string{"user.host", "user.a", "user.empty"}, names)
	n, errno := do(g, opListxattr, f, &fuse.GetXAttrIn{}, 8)
	require.Zero(t, errno)
	require.EqualValues(t, len(list), n[0])
	_, errno = do(g, opListxattr, f, &fuse.GetXAttrIn{Size: 5}, 1000)
	require.Equal(t, unix.ERANGE, errno)

	for _, s := range []string{"trusted.secret", "security.capability", "system.posix_acl_access", "nothing", ""} {
		require.Equal(t, unix.ENOTSUP, set(f, s, "x", 0), s)
		_, errno = get(f, s, 100)
		require.Equal(t, unix.ENOTSUP, errno, s)
		_, errno = do(g, opRemovexattr, f, &fuse.InHeader{}, 0, name(s))
		require.Equal(t, unix.ENOTSUP, errno, s)
	}
	require.Equal(t, unix.ERANGE, set(f, "user."+strings.Repeat("x", 300), "x", 0))
	l, _ := g.symlink(guestRoot, "l", "f")
	_, errno = get(l.NodeId, "user.a", 100)
	require.Equal(t, unix.EPERM, errno, "not of what a link leads to")
	_, errno = do(g, opRemovexattr, f, &fuse.InHeader{}, 0, name("user.a"))
	require.Zero(t, errno)
	_, errno = get(f, "user.a", 100)
	require.Equal(t, unix.ENODATA, errno)
}

func TestFileOperations(t *testing.T) {
	g := mount(t, Options{})
	c, errno := g.create(guestRoot, "f", unix.O_RDWR, 0o644)
	require.Zero(t, errno)
	_, errno = do(g, opFallocate, c.NodeId, &fuse.FallocateIn{Fh: c.Fh, Length: 1 << 20}, 0)
	require.Zero(t, errno)
	a, _ := g.getattr(c.NodeId)
	require.EqualValues(t, 1<<20, a.Size)
	_, errno = do(g, opFallocate, c.NodeId, &fuse.FallocateIn{Fh: c.Fh, Length: 4096, Mode: unix.FALLOC_FL_COLLAPSE_RANGE}, 0)
	require.Equal(t, unix.ENOTSUP, errno)
	_, errno = do(g, opFallocate, c.NodeId, &fuse.FallocateIn{Fh: c.Fh, Offset: 1 << 63}, 0)
	require.Equal(t, unix.EINVAL, errno)
	for _, flags := range []uint32{0, 1} {
		_, errno = do(g, opFsync, c.NodeId, &fuse.FsyncIn{Fh: c.Fh, FsyncFlags: flags}, 0)
		require.Zero(t, errno)
	}

	_, errno = g.setattr(c.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE})
	require.Zero(t, errno)
	_, errno = g.write(c.Fh, 1<<20, []byte("data"), 0)
	require.Zero(t, errno)
	var off fuse.LseekOut
	require.Zero(t, call(g, opLseek, c.NodeId, &fuse.LseekIn{Fh: c.Fh, Whence: unix.SEEK_DATA}, &off))
	require.LessOrEqual(t, off.Offset, uint64(1<<20))
	require.Zero(t, call(g, opLseek, c.NodeId, &fuse.LseekIn{Fh: c.Fh, Whence: unix.SEEK_HOLE, Offset: 1 << 20}, &off))
	require.EqualValues(t, 1<<20+4, off.Offset)
	require.Equal(t, unix.EINVAL, call(g, opLseek, c.NodeId, &fuse.LseekIn{Fh: c.Fh, Whence: unix.SEEK_SET}, &off))

	to, errno := g.create(guestRoot, "copy", unix.O_RDWR, 0o644)
	require.Zero(t, errno)
	var n fuse.WriteOut
	in := fuse.CopyFileRangeIn{FhIn: c.Fh, OffIn: 1 << 20, NodeIdOut: to.NodeId, FhOut: to.Fh, Len: 1 << 62}
	if errno = call(g, opCopyFileRange, c.NodeId, &in, &n); errno != unix.EXDEV && errno != unix.EOPNOTSUPP {
		require.Zero(t, errno)
		require.EqualValues(t, 4, n.Size)
		require.Equal(t, "data", g.content("copy"))
	}

	var st fuse.StatfsOut
	require.Zero(t, call(g, opStatfs, guestRoot, &fuse.InHeader{}, &st))
	require.NotZero(t, st.Blocks)
	for _, op := range []uint32{25, 34, 31, 32, 33, 36, 39, 50, 52, 1000, 4096, 1 << 31} {
		_, errno = do(g, op, c.NodeId, &fuse.InHeader{}, 100)
		require.Equal(t, unix.ENOSYS, errno, op)
	}
}

func TestTmpfile(t *testing.T) {
	g := mount(t, Options{})
	var c fuse.CreateOut
	errno := call(g, opTmpfile, guestRoot, &fuse.CreateIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o600}, &c, name("/"))
	if errno == unix.EOPNOTSUPP {
		t.Skip("no O_TMPFILE here")
	}
	require.Zero(t, errno)
	require.Zero(t, c.Nlink)
	_, errno = g.write(c.Fh, 0, []byte("content"), 0)
	require.Zero(t, errno)
	e, errno := g.link(c.NodeId, guestRoot, "named")
	require.Zero(t, errno)
	require.Equal(t, c.NodeId, e.NodeId)
	require.Equal(t, "content", g.content("named"))
}

func TestDestroyAndInit(t *testing.T) {
	g := mount(t, Options{})
	g.host("f", "")
	f := g.must("f").NodeId
	fh, _ := g.open(f, unix.O_RDONLY)
	_, errno := do(g, opDestroy, 0, &fuse.InHeader{}, 0)
	require.Zero(t, errno)
	require.Zero(t, g.files())
	g.init()
	_, errno = g.getattr(f)
	require.Equal(t, unix.ESTALE, errno)
	_, errno = g.read(fh, 0, 1)
	require.Equal(t, unix.EBADF, errno)
	require.NotEqual(t, f, g.must("f").NodeId)
}

func TestOldProtocol(t *testing.T) {
	g := mount(t, Options{})
	for _, in := range []fuse.InitIn{{Major: 6, Minor: 38}, {Major: 8}, {Major: 7, Minor: 8}} {
		require.Equal(t, unix.EPROTO, g.call(opInit, 0, &in, new(fuse.InitOut)))
	}
}

func TestClosed(t *testing.T) {
	root := t.TempDir()
	d, err := Open(root, Options{})
	require.NoError(t, err)
	g := &guest{t: t, dir: d, s: d.NewSession(), root: root, cut: 4096}
	require.NoError(t, d.Close())
	require.NoError(t, d.Close())
	g.init()
	g.s.Close()
	g.s.Close()
	_, errno := g.getattr(guestRoot)
	require.Equal(t, unix.ENODEV, errno)
	g.s = d.NewSession()
	_, errno = g.getattr(guestRoot)
	require.Equal(t, unix.ENODEV, errno)
	g.s.Close()
}
