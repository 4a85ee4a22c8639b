package core_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// A guest that would use all of a CPU gets its share, and is as responsive as that allows.
func TestCPULimitHolds(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{CPULimit: 0.3, BootTimeout: 5 * time.Minute})
	require.NoError(t, err)
	defer vm.Close()
	busy, err := vm.Exec(t.Context(), core.Exec{Args: []string{"sh", "-c", "while :; do :; done"}})
	require.NoError(t, err)
	defer busy.Kill()
	before, err := vm.Stats(t.Context())
	require.NoError(t, err)
	begin := time.Now()
	eventually(t, func() bool { return time.Since(begin) > 3*time.Second }, "time passes")
	require.Equal(t, "answer", vmtest.Shell(t, vm, "echo answer"))
	after, err := vm.Stats(t.Context())
	require.NoError(t, err)
	share := float64(after.CPU-before.CPU) / float64(after.Time-before.Time)
	require.InDelta(t, 0.3, share, 0.15)
	require.NoError(t, vm.Pause(), "who is held back can be paused")
	require.NoError(t, vm.Resume())
	_, err = core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{CPULimit: 0.001})
	require.ErrorIs(t, err, core.ErrInvalidArgument)
}

// A guest's vCPUs run in the cgroup that they are put into, and nothing else of the process does.
func TestVCPUsRunInTheirCgroup(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	const root = "/sys/fs/cgroup"
	dir := root + "/supermachine-test"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("needs leave to make a cgroup (v2): %v", err)
	}
	defer os.Remove(dir)
	if err := os.WriteFile(dir+"/cgroup.type", []byte("threaded"), 0); err != nil {
		t.Skipf("needs a cgroup with threads: %v", err)
	}
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{VCPUs: 2, Cgroup: dir})
	require.NoError(t, err)
	defer vm.Close()
	threads := func() []string {
		b, err := os.ReadFile(dir + "/cgroup.threads")
		require.NoError(t, err)
		return strings.Fields(string(b))
	}
	require.GreaterOrEqual(t, len(threads()), 2, "KVM may have one of its own beside them")
	require.Equal(t, "hi", vmtest.Shell(t, vm, "echo hi"))
	vm.Close()
	eventually(t, func() bool { return len(threads()) == 0 }, "the threads end with the VM")
	_, err = core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Cgroup: "/no/such"})
	require.ErrorIs(t, err, core.ErrNotFound)
}

func TestStatsGrowWithUse(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{})
	require.NoError(t, err)
	defer vm.Close()
	before, err := vm.Stats(t.Context())
	require.NoError(t, err)
	vmtest.Shell(t, vm, "dd if=/dev/zero of=/root-file bs=1M count=8 2>/dev/null; sync; cat /root-file >/dev/null")
	after, err := vm.Stats(t.Context())
	require.NoError(t, err)
	require.Greater(t, after.Time, before.Time)
	require.Greater(t, after.CPU, before.CPU)
	require.Less(t, after.CPU, after.Time+time.Minute, "one vCPU uses at most one CPU, here and while it booted")
	require.GreaterOrEqual(t, after.Disk.WrittenBytes, before.Disk.WrittenBytes+8<<20)
	require.Greater(t, after.Disk.Flushes, before.Disk.Flushes)
	require.Greater(t, after.PrivateBytes, int64(8<<20))
	require.Greater(t, after.Guest.CPU, before.Guest.CPU)
	require.Greater(t, after.Guest.Memory.Total, int64(100<<20))

	require.NoError(t, vm.Pause())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	paused, err := vm.Stats(ctx)
	require.NoError(t, err)
	require.Zero(t, paused.Guest, "who sleeps says nothing")
	require.GreaterOrEqual(t, paused.Disk.WrittenBytes, after.Disk.WrittenBytes)
	require.NoError(t, vm.Resume())
	vm.Close()
	_, err = vm.Stats(t.Context())
	require.ErrorIs(t, err, core.ErrVMEnded)
}
