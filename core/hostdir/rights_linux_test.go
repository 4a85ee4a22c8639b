package hostdir

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestReadOnly(t *testing.T) {
	g := mount(t, Options{ReadOnly: true})
	g.host("f", "content")
	f := g.must("f").NodeId
	fh, errno := g.open(f, unix.O_RDONLY)
	require.Zero(t, errno)
	b, errno := g.read(fh, 0, 100)
	require.Zero(t, errno)
	require.Equal(t, "content", string(b))
	for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_TRUNC} {
		_, errno = g.open(f, flags)
		require.Equal(t, unix.EROFS, errno)
	}
	for s, errno := range map[string]unix.Errno{
		"write":     second(g.write(fh, 0, []byte("x"), 0)),
		"mkdir":     second(g.mkdir(guestRoot, "d", 0o755)),
		"mknod":     second(g.mknod(guestRoot, "n", unix.S_IFREG|0o644)),
		"symlink":   second(g.symlink(guestRoot, "l", "f")),
		"link":      second(g.link(f, guestRoot, "l")),
		"unlink":    g.unlink(guestRoot, "f"),
		"rmdir":     g.rmdir(guestRoot, "f"),
		"rename":    g.rename(guestRoot, "f", guestRoot, "g", 0),
		"create":    second(g.create(guestRoot, "new", unix.O_RDONLY, 0o644)),
		"truncate":  second(g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE})),
		"chmod":     second(g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE})),
		"chown":     second(g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_UID})),
		"utimes":    second(g.setattr(f, fuse.SetAttrInCommon{Valid: fuse.FATTR_MTIME})),
		"setxattr":  second(g.raw(g.frame(opSetxattr, f, make([]byte, 48), name("user.x")), 16)),
		"remxattr":  second(do(g, opRemovexattr, f, &fuse.InHeader{}, 0, name("user.x"))),
		"fallocate": second(do(g, opFallocate, f, &fuse.FallocateIn{Fh: fh, Length: 1}, 0)),
		"copy":      second(do(g, opCopyFileRange, f, &fuse.CopyFileRangeIn{FhIn: fh, FhOut: fh}, 8)),
		"tmpfile":   second(do(g, opTmpfile, guestRoot, &fuse.CreateIn{Flags: unix.O_RDWR}, 144, name("/"))),
	} {
		require.Equal(t, unix.EROFS, errno, s)
	}
	e, err := os.ReadDir(g.root)
	require.NoError(t, err)
	require.Len(t, e, 1)
	require.Equal(t, "content", g.content("f"))
}

