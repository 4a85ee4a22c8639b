package hostdir

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestEviction: with few descriptors, everything can still be reached, at its current name.
func TestEviction(t *testing.T) {
	g := mount(t, Options{MaxFiles: MinFiles})
	nodes := map[string]uint64{}
	for i := range 10 {
		for j := range 20 {
			s := fmt.Sprintf("d%d/e/f%d", i, j)
			g.host(s, s)
			nodes[s] = g.must(fmt.Sprintf("d%d", i), "e", fmt.Sprintf("f%d", j)).NodeId
		}
	}
	require.LessOrEqual(t, g.files(), MinFiles)
	for s, node := range nodes {
		fh, errno := g.open(node, unix.O_RDONLY)
		require.Zero(t, errno)
		b, errno := g.read(fh, 0, 100)
		require.Zero(t, errno)
		require.Equal(t, s, string(b))
		g.release(fh)
	}
	// The guest's own renames are known, of directories above too.
	d3, d4 := g.must("d3").NodeId, g.must("d4").NodeId
	require.Zero(t, g.rename(guestRoot, "d3", d4, "moved", 0))
	require.Zero(t, g.rename(g.must("d4", "moved", "e").NodeId, "f7", d4, "f7", 0))
	require.Zero(t, g.rename(guestRoot, "d5", guestRoot, "d6", unix.RENAME_EXCHANGE))
	for s, node := range nodes {
		a, errno := g.getattr(node)
		require.Zero(t, errno, s)
		require.EqualValues(t, len(s), a.Size)
	}
	_, errno := g.getattr(d3)
	require.Zero(t, errno)

	// A host's are not, and another file in its place is not taken for it.
	require.NoError(t, os.Rename(filepath.Join(g.root, "d1/e/f1"), filepath.Join(g.root, "d1/e/away")))
	g.host("d1/e/f1", "another")
	for s, node := range nodes {
		_, errno := g.getattr(node)
		if s == "d1/e/f1" {
			require.Equal(t, unix.ESTALE, errno)
		} else {
			require.Zero(t, errno, s)
		}
	}
	// It is found again.
	require.Equal(t, nodes["d1/e/f1"], g.must("d1", "e", "away").NodeId)
	for s, node := range nodes {
		_, errno := g.getattr(node)
		require.Zero(t, errno, s)
	}
	for _, node := range nodes {
		g.forget(node, 1<<40)
	}
	require.LessOrEqual(t, g.files(), MinFiles)
}

