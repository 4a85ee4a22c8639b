package core_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// What a restored VM has used and freed comes back to the host by itself, and what it has not used on demand.
func TestIdleVMsGiveMemoryBack(t *testing.T) {
	t.Parallel()
	snap := bake(t, openSnapshots(t), core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true, MemoryMiB: 192})
	vm := restore(t, snap)
	private := func() int64 {
		t.Helper()
		n, err := vm.PrivateBytes()
		require.NoError(t, err)
		return n
	}
	vmtest.Shell(t, vm, "true")
	idle := private()
	vmtest.Shell(t, vm, "dd if=/dev/zero of=/dev/shm/used bs=1M count=64 2>/dev/null")
	used := private()
	require.Greater(t, used, idle+60<<20)
	vmtest.Shell(t, vm, "rm /dev/shm/used")
	// Free memory comes back in blocks of 2 MiB; what is in smaller pieces stays.
	eventually(t, func() bool { return private() < idle+32<<20 }, "%d bytes of its own before, %d with a large file", idle, used)
	t.Logf("of its own: %d MiB idle, %d with a file of 64 MiB, %d some time after", idle>>20, used>>20, private()>>20)

	before, err := vm.MemoryStats(t.Context())
	require.NoError(t, err)
	require.Greater(t, before.Free, int64(64<<20))
	require.NoError(t, vm.SetBalloon(64<<20))
	eventually(t, func() bool { return vm.Balloon() == 64<<20 }, "the guest gives up what it is asked for")
	after, err := vm.MemoryStats(t.Context())
	require.NoError(t, err)
	require.Less(t, after.Free, before.Free-48<<20)
	require.NoError(t, vm.SetBalloon(0))
	eventually(t, func() bool { return vm.Balloon() == 0 }, "the guest takes it back")
	require.ErrorIs(t, vm.SetBalloon(1<<40), core.ErrInvalidArgument)
}
