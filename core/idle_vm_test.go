package core_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// A VM that nobody uses sleeps, whatever its guest does, and the next use wakes it up.
func TestUnusedVMsSleep(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{IdleTimeout: time.Second})
	require.NoError(t, err)
	defer vm.Close()
	require.NoError(t, vm.StartWorkload(t.Context(), core.Exec{Args: []string{"sh", "-c", "echo ok > /tmp/hello; exec httpd -f -p 7200 -h /tmp"}}))
	p, err := vm.Exec(t.Context(), core.Exec{Args: []string{"sleep", "3"}})
	require.NoError(t, err)
	_, err = p.Wait()
	require.NoError(t, err, "it does not sleep under a program")
	require.False(t, vm.Asleep())

	asleep := func() { t.Helper(); eventually(t, vm.Asleep, "the VM sleeps") }
	require.Equal(t, "hi", vmtest.Shell(t, vm, "echo hi"))
	eventually(t, func() bool { _, err := vm.Stats(t.Context()); return err == nil && vm.Asleep() }, "who is watched all the time sleeps too")
	st, err := vm.Stats(t.Context())
	require.NoError(t, err)
	require.Zero(t, st.Guest)
	require.True(t, vm.Asleep(), "measuring is no use")
	require.Equal(t, "hi", vmtest.Shell(t, vm, "echo hi"))
	asleep()
	c, err := vm.Connect(t.Context(), 7200)
	require.NoError(t, err)
	require.Contains(t, ask(t, c, "GET /hello HTTP/1.0\r\n\r\n"), "ok")
	asleep()
	_, _, err = vm.Programs(t.Context())
	require.NoError(t, err)
	asleep()

	require.NoError(t, vm.Pause(), "a sleep becomes a pause")
	require.False(t, vm.Asleep())
	require.NoError(t, vm.Resume())
	asleep()
	children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
	require.NoError(t, err)
	defer children[0].Close()
	require.Equal(t, "hi", vmtest.Shell(t, children[0], "echo hi"))
	asleep()
	require.NoError(t, vm.Stop(t.Context(), 0))
	require.Equal(t, core.EndStopped, vm.End().Reason)
}

func TestLifetimesEnd(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Lifetime: time.Second})
	require.NoError(t, err)
	defer vm.Close()
	end, err := vm.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, core.End{Reason: core.EndExpired}, end)
	_, err = vm.Run(t.Context(), core.Exec{Args: []string{"true"}})
	require.ErrorIs(t, err, core.ErrVMEnded)
	require.ErrorContains(t, err, "expired")
}