// TestEvictedDirectoryBecomesLink: what is opened again is not opened through a link.
func TestEvictedDirectoryBecomesLink(t *testing.T) {
	g := mount(t, Options{MaxFiles: MinFiles})
	outside := filepath.Join(filepath.Dir(g.root), "outside")
	require.NoError(t, os.MkdirAll(filepath.Join(outside, "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(outside, "sub", "f"), []byte("secret"), 0o644))
	g.host("dir/sub/f", "inside")
	sub := g.must("dir", "sub").NodeId
	f := g.must("dir", "sub", "f").NodeId
	for i := range 2 * MinFiles {
		g.host(fmt.Sprintf("other%d", i), "")
		g.must(fmt.Sprintf("other%d", i))
	}
	require.NoError(t, os.Rename(filepath.Join(g.root, "dir"), filepath.Join(g.root, "away")))
	require.NoError(t, os.Symlink(outside, filepath.Join(g.root, "dir")))
	_, errno := g.getattr(f)
	require.Equal(t, unix.ESTALE, errno)
	_, errno = g.lookup(sub, "f")
	require.Equal(t, unix.ESTALE, errno)
	_, errno = g.create(sub, "new", unix.O_RDWR, 0o644)
	require.Equal(t, unix.ESTALE, errno)
}

// TestNumberReused: a new inode with the number of one that is gone is not taken for it.
func TestNumberReused(t *testing.T) {
	g := mount(t, Options{MaxFiles: MinFiles})
	path := filepath.Join(g.root, "f")
	for range 200 {
		g.host("f", "old")
		old := g.must("f")
		for i := range 2 * MinFiles { // so that nothing keeps the inode
			g.host(fmt.Sprintf("other%d", i), "")
			g.must(fmt.Sprintf("other%d", i))
		}
		require.NoError(t, os.Remove(path))
		g.host("f", "new")
		var st unix.Statx_t
		require.NoError(t, statAt(unix.AT_FDCWD, path, &st))
		if st.Mask&unix.STATX_BTIME == 0 {
			t.Skip("no time of birth here")
		}
		if st.Ino == old.Ino {
			_, errno := g.getattr(old.NodeId)
			require.Equal(t, unix.ESTALE, errno)
			require.NotEqual(t, old.NodeId, g.must("f").NodeId)
			return
		}
		require.NoError(t, os.Remove(path))
	}
	t.Skip("inode numbers are not used again here")
}

func TestDescriptorLimit(t *testing.T) {
	g := mount(t, Options{MaxFiles: MinFiles})
	g.host("f", "content")
	f := g.must("f").NodeId
	var open []uint64
	for {
		fh, errno := g.open(f, unix.O_RDONLY)
		if errno != 0 {
			require.Equal(t, unix.ENFILE, errno)
			break
		}
		open = append(open, fh)
		require.LessOrEqual(t, len(open), MinFiles)
	}
	require.Len(t, open, MinFiles-1)
	_, errno := g.opendir(guestRoot)
	require.Equal(t, unix.ENFILE, errno)
	_, errno = g.mkdir(guestRoot, "d", 0o755)
	require.Equal(t, unix.ENFILE, errno)
	_, errno = g.create(guestRoot, "new", unix.O_RDWR, 0o644)
	require.Equal(t, unix.ENFILE, errno)
	b, errno := g.read(open[0], 0, 100)
	require.Zero(t, errno)
	require.Equal(t, "content", string(b))
	for _, fh := range open {
		g.release(fh)
	}
	// Removed files that the guest refers to cannot be opened again, and so are not closed.
	var removed []uint64
	for i := 0; ; i++ {
		c, errno := g.mknod(guestRoot, "gone", unix.S_IFREG|0o644)
		if errno != 0 {
			require.Equal(t, unix.ENFILE, errno)
			break
		}
		require.Zero(t, g.unlink(guestRoot, "gone"))
		removed = append(removed, c.NodeId)
		require.LessOrEqual(t, i, MinFiles)
	}
	for _, node := range removed {
		_, errno := g.getattr(node)
		require.Zero(t, errno)
		g.forget(node, 1)
	}
	g.must("f")
	require.Equal(t, 1, g.files())
}

func TestNodeLimit(t *testing.T) {
	g := mount(t, Options{MaxNodes: 10})
	var first uint64
	for i := range 9 {
		e, errno := g.mkdir(guestRoot, fmt.Sprint(i), 0o755)
		require.Zero(t, errno)
		first = e.NodeId
	}
	g.host("more", "")
	_, errno := g.lookup(guestRoot, "more")
	require.Equal(t, unix.ENFILE, errno)
	require.Equal(t, 9, g.files())
	g.forget(first, 1)
	g.must("more")
}

func TestForget(t *testing.T) {
	g := mount(t, Options{})
	g.host("d/f", "")
	f := g.must("d", "f").NodeId
	g.must("d", "f")
	g.must("d", "f")
	g.forget(f, 2)
	_, errno := g.getattr(f)
	require.Zero(t, errno)
	g.forget(guestRoot, 1<<60)
	g.forget(12345, 1)
	g.forget(f, 1<<63) // more than there are
	_, errno = g.getattr(f)
	require.Equal(t, unix.ESTALE, errno)
	g.forget(f, 1)

	// A handle outlives its node.
	f = g.must("d", "f").NodeId
	fh, errno := g.open(f, unix.O_RDWR)
	require.Zero(t, errno)
	g.forget(f, 1)
	_, errno = g.write(fh, 0, []byte("x"), 0)
	require.Zero(t, errno)
	require.Equal(t, "x", g.content("d/f"))
	again := g.must("d", "f").NodeId
	require.NotEqual(t, f, again)
	g.release(fh)

	// In one message, whose count may lie.
	d := g.must("d").NodeId
	list := append(bytesOf(&[2]uint64{again, 1}), bytesOf(&[2]uint64{d, 100})...)
	args := append(make([]byte, headerSize), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)
	require.Zero(t, g.s.Handle([][]byte{g.frame(opBatchForget, 0, args, list)}, nil))
	for _, node := range []uint64{again, d} {
		_, errno = g.getattr(node)
		require.Equal(t, unix.ESTALE, errno)
	}
	tab := &g.s.fs.table
	require.Len(t, tab.byID, 1)
	require.Zero(t, tab.files)
}

// TestParentForgotten: a directory that the guest gave up still leads to what it did not.
func TestParentForgotten(t *testing.T) {
	g := mount(t, Options{MaxFiles: MinFiles})
	g.host("a/b/f", "content")
	a, b, f := g.must("a").NodeId, g.must("a", "b").NodeId, g.must("a", "b", "f").NodeId
	g.forget(b, 100)
	g.forget(a, 100)
	for i := range 2 * MinFiles {
		g.host(fmt.Sprintf("other%d", i), "")
		g.must(fmt.Sprintf("other%d", i))
	}
	attr, errno := g.getattr(f)
	require.Zero(t, errno)
	require.EqualValues(t, 7, attr.Size)
	require.Equal(t, MinFiles-1, g.files(), "those of the parents were closed again")
}

// TestRing: what is known of parents can contradict itself when a host program moves directories.
func TestRing(t *testing.T) {
	g := mount(t, Options{MaxFiles: MinFiles})
	require.NoError(t, os.MkdirAll(filepath.Join(g.root, "a/b"), 0o755))
	a := g.must("a").NodeId
	b := g.must("a", "b").NodeId
	require.NoError(t, os.Rename(filepath.Join(g.root, "a/b"), filepath.Join(g.root, "b")))
	require.NoError(t, os.Rename(filepath.Join(g.root, "a"), filepath.Join(g.root, "b/a")))
	_, errno := g.lookup(b, "a")
	require.Zero(t, errno)
	for i := range 2 * MinFiles {
		g.host(fmt.Sprintf("other%d", i), "")
		g.must(fmt.Sprintf("other%d", i))
	}
	for _, node := range []uint64{a, b} {
		_, errno := g.getattr(node)
		require.Equal(t, unix.ESTALE, errno)
	}
	require.Equal(t, b, g.must("b").NodeId)
	_, errno = g.getattr(a)
	require.Zero(t, errno)
}

func TestDeepDirectory(t *testing.T) {
	g := mount(t, Options{MaxFiles: MinFiles})
	dir := uint64(guestRoot)
	var all []uint64
	for range 1000 { // no path on the host is this long
		e, errno := g.mkdir(dir, "directory", 0o755)
		require.Zero(t, errno)
		dir = e.NodeId
		all = append(all, dir)
	}
	for i := range 2 * MinFiles {
		g.host(fmt.Sprintf("other%d", i), "")
		g.must(fmt.Sprintf("other%d", i))
	}
	c, errno := g.create(dir, "f", unix.O_RDWR, 0o644)
	require.Zero(t, errno)
	_, errno = g.symlink(dir, "l", "f")
	require.Zero(t, errno)
	require.Zero(t, g.unlink(dir, "l"))
	g.release(c.Fh)
	require.Zero(t, g.unlink(dir, "f"))
	for i := len(all) - 1; i > 0; i-- {
		require.Zero(t, g.rmdir(all[i-1], "directory"))
		g.forget(all[i], 1)
	}
}

// TestOtherSession: ids of one session mean nothing in another.
func TestOtherSession(t *testing.T) {
	g := mount(t, Options{})
	g.host("f", "")
	f := g.must("f").NodeId
	fh, _ := g.open(f, unix.O_RDONLY)
	other := &guest{t: t, s: g.dir.NewSession(), root: g.root, cut: 4096}
	defer other.s.Close()
	other.must("f") // without INIT, as after a restore
	_, errno := other.open(f, unix.O_RDONLY)
	require.Equal(t, unix.ESTALE, errno)
	_, errno = other.read(fh, 0, 1)
	require.Equal(t, unix.EBADF, errno)
	var out fuse.EntryOut
	require.Equal(t, unix.ESTALE, call(other, opLookup, f, &fuse.InHeader{}, &out, name("x")))
}
