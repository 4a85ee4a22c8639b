package core_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

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
