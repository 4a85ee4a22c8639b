package core_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

func openSnapshots(t *testing.T) *core.Snapshots {
	t.Helper()
	store, err := core.OpenSnapshots(t.TempDir(), nil)
	require.NoError(t, err)
	return store
}

func imageRef(t *testing.T, name string) string {
	return "oci:" + vmtest.ImagesDir(t) + "/" + name + ":latest"
}

// bake makes a snapshot of a test image and closes it at the test's end.
func bake(t *testing.T, store *core.Snapshots, spec core.BakeSpec) *core.Snapshot {
	t.Helper()
	vmtest.RequireKVM(t)
	snap, err := store.Bake(t.Context(), spec)
	require.NoError(t, err)
	t.Cleanup(func() { snap.Close() })
	return snap
}

func restore(t *testing.T, snap *core.Snapshot) *core.VM {
	t.Helper()
	vm, err := snap.Start(t.Context(), core.StartOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { vm.Close() })
	return vm
}

func closeAll(vms []*core.VM) {
	var wg sync.WaitGroup
	for _, vm := range vms {
		wg.Go(func() { vm.Close() })
	}
	wg.Wait()
}

// RAM alone proves a restore: a counter in a shell's memory goes on where it stood, while the boot's identifier stays.
func TestRestoredVMsGoOnWhereTheSnapshotStands(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	counter := `nonce=$(cat /proc/sys/kernel/random/uuid); n=0; while :; do n=$((n+1)); echo $nonce $n > /tmp/.state; mv /tmp/.state /tmp/state; done`
	snap := bake(t, store, core.BakeSpec{
		Ref: imageRef(t, "busybox"), Entrypoint: []string{"/bin/sh", "-c", counter}, Ready: core.ReadyCommand("/bin/sh", "-c", "read a n < /tmp/state && [ $n -gt 100 ]"),
		Timeout: 5 * time.Minute,
	})
	var nonces []string
	for range 2 {
		vm := restore(t, snap)
		nonce, first, _ := strings.Cut(vmtest.Shell(t, vm, "cat /tmp/state"), " ")
		nonces = append(nonces, nonce)
		require.NotEqual(t, "0", first)
		var before int
		_, err := fmt.Sscan(first, &before)
		require.NoError(t, err)
		require.Greater(t, before, 100, "it did not begin again")
		eventually(t, func() bool {
			_, n, _ := strings.Cut(vmtest.Shell(t, vm, "cat /tmp/state"), " ")
			var now int
			fmt.Sscan(n, &now)
			return now > before
		}, "the counter goes on")
		require.Equal(t, "1", vmtest.Shell(t, vm, "cat /run/supermachine/generation"))
		require.Equal(t, vm.RestoreID(), vmtest.Shell(t, vm, "cat /run/supermachine/restore-id"))
		require.Equal(t, vm.Name(), vmtest.Shell(t, vm, "hostname"))
		faults, err := vm.PageFaults()
		require.NoError(t, err)
		require.Greater(t, faults, uint64(10), "its memory comes as it is used")
	}
	require.Equal(t, nonces[0], nonces[1], "both have the same past")
}

func TestABakeIsReusedUntilAnInputChanges(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	spec := core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true}
	first := bake(t, store, spec)
	again := bake(t, store, spec)
	require.Equal(t, first.Info().ID, again.Info().ID)
	require.Equal(t, first.Info().Created, again.Info().Created)
	spec.Warmup = [][]string{{"/bin/sh", "-c", "echo warm > /tmp/warm"}}
	other := bake(t, store, spec)
	require.NotEqual(t, first.Info().ID, other.Info().ID)
	vm := restore(t, other)
	require.Equal(t, "warm", vmtest.Shell(t, vm, "cat /tmp/warm"))

	all, err := store.List()
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.NoError(t, store.Remove(t.Context(), first.Info().ID))
	_, err = store.Load(t.Context(), first.Info().ID, core.VerifyOnce)
	require.ErrorIs(t, err, core.ErrNotFound)
	require.Equal(t, "1", vmtest.Shell(t, restore(t, first), "cat /run/supermachine/generation"), "who has it loaded is not disturbed")
}

func TestServersServeFromTheSnapshotOn(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "debian"), GuestPort: 80})
	require.True(t, snap.Info().Workload)
	vm := restore(t, snap)
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return vm.Connect(ctx, vm.GuestPort()) },
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://guest/")
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "Welcome to nginx")
	require.NoError(t, vm.Stop(t.Context(), 10*time.Second))
	require.Equal(t, core.EndStopped, vm.End().Reason)
}

