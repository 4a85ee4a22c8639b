package hostdir

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tree makes links of every kind on the host, beside a directory outside.
func tree(g *guest) {
	t := g.t
	outside := filepath.Join(filepath.Dir(g.root), "outside")
	require.NoError(t, os.MkdirAll(filepath.Join(outside, "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o644))
	require.NoError(t, os.Symlink("../secret", filepath.Join(outside, "sub", "up")))
	g.host("dir/file", "inside")
	g.host("top", "inside")
	for at, target := range map[string]string{
		"dir/same": "file", "dir/up": "../top", "dir/around": "../dir/./../top", "dangling": "none/at/all", "dir/self": ".",
		"circle": "circle", "absolute": g.root + "/top", "absolute dangling": g.root + "/none", "through file": "top/x",
		"root": "dir/..", "chain": "dir/up",

		"out": "../outside/secret", "dir/out": "../../outside/secret", "out dir": "../outside", "absolute out": outside + "/secret",
		"beside": g.root + "-not/x", "out dangling": "../none", "dir/chain out": "../out", "out and in": "../root/top", "etc": "/etc/passwd",
		"through": "out dir/secret",
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(g.root, at)))
	}
}

var (
	linksInside = []string{
		"dir/same", "dir/up", "dir/around", "dangling", "dir/self", "circle", "absolute", "absolute dangling", "through file", "root", "chain",
	}
	linksOut = []string{"out", "dir/out", "out dir", "absolute out", "beside", "out dangling", "dir/chain out", "out and in", "etc", "through"}
)

func (g *guest) parent(path string) (uint64, string) {
	g.t.Helper()
	if dir, base := filepath.Split(path); dir != "" {
		return g.must(filepath.Clean(dir)).NodeId, base
	}
	return guestRoot, path
}

func TestHostLinks(t *testing.T) {
	for _, policy := range []Policy{Opaque, Deny, Follow} {
		t.Run(policy.String(), func(t *testing.T) {
			g := mount(t, Options{Symlinks: policy})
			tree(g)
			for _, s := range linksInside {
				dir, base := g.parent(s)
				e, errno := g.lookup(dir, base)
				require.Zero(t, errno, s)
				require.EqualValues(t, unix.S_IFLNK|0o777, e.Mode, s)
				want, err := os.Readlink(filepath.Join(g.root, s))
				require.NoError(t, err)
				got, errno := g.readlink(e.NodeId)
				require.Zero(t, errno)
				require.Equal(t, want, got)
				require.EqualValues(t, len(want), e.Size)
				_, errno = g.open(e.NodeId, unix.O_RDONLY)
				require.Equal(t, unix.ELOOP, errno, "a link is never opened")
			}
			before := g.files()
			for _, s := range linksOut {
				dir, base := g.parent(s)
				e, errno := g.lookup(dir, base)
				if policy != Follow {
					require.Equal(t, unix.EACCES, errno, s)
					continue
				}
				require.Zero(t, errno, s)
				switch s {
				case "out dangling", "beside":
					require.EqualValues(t, unix.S_IFLNK|0o777, e.Mode, s)
				case "out dir":
					require.EqualValues(t, unix.S_IFDIR, e.Mode&unix.S_IFMT)
				default:
					require.EqualValues(t, unix.S_IFREG, e.Mode&unix.S_IFMT, s)
				}
			}
			if policy != Follow {
				require.Equal(t, before, g.files(), "nothing stays open of what is refused")
			}
			_, errno := g.readlink(guestRoot)
			require.Equal(t, unix.EINVAL, errno)
		})
	}
}

func TestFollow(t *testing.T) {
	g := mount(t, Options{Symlinks: Follow})
	tree(g)
	e := g.must("out")
	fh, errno := g.open(e.NodeId, unix.O_RDONLY)
	require.Zero(t, errno)
	b, errno := g.read(fh, 0, 100)
	require.Zero(t, errno)
	require.Equal(t, "secret", string(b))
	require.Equal(t, e.NodeId, g.must("through").NodeId)
	up := g.must("out dir", "sub", "up")
	require.Equal(t, e.NodeId, up.NodeId, "out there links are followed, since the guest could not")
	require.NoError(t, os.Symlink(g.root, filepath.Join(g.root, "..", "outside", "back")))
	_, errno = g.lookup(g.must("out dir").NodeId, "back")
	require.Equal(t, unix.ELOOP, errno)

	fhd, errno := g.opendir(guestRoot)
	require.Zero(t, errno)
	d, errno := g.readdir(fhd, 0, 4096)
	require.Zero(t, errno)
	entries, outs, errno := g.readdirplus(fhd, 0, 1<<14)
	require.Zero(t, errno)
	require.Len(t, entries, len(d))
	for i := range entries {
		switch d[i].Name {
		case "out":
			require.EqualValues(t, 0, d[i].Mode)
			require.EqualValues(t, unix.S_IFREG, entries[i].Mode)
			require.Equal(t, e.NodeId, outs[i].NodeId)
		case "dangling":
			require.EqualValues(t, unix.S_IFLNK, entries[i].Mode)
		}
	}
}

// TestFollowEscape: what the guest makes or moves must not lead out.
func TestFollowEscape(t *testing.T) {
	g := mount(t, Options{Symlinks: Follow})
	tree(g)
	dir := g.must("dir").NodeId
	deep, errno := g.mkdir(dir, "deep", 0o755)
	require.Zero(t, errno)
	for _, target := range []string{"/etc/passwd", "../../../outside/secret", "x/../../../../outside", "x/..", "../x/../y"} {
		_, errno := g.symlink(deep.NodeId, "bad", target)
		require.Equal(t, unix.EPERM, errno, target)
	}
	out := g.must("out dir").NodeId
	_, errno = g.symlink(out, "bad", "x")
	require.Equal(t, unix.EPERM, errno)
	l, errno := g.symlink(deep.NodeId, "good", "../../outside/secret")
	require.Zero(t, errno, "inside from here")
	require.Equal(t, unix.EPERM, g.rename(deep.NodeId, "good", dir, "good", unix.RENAME_NOREPLACE), "also with the flag")
	require.Zero(t, g.rename(deep.NodeId, "good", deep.NodeId, "better", 0))
	g.host("plain", "")
	require.Equal(t, unix.EPERM, g.rename(guestRoot, "plain", deep.NodeId, "better", unix.RENAME_EXCHANGE))
	_, errno = g.link(l.NodeId, guestRoot, "bad")
	require.Equal(t, unix.EPERM, errno)
	require.Equal(t, unix.EXDEV, g.rename(dir, "deep", guestRoot, "deep", 0))
	require.Zero(t, g.rename(dir, "deep", dir, "deeper", 0))
	require.Zero(t, g.rename(guestRoot, "plain", dir, "plain", 0))
	l, errno = g.symlink(dir, "down", "deep/../x")
	require.Equal(t, unix.EPERM, errno)
	l, errno = g.symlink(dir, "down", "./deep//x")
	require.Zero(t, errno)
	require.Zero(t, g.rename(dir, "down", guestRoot, "down", 0), "steps down lead in from anywhere")
}

func TestGuestLinks(t *testing.T) {
	g := mount(t, Options{})
	g.host("f", "content")
	for _, target := range []string{"f", "../../etc/passwd", "/usr/bin/python3", "none", "../.pnpm/node_modules/x"} {
		l, errno := g.symlink(guestRoot, "l", target)
		require.Zero(t, errno)
		require.EqualValues(t, unix.S_IFLNK|0o777, l.Mode)
		require.Equal(t, l.NodeId, g.must("l").NodeId, "what the guest made it sees: "+target)
		require.Zero(t, g.rename(guestRoot, "l", guestRoot, "moved", 0))
		got, errno := g.readlink(g.must("moved").NodeId)
		require.Zero(t, errno)
		require.Equal(t, target, got)
		host, err := os.Readlink(filepath.Join(g.root, "moved"))
		require.NoError(t, err)
		require.Equal(t, target, host)

		// Another mount of the same Dir knows it too, another Dir does not.
		other := &guest{t: t, s: g.dir.NewSession(), root: g.root, cut: 4096}
		other.must("moved")
		other.s.Close()
		require.Zero(t, g.unlink(guestRoot, "moved"))
	}
	f := g.must("f")
	h, errno := g.link(f.NodeId, guestRoot, "hard")
	require.Zero(t, errno)
	require.Equal(t, f.NodeId, h.NodeId)
	require.EqualValues(t, 2, h.Nlink)
	// pnpm and git: the first name goes, the other stays.
	require.Zero(t, g.unlink(guestRoot, "f"))
	require.Equal(t, "content", g.content("hard"))
	l, errno := g.symlink(guestRoot, "l", "/out/there")
	require.Zero(t, errno)
	hl, errno := g.link(l.NodeId, guestRoot, "l2")
	require.Zero(t, errno, "a hard link to a link")
	require.Equal(t, l.NodeId, hl.NodeId)
	_, errno = g.link(guestRoot, guestRoot, "x")
	require.Equal(t, unix.EPERM, errno)
}

func TestDeny(t *testing.T) {
	g := mount(t, Options{Symlinks: Deny})
	g.host("f", "content")
	_, errno := g.symlink(guestRoot, "l", "f")
	require.Equal(t, unix.EPERM, errno)
	_, errno = g.link(g.must("f").NodeId, guestRoot, "hard")
	require.Equal(t, unix.EPERM, errno)
	e, err := os.ReadDir(g.root)
	require.NoError(t, err)
	require.Len(t, e, 1)
}

func TestMadeIsBounded(t *testing.T) {
	d, err := Open(t.TempDir(), Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, d.Close()) }()
	for i := range uint64(maxMade + 100) {
		d.remember(key{ino: i})
	}
	require.Len(t, d.made, maxMade)
}
