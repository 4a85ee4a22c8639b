package core_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
	"github.com/supermachine/supermachine/snapshot"
)

// unfinished returns what a store holds besides its snapshots and their locks: what somebody who failed has left.
func unfinished(t *testing.T, dir string) (left []string) {
	t.Helper()
	for _, pattern := range []string{".tmp-*", ".trash-*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(t, err)
		left = append(left, found...)
	}
	return left
}

// Files in memory and on disk stay as they are however often their VM goes through the store, and the chain of differences stays short.
func TestContentStaysThroughGenerationsOfSnapshots(t *testing.T) {
	t.Parallel()
	generations := vmtest.Times(snapshot.MaxChain+2, 100)
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 96})
	whole := 0
	for n := range generations {
		vm := restore(t, snap)
		// Each generation adds a file and changes one that all have; what is read from the disk comes from the disk.
		vmtest.Shell(t, vm, fmt.Sprintf(`set -e
			echo 3 > /proc/sys/vm/drop_caches
			[ ! -e /sums ] || md5sum -c /sums >/dev/null
			head -c 300000 /dev/urandom > /disk%[1]d; cp /disk%[1]d /dev/shm/%[1]d
			head -c 100000 /dev/urandom > /changes; cp /changes /dev/shm/changes
			rm -f /dev/shm/$((%[1]d - 5))
			md5sum /disk* /changes /dev/shm/* > /sums`, n))
		next, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{Base: snap, Lean: n%4 == 3})
		require.NoError(t, err)
		require.NoError(t, vm.Close())
		if next.Info().Base == "" {
			whole++
		}
		chain := 0
		for id := next.Info().ID; id != ""; chain++ {
			info, err := store.Inspect(id)
			require.NoError(t, err)
			id = info.Base
		}
		require.LessOrEqual(t, chain, snapshot.MaxChain)
		require.NoError(t, snap.Close())
		snap = next
	}
	defer snap.Close()
	last := restore(t, snap)
	require.Equal(t, fmt.Sprint(generations+1+5+1), vmtest.Shell(t, last, "md5sum -c /sums | grep -c OK$"), "in memory the last five are left")
	healthy(t, last)
	require.Positive(t, whole, "the chain began anew")
	t.Logf("%d generations, %d of them whole", generations, whole)
}

// Going on from a snapshot never alters it, and neither does saving what went on from it.
func TestSnapshotsStayAsTheyAre(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	base := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	require.ErrorIs(t, store.WriteAgain(t.Context(), base), snapshot.ErrExists, "none is ever replaced")
	vm := restore(t, base)
	vmtest.Shell(t, vm, "head -c 20000000 /dev/urandom | tee /dev/shm/much > /much; rm -rf /home; echo changed > /etc/passwd")
	sum := vmtest.Shell(t, vm, "md5sum < /much")
	for range 2 {
		diff, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{Base: base})
		require.NoError(t, err)
		defer diff.Close()
		again, err := store.Load(t.Context(), base.Info().ID, core.VerifyAlways)
		require.NoError(t, err)
		pristine := restore(t, again)
		require.NoError(t, again.Close())
		require.Equal(t, "0", vmtest.Shell(t, pristine, "ls /much /dev/shm/much 2>/dev/null | wc -l"))
		require.Contains(t, vmtest.Shell(t, pristine, "cat /etc/passwd"), "root")
		require.NoError(t, pristine.Close())
		require.Equal(t, sum, vmtest.Shell(t, restore(t, diff), "cmp /much /dev/shm/much; md5sum < /much"))
	}
	other := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64})
	_, err := other.Snapshot(t.Context(), store, core.SnapshotOptions{Base: base})
	require.ErrorIs(t, err, core.ErrInvalidArgument)
	require.ErrorContains(t, err, "was not started from this snapshot")
}

func TestPausedVMsAreNotSaved(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64})
	require.NoError(t, vm.Pause())
	_, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{})
	require.ErrorIs(t, err, core.ErrInvalidArgument)
	require.ErrorContains(t, err, "it is paused; resume it first")
	_, err = vm.Fork(t.Context(), 1, core.ForkOptions{})
	require.ErrorIs(t, err, core.ErrInvalidArgument)
	require.ErrorContains(t, err, "it is paused; resume it first")
	require.NoError(t, vm.Resume())
	children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
	require.NoError(t, err)
	closeAll(children)
	all, err := store.List()
	require.NoError(t, err)
	require.Empty(t, all)
}