func TestForksGoOnFromTheSameInstant(t *testing.T) {
	t.Parallel()
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{VCPUs: 2})
	vmtest.Shell(t, vm, "echo before > /tmp/file; mkfifo /tmp/gate")
	p, err := vm.Exec(t.Context(), core.Exec{Args: []string{"/bin/sh", "-c", "secret=$(cat /proc/sys/kernel/random/uuid); echo $secret > /tmp/secret; read x < /tmp/gate; echo $secret $x > /tmp/result"}})
	require.NoError(t, err)
	eventually(t, func() bool { return vmtest.Shell(t, vm, "cat /tmp/secret 2>/dev/null || true") != "" }, "the program waits")
	secret := vmtest.Shell(t, vm, "cat /tmp/secret")

	children, err := vm.Fork(t.Context(), 3, core.ForkOptions{Child: func(i int) core.StartOptions { return core.StartOptions{Name: fmt.Sprintf("child-%d", i)} }})
	require.NoError(t, err)
	defer closeAll(children)
	for i, c := range append(children, vm) {
		vmtest.Shell(t, c, fmt.Sprintf("echo %d > /tmp/gate", i))
		eventually(t, func() bool { return vmtest.Shell(t, c, "cat /tmp/result 2>/dev/null || true") != "" }, "VM %d", i)
		require.Equal(t, fmt.Sprintf("%s %d", secret, i), vmtest.Shell(t, c, "cat /tmp/result"))
		require.Equal(t, "before", vmtest.Shell(t, c, "cat /tmp/file"))
		vmtest.Shell(t, c, fmt.Sprintf("echo %d > /tmp/file", i))
		if c != vm {
			require.Equal(t, fmt.Sprintf("child-%d", i), vmtest.Shell(t, c, "hostname"))
		}
	}
	_, err = p.Wait()
	require.NoError(t, err, "the parent's program was not harmed")
	for i, c := range append(children, vm) {
		require.Equal(t, fmt.Sprint(i), vmtest.Shell(t, c, "cat /tmp/file"), "each has its own disk")
	}
	grand, err := children[0].Fork(t.Context(), 1, core.ForkOptions{})
	require.NoError(t, err)
	defer closeAll(grand)
	require.Equal(t, "2", vmtest.Shell(t, grand[0], "cat /run/supermachine/generation"))
}

func TestRunningVMsAreSavedWholeAndAsDifferences(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	base := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	vm := restore(t, base)
	vmtest.Shell(t, vm, "head -c 3000000 /dev/urandom > /file; sha256sum < /file > /sum; sync")
	sum := vmtest.Shell(t, vm, "cat /sum")
	whole, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{Name: "whole"})
	require.NoError(t, err)
	defer whole.Close()
	diff, err := vm.Snapshot(t.Context(), store, core.SnapshotOptions{Name: "diff", Base: base})
	require.NoError(t, err)
	defer diff.Close()
	require.Equal(t, base.Info().ID, diff.Info().Base)
	require.Equal(t, sum, vmtest.Shell(t, vm, "sha256sum < /file"), "the VM runs on")
	sizes := map[string]int64{}
	all, err := store.List()
	require.NoError(t, err)
	for _, i := range all {
		sizes[i.Name] = i.Bytes
	}
	require.Less(t, sizes["diff"], sizes["whole"])
	require.ErrorIs(t, store.Remove(t.Context(), base.Info().ID), core.ErrInUse)
	for _, snap := range []*core.Snapshot{whole, diff} {
		copied := restore(t, snap)
		require.Equal(t, sum, vmtest.Shell(t, copied, "sha256sum < /file"))
		require.Equal(t, "2", vmtest.Shell(t, copied, "cat /run/supermachine/generation"))
	}
	flat, err := store.Flatten(t.Context(), "diff")
	require.NoError(t, err)
	snap, err := store.Load(t.Context(), flat, core.VerifyAlways)
	require.NoError(t, err)
	defer snap.Close()
	require.Empty(t, snap.Info().Base)
	require.Equal(t, sum, vmtest.Shell(t, restore(t, snap), "sha256sum < /file"))
}

func TestPooledVMsAreCleanAfterUse(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	for _, replace := range []bool{false, true} {
		pool, err := core.NewPool(snap, core.PoolConfig{Min: 1, Max: 2, Replace: replace})
		require.NoError(t, err)
		for range 5 {
			g, err := pool.Acquire(t.Context())
			require.NoError(t, err)
			vm := g.Value()
			require.Equal(t, "clean", vmtest.Shell(t, vm, "cat /tmp/dirt /dev/shm/dirt 2>/dev/null || echo clean"))
			vmtest.Shell(t, vm, "echo dirt > /tmp/dirt; echo dirt > /dev/shm/dirt; hostname dirt")
			g.Release()
		}
		require.NoError(t, pool.Close())
		st := pool.Stats()
		if !replace {
			require.NotZero(t, st.Resets)
		}
	}
}

func TestWorkloadsThatAreNeverReadyAreReported(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	store := openSnapshots(t)
	for name, test := range map[string]struct {
		spec core.BakeSpec
		says string
	}{
		"never listens": {core.BakeSpec{Cmd: []string{"sh", "-c", "echo still thinking; sleep 1000"}, GuestPort: 80, Timeout: 8 * time.Second}, "still thinking"},
		"ends":          {core.BakeSpec{Cmd: []string{"sh", "-c", "echo no license; exit 3"}, GuestPort: 80}, "status 3"},
		"bad warmup":    {core.BakeSpec{BootOnly: true, Warmup: [][]string{{"sh", "-c", "echo no such module; exit 1"}}}, "no such module"},
	} {
		test.spec.Ref = imageRef(t, "busybox")
		_, err := store.Bake(t.Context(), test.spec)
		require.ErrorIs(t, err, core.ErrNotReady, name)
		require.ErrorContains(t, err, test.says, name)
	}
	_, err := store.Bake(t.Context(), core.BakeSpec{Ref: imageRef(t, "busybox"), Entrypoint: []string{"/no/such"}, GuestPort: 80})
	require.ErrorIs(t, err, core.ErrCommandNotFound)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = store.Bake(ctx, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	require.ErrorIs(t, err, core.ErrCanceled)
	all, err := store.List()
	require.NoError(t, err)
	require.Empty(t, all)
}