func second[T any](_ T, errno unix.Errno) unix.Errno { return errno }

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestSquash(t *testing.T) {
	needRoot(t)
	g := mount(t, Options{UID: 1000, GID: 1001})
	g.caller = fuse.Owner{Uid: 5, Gid: 6}
	g.host("mine", "")
	g.host("theirs", "")
	require.NoError(t, os.Chown(filepath.Join(g.root, "theirs"), 77, 0))
	require.NoError(t, os.Chmod(filepath.Join(g.root, "mine"), 0o755|os.ModeSetuid|os.ModeSetgid))
	mine := g.must("mine")
	require.Equal(t, fuse.Owner{Uid: 1000, Gid: 1001}, mine.Owner)
	require.EqualValues(t, unix.S_IFREG|0o755, mine.Mode, "setuid is not shown")
	require.Equal(t, fuse.Owner{Uid: Nobody, Gid: 1001}, g.must("theirs").Owner)

	made := map[string]uint32{}
	c, errno := g.create(guestRoot, "file", unix.O_RDWR, 0o6755)
	require.Zero(t, errno)
	made["file"] = c.Mode
	d, errno := g.mkdir(guestRoot, "dir", 0o7755)
	require.Zero(t, errno)
	made["dir"] = d.Mode
	n, errno := g.mknod(guestRoot, "node", unix.S_IFREG|0o6755)
	require.Zero(t, errno)
	made["node"] = n.Mode
	a, errno := g.setattr(n.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o6711})
	require.Zero(t, errno)
	require.EqualValues(t, unix.S_IFREG|0o711, a.Mode)
	for s := range made {
		info, err := os.Stat(filepath.Join(g.root, s))
		require.NoError(t, err)
		require.Zero(t, info.Mode()&(os.ModeSetuid|os.ModeSetgid), s)
		require.Zero(t, info.Sys().(*syscall.Stat_t).Uid, "new files are the host process's")
	}
	set := func(valid, uid, gid uint32) unix.Errno {
		in := fuse.SetAttrInCommon{Valid: valid}
		in.Uid, in.Gid = uid, gid
		return second(g.setattr(c.NodeId, in))
	}
	require.Zero(t, set(fuse.FATTR_UID|fuse.FATTR_GID, 1000, 1001))
	require.Zero(t, set(fuse.FATTR_GID, 0, 1001))
	require.Equal(t, unix.EPERM, set(fuse.FATTR_UID, 0, 0))
	require.Equal(t, unix.EPERM, set(fuse.FATTR_UID|fuse.FATTR_GID, 1000, 0))

	// A host's setgid directory stays one.
	require.NoError(t, os.Chmod(filepath.Join(g.root, "dir"), 0o755|os.ModeSetgid))
	_, errno = g.setattr(d.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o700})
	require.Zero(t, errno)
	info, err := os.Stat(filepath.Join(g.root, "dir"))
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|os.ModeSetgid|0o700, info.Mode())
}

func TestIdentity(t *testing.T) {
	needRoot(t)
	g := mount(t, Options{IDs: Identity})
	g.caller = fuse.Owner{Uid: 1234, Gid: 5678}
	c, errno := g.create(guestRoot, "file", unix.O_RDWR, 0o4755)
	require.Zero(t, errno)
	require.Equal(t, g.caller, c.Owner)
	require.EqualValues(t, unix.S_IFREG|0o4755, c.Mode)
	d, errno := g.mkdir(guestRoot, "dir", 0o2775)
	require.Zero(t, errno)
	require.Equal(t, g.caller, d.Owner)
	require.EqualValues(t, unix.S_IFDIR|0o2775, d.Mode)
	l, errno := g.symlink(guestRoot, "link", "file")
	require.Zero(t, errno)
	require.Equal(t, g.caller, l.Owner)

	// In a setgid directory: its group, and directories are setgid too.
	g.caller = fuse.Owner{Uid: 9, Gid: 10}
	n, errno := g.mknod(d.NodeId, "fifo", unix.S_IFIFO|0o600)
	require.Zero(t, errno)
	require.Equal(t, fuse.Owner{Uid: 9, Gid: 5678}, n.Owner)
	sub, errno := g.mkdir(d.NodeId, "sub", 0o755)
	require.Zero(t, errno)
	require.Equal(t, fuse.Owner{Uid: 9, Gid: 5678}, sub.Owner)
	require.EqualValues(t, unix.S_IFDIR|0o2755, sub.Mode)

	in := fuse.SetAttrInCommon{Valid: fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_MODE, Mode: 0o6711}
	in.Uid, in.Gid = 1, 2
	a, errno := g.setattr(c.NodeId, in)
	require.Zero(t, errno)
	require.Equal(t, fuse.Owner{Uid: 1, Gid: 2}, a.Owner)
	require.EqualValues(t, unix.S_IFREG|0o6711, a.Mode, "the mode comes after the owner, who takes setuid away")
	in.Valid = fuse.FATTR_UID
	a, errno = g.setattr(l.NodeId, in)
	require.Zero(t, errno)
	require.EqualValues(t, 1, a.Uid)
	a, _ = g.getattr(c.NodeId)
	require.EqualValues(t, 2, a.Gid, "a link's owner is its own")
}