// However a VM ends while it is saved or forked: that is said, what was made is whole, and nothing else is left.
func TestVMsThatEndWhileTheyAreSaved(t *testing.T) {
	dir := t.TempDir()
	store, err := core.OpenSnapshots(dir, nil)
	require.NoError(t, err)
	base := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 128})
	ends := []struct {
		name string
		end  func(*core.VM)
	}{
		{"kill", (*core.VM).Kill},
		{"close", func(vm *core.VM) { vm.Close() }},
		{"stop", func(vm *core.VM) { vm.Stop(context.Background(), time.Second) }},
		{"reboot", func(vm *core.VM) { vm.Run(context.Background(), sh("reboot -f")) }},
	}
	took := map[bool]time.Duration{}
	outcomes := map[string]int{}
	leavesNothing(t, nil, func(i int) {
		vm, err := base.Start(t.Context(), core.StartOptions{})
		require.NoError(t, err)
		defer vm.Close()
		// Copying that much takes a while, in which the memory must not go.
		vmtest.Shell(t, vm, "for i in 1 2 3 4 5 6; do cat /bin/busybox; done > /dev/shm/much")
		fork, e := i%2 == 0, ends[i/2%len(ends)]
		if took[fork] != 0 { // the first shows how long it takes
			ended := make(chan struct{})
			early := math.Pow(rand.Float64(), 3) // most of it is the start of children, or writing to the store
			timer := time.AfterFunc(time.Duration(early*float64(took[fork])), func() {
				defer close(ended)
				e.end(vm)
			})
			defer func() {
				if !timer.Stop() {
					<-ended
				}
			}()
		}
		began := time.Now()
		if fork {
			var children []*core.VM
			children, err = vm.Fork(t.Context(), 1, core.ForkOptions{})
			defer closeAll(children)
			for _, c := range children {
				vmtest.Shell(t, c, "head -c $(wc -c < /bin/busybox) /dev/shm/much | cmp - /bin/busybox")
			}
		} else {
			var snap *core.Snapshot
			if snap, err = vm.Snapshot(t.Context(), store, core.SnapshotOptions{Base: base}); err == nil {
				id := snap.Info().ID
				require.NoError(t, snap.Close())
				whole, err := store.Load(t.Context(), id, core.VerifyAlways)
				require.NoError(t, err)
				require.NoError(t, whole.Close())
				require.NoError(t, store.Remove(t.Context(), id))
			}
		}
		if err != nil {
			require.ErrorIs(t, err, core.ErrVMEnded)
		} else if d := time.Since(began); took[fork] == 0 || d < took[fork] {
			took[fork] = d
		}
		outcomes[fmt.Sprintf("%s during fork %v: error %v", e.name, fork, err != nil)]++
		all, err := store.List()
		require.NoError(t, err)
		require.Len(t, all, 1, "the base")
		require.Empty(t, unfinished(t, dir))
	})
	t.Logf("outcomes: %v", outcomes)
}

// A pooled VM that was saved or forked has a disk of two parts; all of what its user wrote must go.
func TestPooledVMsAreCleanAfterTheyWereForkedOrSaved(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	base := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	for _, save := range []bool{false, true} {
		pool, err := core.NewPool(base, core.PoolConfig{Max: 1})
		require.NoError(t, err)
		for range 3 {
			g, err := pool.Acquire(t.Context())
			require.NoError(t, err)
			vm := g.Value()
			vmtest.Shell(t, vm, "echo 3 > /proc/sys/vm/drop_caches")
			require.Equal(t, "clean", vmtest.Shell(t, vm, "cat /home/dirt 2>/dev/null || echo clean"))
			vmtest.Shell(t, vm, "echo dirt > /home/dirt; sync")
			if save {
				snap, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{Base: base})
				require.NoError(t, err)
				require.NoError(t, snap.Close())
			} else {
				children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
				require.NoError(t, err)
				require.Equal(t, "dirt", vmtest.Shell(t, children[0], "cat /home/dirt"))
				closeAll(children)
			}
			g.Release()
		}
		require.NoError(t, pool.Close())
	}
}
