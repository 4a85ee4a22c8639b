package core_test

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

func TestGuestHasTheMemoryThatWasAskedFor(t *testing.T) {
	t.Parallel()
	for _, mib := range []int{64, 5 << 10} { // the least there is, and more than fits below the 4 GiB hole
		t.Run(fmt.Sprintf("%d MiB", mib), func(t *testing.T) {
			vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: mib})
			kib, err := strconv.Atoi(vmtest.Shell(t, vm, "awk '/^MemTotal:/ { print $2 }' /proc/meminfo"))
			require.NoError(t, err)
			require.Less(t, kib, mib<<10)
			require.Greater(t, kib, mib<<10*19/20-(32<<10), "the kernel keeps some for itself")
			// Fresh pages come from the top first.
			require.Equal(t, "same", vmtest.Shell(t, vm, `
				dd if=/dev/urandom of=/dev/shm/a bs=1M count=8 2>/dev/null && cp /dev/shm/a /dev/shm/b && cmp /dev/shm/a /dev/shm/b && echo same`))
		})
	}
}

func TestAllCPUsWork(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 8} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 128, VCPUs: n})
			require.Equal(t, strconv.Itoa(n), vmtest.Shell(t, vm, "nproc"))
			require.Equal(t, strconv.Itoa(n), vmtest.Shell(t, vm, "grep -c ^processor /proc/cpuinfo"))
			// A program bound to each of them at once, which says where it ran (proc(5), stat, field 39).
			var want []string
			for i := range n {
				want = append(want, strconv.Itoa(i))
			}
			require.Equal(t, strings.Join(want, " "), vmtest.Shell(t, vm, fmt.Sprintf(
				`for c in $(seq 0 %d); do taskset $(printf %%x $((1 << c))) cut -d ' ' -f 39 /proc/self/stat & done | sort -n | xargs`, n-1)))
		})
	}
}

func TestPausedGuestStandsStill(t *testing.T) {
	t.Parallel()
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64, VCPUs: 2})
	out := newPipe()
	req := sh("n=0; while :; do n=$((n + 1)); echo $n; done")
	req.Stdout = out.w
	p, err := vm.Exec(t.Context(), req)
	require.NoError(t, err)
	counter := newLines(out.r)
	require.Equal(t, "1", counter.next(t))

	ram := vm.Memory().Regions()[0].Bytes
	for range 5 {
		require.NoError(t, vm.Pause())
		require.NoError(t, vm.Pause(), "pausing twice is allowed")
		done := make(chan error, 1)
		go func() {
			_, err := vm.Run(t.Context(), core.Exec{Args: []string{"true"}})
			done <- err
		}()
		before := bytes.Clone(ram)
		require.True(t, bytes.Equal(before, ram), "nothing in the guest's memory changes")
		require.Empty(t, done, "a call waits")
		require.NoError(t, vm.Resume())
		require.NoError(t, <-done)
		require.NoError(t, vm.Resume(), "resuming twice is allowed")
	}

	for n := 2; n < 1000; n++ {
		require.Equal(t, strconv.Itoa(n), counter.next(t), "the program goes on where it was")
	}
	out.r.Close()
	require.NoError(t, p.Kill())
}

func TestTenVMsAtOnce(t *testing.T) {
	vmtest.RequireKVM(t)
	img := vmtest.Image(t, "busybox")
	const n = 10
	var wg sync.WaitGroup
	names, errs := make([]string, n), make([]error, n)
	for i := range n {
		wg.Go(func() {
			vm, err := core.Start(t.Context(), img, core.Config{MemoryMiB: 64, Name: fmt.Sprintf("vm%d", i)})
			if err != nil {
				errs[i] = err
				return
			}
			defer vm.Close()
			out, err := vm.Run(t.Context(), core.Exec{Args: []string{"hostname"}})
			names[i], errs[i] = string(out.Stdout), err
		})
	}
	wg.Wait()
	for i := range n {
		require.NoError(t, errs[i])
		require.Equal(t, fmt.Sprintf("vm%d\n", i), names[i])
	}
}
