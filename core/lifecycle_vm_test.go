package core_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// holdings is what this process holds of the system's.
type holdings struct {
	goroutines, fds, memfds, files int // exact: files are those in the home directory's temporary ones
	threads, maps                  int // Go keeps threads, and mappings of its own, for later
}

func held(t *testing.T) (h holdings) {
	t.Helper()
	list := func(dir string) []os.DirEntry {
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		return entries
	}
	for _, fd := range list("/proc/self/fd") {
		h.fds++
		if target, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(target, "/memfd:") {
			h.memfds++
		}
	}
	home, err := core.HomeDir()
	require.NoError(t, err)
	left, err := filepath.Glob(filepath.Join(home, "tmp", "*"))
	require.NoError(t, err)
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	h.goroutines, h.files, h.threads, h.maps = runtime.NumGoroutine(), len(left), len(list("/proc/self/task")), strings.Count(string(maps), "\n")
	return h
}

// leavesNothing runs something again and again and requires that it leaves nothing behind.
// parent is the VM that f forks or saves, nil for none.
func leavesNothing(t *testing.T, parent *core.VM, f func(i int)) {
	t.Helper()
	n := vmtest.Times(6, 200)
	for i := range 3 { // warms up
		f(i)
	}
	var before holdings
	eventually(t, func() bool { // what warmed up has gone
		runtime.GC()
		last := before
		before = held(t)
		return before == last
	}, "nothing comes to rest: %+v", before)
	for i := range n {
		f(i)
	}
	// What Go may keep is less than one for each time; and a thread more comes with its stack, a guard page and an arena of malloc's.
	slack, mapsOfThread := n-1, 4
	// A VM that is forked has up to so many more files: its disk gets a layer with each fork, until they are merged.
	layers := 0
	if parent != nil {
		layers = 13
	}
	var after holdings
	eventually(t, func() bool {
		runtime.GC()
		after = held(t)
		return after.goroutines <= before.goroutines && after.fds <= before.fds+layers && after.memfds <= before.memfds && after.files <= before.files &&
			after.threads <= before.threads+slack && after.maps <= before.maps+slack+mapsOfThread*max(0, after.threads-before.threads)
	}, "after %d times: %+v, before: %+v\n%s", n, &after, before, vmtest.Stacks())
	t.Logf("%d times: %+v, before %+v", n, after, before)
}

func TestLifecyclesOfCopiesLeaveNothing(t *testing.T) {
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 64})
	run := func(t *testing.T, vm *core.VM) {
		t.Helper()
		_, err := vm.Run(t.Context(), core.Exec{Args: []string{"true"}})
		require.NoError(t, err)
	}
	t.Run("restored", func(t *testing.T) {
		leavesNothing(t, nil, func(i int) {
			vm, err := snap.Start(t.Context(), core.StartOptions{})
			require.NoError(t, err)
			run(t, vm)
			require.NoError(t, vm.Close())
		})
	})
	for _, replace := range []bool{false, true} {
		t.Run(fmt.Sprintf("pooled, replaced %v", replace), func(t *testing.T) {
			pool, err := core.NewPool(snap, core.PoolConfig{Max: 1, Replace: replace})
			require.NoError(t, err)
			leavesNothing(t, nil, func(i int) {
				g, err := pool.Acquire(t.Context())
				require.NoError(t, err)
				vm := g.Value()
				run(t, vm)
				g.Release()
				if replace { // until it is closed
					<-vm.Done()
				}
				// One is ready each time: how many more there are would depend on what was faster.
				eventually(t, func() bool { return pool.Stats().Idle == 1 }, "the pool is ready again")
			})
			require.NoError(t, pool.Close())
		})
	}
	t.Run("forked", func(t *testing.T) {
		parent := restore(t, snap)
		leavesNothing(t, parent, func(i int) {
			children, err := parent.Fork(t.Context(), 2, core.ForkOptions{})
			require.NoError(t, err)
			run(t, children[0])
			closeAll(children)
		})
		run(t, parent)
	})
	t.Run("saved and loaded", func(t *testing.T) {
		parent := restore(t, snap)
		leavesNothing(t, parent, func(i int) {
			diff, err := parent.Snapshot(t.Context(), store, core.SnapshotOptions{Base: snap})
			require.NoError(t, err)
			vm, err := diff.Start(t.Context(), core.StartOptions{})
			require.NoError(t, err)
			run(t, vm)
			require.NoError(t, vm.Close())
			require.NoError(t, diff.Close())
			require.NoError(t, store.Remove(t.Context(), diff.Info().ID))
		})
	})
}

// A start that its caller gives up, at whatever point, releases all that it has made so far.
func TestStartsThatAreGivenUpLeaveNothing(t *testing.T) {
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 64})
	parent := restore(t, snap)
	began := time.Now()
	require.NoError(t, restore(t, snap).Close())
	took := time.Since(began)
	outcomes := map[string]int{}
	for name, start := range map[string]func(context.Context) ([]*core.VM, error){
		"restore": func(ctx context.Context) ([]*core.VM, error) {
			vm, err := snap.Start(ctx, core.StartOptions{})
			if err != nil {
				return nil, err
			}
			return []*core.VM{vm}, nil
		},
		"fork": func(ctx context.Context) ([]*core.VM, error) { return parent.Fork(ctx, 2, core.ForkOptions{}) },
	} {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t, parent, func(int) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				timer := time.AfterFunc(rand.N(2*took), cancel)
				defer timer.Stop()
				vms, err := start(ctx)
				if err != nil {
					require.ErrorIs(t, err, core.ErrCanceled)
				}
				outcomes[fmt.Sprintf("%s given up: %v", name, err != nil)]++
				closeAll(vms)
			})
			require.Equal(t, "still here", vmtest.Shell(t, parent, "echo still here"), "a fork that is given up does not harm the parent")
		})
	}
	t.Logf("outcomes: %v", outcomes)
}

func TestManyVMsOfOneSnapshotAnswerAtOnce(t *testing.T) {
	n := vmtest.Times(16, 50)
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 64})
	vms := make([]*core.VM, n)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range vms {
		wg.Go(func() {
			vm, err := snap.Start(t.Context(), core.StartOptions{Name: fmt.Sprintf("vm-%d", i), Timeout: time.Minute})
			if err != nil {
				t.Errorf("VM %d: %v", i, err)
				return
			}
			vms[i] = vm
			t.Cleanup(func() { vm.Close() })
		})
	}
	wg.Wait()
	require.False(t, t.Failed())
	started := time.Since(began)
	answers := make([]string, n)
	for i, vm := range vms {
		wg.Go(func() {
			out, err := vm.Run(t.Context(), core.Exec{Args: []string{"sh", "-c", "echo $(hostname) $(cat /run/supermachine/restore-id) $((6 * 7))"}})
			if err != nil {
				t.Errorf("VM %d: %v", i, err)
			}
			answers[i] = string(out.Stdout)
		})
	}
	wg.Wait()
	require.False(t, t.Failed())
	var private int64
	for i, vm := range vms {
		require.Equal(t, fmt.Sprintf("vm-%d %s 42\n", i, vm.RestoreID()), answers[i])
		b, err := vm.PrivateBytes()
		require.NoError(t, err)
		private += b
	}
	require.Less(t, private/int64(n), int64(16<<20), "the rest is shared")
	t.Logf("%d VMs started within %v; each has %d KiB of its own", n, started.Round(time.Millisecond), private/int64(n)>>10)
}