// TestUnprivileged runs as another user, to whom the host's permissions apply, when the tests are root's.
func TestUnprivileged(t *testing.T) {
	const variable = "HOSTDIR_TEST_UNPRIVILEGED"
	if root := os.Getenv(variable); root != "" {
		unprivileged(t, root)
		return
	}
	needRoot(t)
	base, err := os.MkdirTemp("", "hostdir")
	require.NoError(t, err)
	defer func() { require.NoError(t, os.RemoveAll(base)) }()
	require.NoError(t, os.Chmod(base, 0o755))
	root := filepath.Join(base, "root")
	require.NoError(t, os.Mkdir(root, 0o755))
	require.NoError(t, os.Chown(root, 65533, 65533))
	require.NoError(t, os.Mkdir(filepath.Join(root, "locked"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(root, "roots"), []byte("x"), 0o600))
	program := filepath.Join(base, "program") // the test's own lies where only root may go
	b, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(program, b, 0o755))
	cmd := exec.Command(program, "-test.run=^TestUnprivileged$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"="+root, "TMPDIR="+root)
	cmd.Dir = base
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "unprivileged ran")
}

func unprivileged(t *testing.T, root string) {
	g := mountAt(t, root, Options{})
	roots := g.must("roots")
	require.Equal(t, fuse.Owner{Uid: Nobody, Gid: Nobody}, roots.Owner)
	_, errno := g.open(roots.NodeId, unix.O_RDONLY)
	require.Equal(t, unix.EACCES, errno)
	_, errno = g.setattr(roots.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o777})
	require.Equal(t, unix.EPERM, errno)
	locked := g.must("locked").NodeId
	_, errno = g.opendir(locked)
	require.Equal(t, unix.EACCES, errno)
	_, errno = g.lookup(locked, "x")
	require.Equal(t, unix.EACCES, errno)

	c, errno := g.create(guestRoot, "mine", unix.O_RDWR, 0o400)
	require.Zero(t, errno)
	require.Equal(t, fuse.Owner{}, c.Owner)
	_, errno = g.write(c.Fh, 0, []byte("x"), 0)
	require.Zero(t, errno, "open for writing whatever the mode")
	_, errno = g.setattr(c.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE | fuse.FATTR_FH, Fh: c.Fh})
	require.Zero(t, errno)
	_, errno = g.setattr(c.NodeId, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE})
	require.Equal(t, unix.EACCES, errno)
	_, errno = g.link(c.NodeId, guestRoot, "hard")
	require.Zero(t, errno, "hard links need no capability")
	_, errno = g.symlink(guestRoot, "link", "/anywhere")
	require.Zero(t, errno)
	t.Log("unprivileged ran")
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "missing")
	var e *OpenError
	_, err := Open(missing, Options{})
	require.ErrorAs(t, err, &e)
	require.Equal(t, missing, e.Path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, missing)
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	_, err = Open(file, Options{})
	require.ErrorIs(t, err, ErrNotDirectory)
	require.ErrorContains(t, err, file)
	for _, o := range []Options{{Symlinks: 3}, {IDs: 2}, {MaxFiles: 3}, {MaxFiles: -1}, {MaxNodes: -1}} {
		_, err = Open(dir, o)
		require.ErrorIs(t, err, ErrOptions)
	}
	require.NoError(t, os.Symlink(dir, filepath.Join(dir, "link")))
	d, err := Open(filepath.Join(dir, "link"), Options{})
	require.NoError(t, err, "the path itself may lead through links")
	require.NoError(t, d.Close())
}

func TestPolicyNames(t *testing.T) {
	for _, p := range []Policy{Opaque, Deny, Follow} {
		got, err := ParsePolicy(p.String())
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
	p, err := ParsePolicy("")
	require.NoError(t, err)
	require.Equal(t, Opaque, p)
	_, err = ParsePolicy("sure")
	require.Error(t, err)
	require.Equal(t, "Policy(9)", Policy(9).String())
}
