package core_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

func hostFile(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
}

// Directories are shared both ways, read-only where asked, and a link that leads out of one is refused.
func TestMountsShareDirectories(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	rw, ro := t.TempDir(), t.TempDir()
	hostFile(t, filepath.Join(rw, "from-host"), "host\n")
	hostFile(t, filepath.Join(ro, "sub/config"), "config\n")
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(rw, "out")))
	require.NoError(t, os.Symlink("from-host", filepath.Join(rw, "in")))
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Mounts: []core.Mount{
		{Dir: rw, Path: "/work/tree"}, {Dir: ro, Path: "/config", ReadOnly: true}, {Dir: rw, Path: "/denied", Symlinks: core.SymlinksDeny},
	}})
	require.NoError(t, err)
	defer vm.Close()
	require.Equal(t, "host\nhost", vmtest.Shell(t, vm, "cd /work/tree && cat from-host in"))
	require.Equal(t, "Permission denied", vmtest.Shell(t, vm, "cat /work/tree/out 2>&1 | sed 's/.*: //'"))
	require.Equal(t, "config", vmtest.Shell(t, vm, "cat /config/sub/config"))
	require.Equal(t, "Read-only file system", vmtest.Shell(t, vm, "touch /config/x 2>&1 | sed 's/.*: //'"))
	require.Equal(t, "0 0 644", vmtest.Shell(t, vm, "stat -c '%u %g %a' /work/tree/from-host"))
	vmtest.Shell(t, vm, `cd /work/tree && mkdir -p a/b && echo guest > a/b/from-guest && ln -s a/b/from-guest link && ln from-host hard &&
		dd if=/dev/urandom of=big bs=1M count=9 2>/dev/null && sha256sum big > big.sum && mv a/b/from-guest a/moved && rm -r a/b && chmod 700 a`)
	content, err := os.ReadFile(filepath.Join(rw, "a/moved"))
	require.NoError(t, err)
	require.Equal(t, "guest\n", string(content))
	target, err := os.Readlink(filepath.Join(rw, "link"))
	require.NoError(t, err)
	require.Equal(t, "a/b/from-guest", target)
	info, err := os.Stat(filepath.Join(rw, "a"))
	require.NoError(t, err)
	require.EqualValues(t, 0o700, info.Mode().Perm())
	vmtest.Shell(t, vm, "cd /work/tree && sha256sum -c big.sum")
	require.Equal(t, "Operation not permitted\nOperation not permitted",
		vmtest.Shell(t, vm, "cd /denied; (ln -s x made; ln from-host made2) 2>&1 | sed 's/.*: //'"))
	hostFile(t, filepath.Join(rw, "later"), "later\n")
	eventually(t, func() bool { return vmtest.Shell(t, vm, "cat /work/tree/later 2>/dev/null; true") == "later" }, "what the host makes is seen")
}

// A snapshot holds nothing of a mount: copies get what they are given, forks what their parent has.
func TestMountsAreBoundAnewWhenAVMIsRestored(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	first, second := t.TempDir(), t.TempDir()
	hostFile(t, filepath.Join(first, "name"), "first\n")
	hostFile(t, filepath.Join(second, "name"), "second\n")
	mount := func(dir string) core.StartOptions {
		return core.StartOptions{Mounts: []core.Mount{{Dir: dir, Path: "/src"}}}
	}
	vm, err := snap.Start(t.Context(), mount(first))
	require.NoError(t, err)
	defer vm.Close()
	require.NoError(t, vm.StartWorkload(t.Context(), core.Exec{Args: []string{
		"sh", "-c", "exec 3>/src/log; touch /tmp/open; while :; do echo line >&3 || touch /tmp/lost; sleep 0.1; done",
	}}))
	vmtest.Shell(t, vm, "while ! [ -e /tmp/open ]; do sleep 0.1; done; cat /src/name")

	saved, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{})
	require.NoError(t, err)
	defer saved.Close()
	require.Equal(t, []string{"/src"}, saved.Info().Attached)
	other, err := saved.Start(t.Context(), mount(second))
	require.NoError(t, err)
	defer other.Close()
	require.Equal(t, "second", vmtest.Shell(t, other, "cat /src/name"))
	vmtest.Shell(t, other, "while ! [ -e /tmp/lost ]; do sleep 0.1; done")
	bare, err := saved.Start(t.Context(), core.StartOptions{})
	require.NoError(t, err)
	defer bare.Close()
	require.Equal(t, "", vmtest.Shell(t, bare, "ls /src"))
	children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
	require.NoError(t, err)
	defer children[0].Close()
	require.Equal(t, "first", vmtest.Shell(t, children[0], "cat /src/name"))
	require.Equal(t, "first", vmtest.Shell(t, vm, "cat /src/name; [ ! -e /tmp/lost ]"))
}

func TestMountsThatAreNone(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	dir := t.TempDir()
	hostFile(t, filepath.Join(dir, "file"), "")
	for name, m := range map[string]core.Mount{
		"missing": {Dir: filepath.Join(dir, "none"), Path: "/x"}, "file": {Dir: filepath.Join(dir, "file"), Path: "/x"},
		"root": {Dir: dir, Path: "/"}, "dots": {Dir: dir, Path: "/a/../b"},
	} {
		_, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Mounts: []core.Mount{m}})
		want := core.ErrInvalidArgument
		if name == "missing" {
			want = core.ErrNotFound
		}
		require.ErrorIs(t, err, want, name)
		require.ErrorContains(t, err, strings.TrimSuffix(m.Dir, "/"), name)
	}
}

// A pool's VMs have its mounts, also after they were brought back, and a network that is new with each use.
func TestPoolsGiveWhatTheirVMsHave(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	dir := t.TempDir()
	hostFile(t, filepath.Join(dir, "name"), "shared\n")
	mounts := []core.Mount{{Dir: dir, Path: "/src", ReadOnly: true}}
	port := hostServer(t, "answer")
	for _, network := range []*core.Network{nil, network("allow 127.0.0.1")} {
		pool, err := core.NewPool(snap, core.PoolConfig{Min: 1, Max: 1, Start: core.StartOptions{Mounts: mounts, Network: network}})
		require.NoError(t, err)
		defer pool.Close()
		for use := range 3 {
			guard, err := pool.Acquire(t.Context())
			require.NoError(t, err)
			vm := guard.Value()
			require.Equal(t, "shared", vmtest.Shell(t, vm, "cat /src/name; [ ! -e /tmp/used ]; touch /tmp/used"), "use %d", use)
			if network != nil {
				require.Equal(t, "answer x", vmtest.Shell(t, vm, fmt.Sprintf("echo -n x | nc -w 5 192.168.127.1 %d", port)))
			}
			guard.Release()
		}
	}
	_, err := core.NewPool(snap, core.PoolConfig{Start: core.StartOptions{Volumes: []core.Volume{{File: "x", Path: "/x"}}}})
	require.ErrorIs(t, err, core.ErrInvalidArgument)
}
