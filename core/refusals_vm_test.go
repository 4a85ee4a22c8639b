package core_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// smallStore is a store of snapshots on a file system of its own that holds a few MiB.
func smallStore(t *testing.T) (*core.Snapshots, string) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("needs to mount a file system, as root in the testbed: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	store, err := core.OpenSnapshots(dir, nil)
	require.NoError(t, err)
	return store, dir
}

func TestSnapshotsThatDoNotFitOnTheDiskLeaveNothing(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	store, dir := smallStore(t)
	nothing := func() {
		t.Helper()
		all, err := store.List()
		require.NoError(t, err)
		require.Empty(t, all)
		require.Empty(t, unfinished(t, dir))
	}
	_, err := store.Bake(t.Context(), core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 96})
	require.ErrorIs(t, err, core.ErrDiskFull)
	require.ErrorContains(t, err, "no space left")
	nothing()

	vm := restore(t, bake(t, openSnapshots(t), core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 96}))
	_, err = vm.Snapshot(t.Context(), store, core.SnapshotOptions{})
	require.ErrorIs(t, err, core.ErrDiskFull)
	nothing()
	require.Equal(t, "unharmed", vmtest.Shell(t, vm, "echo unharmed"))
}

// A host without memory starts nothing: not a boot, a restore, a fork or a pool's VM, and what waits for memory waits as long as its context.
func TestStartsWithoutMemoryAreRefused(t *testing.T) {
	vmtest.RequireKVM(t)
	snap := bake(t, openSnapshots(t), core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 96})
	vm := restore(t, snap)
	all := core.Admission{MarginMiB: 1 << 20}
	require.NoError(t, core.SetAdmission(all))
	defer func() { require.NoError(t, core.SetAdmission(core.Admission{})) }()

	starts := map[string]func(ctx context.Context) error{
		"boot":    func(ctx context.Context) error { _, err := core.Start(ctx, vm.Image(), core.Config{}); return err },
		"restore": func(ctx context.Context) error { _, err := snap.Start(ctx, core.StartOptions{}); return err },
		"fork":    func(ctx context.Context) error { _, err := vm.Fork(ctx, 2, core.ForkOptions{}); return err },
		"pool": func(ctx context.Context) error {
			p, err := core.NewPool(snap, core.PoolConfig{})
			require.NoError(t, err)
			defer func() { require.NoError(t, p.Close()) }()
			_, err = p.Acquire(ctx)
			return err
		},
	}
	for name, start := range starts {
		err := start(t.Context())
		require.ErrorIs(t, err, core.ErrNoMemory, name)
		require.ErrorContains(t, err, "MiB", name)
	}
	all.Wait = true
	require.NoError(t, core.SetAdmission(all))
	for name, start := range starts {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		require.ErrorIs(t, start(ctx), core.ErrTimeout, name)
		cancel()
	}
	require.Equal(t, "unharmed", vmtest.Shell(t, vm, "echo unharmed"))
}

func TestPoolsAtTheirMaximumSaySo(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	snap := bake(t, openSnapshots(t), core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 96})
	p, err := core.NewPool(snap, core.PoolConfig{Max: 1, AcquireTimeout: 20 * time.Millisecond})
	require.NoError(t, err)
	defer p.Close()
	g, err := p.Acquire(t.Context())
	for core.CodeOf(err) == core.ErrExhausted { // the first one takes longer to start
		g, err = p.Acquire(t.Context())
	}
	require.NoError(t, err)
	_, err = p.Acquire(t.Context())
	require.ErrorIs(t, err, core.ErrExhausted)
	require.ErrorContains(t, err, "1")
	g.Release()
}
