package core_test

import (
	"bytes"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// waitEnd waits for the VM's end and checks that everything afterwards says so.
func waitEnd(t *testing.T, vm *core.VM) core.End {
	t.Helper()
	end, err := vm.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, end, vm.End())
	_, err = vm.Run(t.Context(), core.Exec{Args: []string{"true"}})
	require.ErrorIs(t, err, core.ErrVMEnded)
	require.ErrorContains(t, err, end.Reason.String())
	_, err = vm.Connect(t.Context(), 80)
	require.ErrorIs(t, err, core.ErrVMEnded)
	require.ErrorIs(t, vm.Pause(), core.ErrVMEnded)
	require.ErrorIs(t, vm.Resume(), core.ErrVMEnded)
	require.NoError(t, vm.Stop(t.Context(), time.Second), "stopping an ended VM is allowed")
	require.NoError(t, vm.Close())
	require.NoError(t, vm.Close(), "closing twice is allowed")
	require.Equal(t, end, vm.End(), "the first reason stands")
	return end
}

func TestGuestThatEndsItselfIsReportedAsWhatItDid(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, script string
		reason       core.EndReason
		detail       string
	}{
		{"reboot", "reboot -f", core.EndRebooted, ""},
		{"power-off", "poweroff -f", core.EndPoweredOff, ""},
		// Whoever runs out of memory takes the whole kernel with it, if the guest wants it so.
		{"panic", "echo 2 >/proc/sys/vm/panic_on_oom; tail /dev/zero", core.EndPanicked, "Out of memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64})
			// The program's own end may or may not get out in time.
			if out, err := vm.Run(t.Context(), sh(c.script+"; sleep 1000")); err == nil {
				require.Equal(t, syscall.SIGKILL, out.Signal)
			} else {
				require.ErrorIs(t, err, core.ErrVMEnded)
			}
			end := waitEnd(t, vm)
			require.Equal(t, c.reason, end.Reason, end)
			require.Contains(t, end.Detail, c.detail)
			if c.detail == "" {
				require.Empty(t, end.Detail)
			}
		})
	}
}

func TestProgramOutOfMemoryIsKilledAloneAndTheVMLives(t *testing.T) {
	t.Parallel()
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64})
	out, err := vm.Run(t.Context(), core.Exec{Args: []string{"tail", "/dev/zero"}})
	require.NoError(t, err)
	require.Equal(t, syscall.SIGKILL, out.Signal)
	require.False(t, out.TimedOut)
	require.Equal(t, "alive", vmtest.Shell(t, vm, "echo alive"))
}

func TestKillEndsTheVMAtOnce(t *testing.T) {
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64})
	p, err := vm.Exec(t.Context(), sh("sleep 1000"))
	require.NoError(t, err)
	require.NoError(t, vm.Pause(), "a paused VM is no exception")
	vm.Kill()
	_, err = p.Wait()
	require.ErrorIs(t, err, core.ErrVMEnded)
	require.Equal(t, core.End{Reason: core.EndStopped}, waitEnd(t, vm))
}

// startMain starts the workload and waits until it says that it is ready.
func startMain(t *testing.T, vm *core.VM, script string) (p *core.Process, rest lines) {
	t.Helper()
	out := newPipe()
	req := sh(script)
	req.Main, req.Stdout = true, out.w
	p, err := vm.Exec(t.Context(), req)
	require.NoError(t, err)
	rest = newLines(out.r)
	require.Equal(t, "ready", rest.next(t))
	return p, rest
}

func TestStopGivesTheWorkloadItsSignalAndTime(t *testing.T) {
	t.Parallel()
	for signal, config := range map[string]v1.Config{"TERM": {}, "USR2": {StopSignal: "SIGUSR2"}} {
		t.Run(signal, func(t *testing.T) {
			vm := vmtest.Start(t, busyboxWith(t, config), core.Config{MemoryMiB: 64})
			p, out := startMain(t, vm, "trap 'sleep 0.3; echo tidied up; exit 9' "+signal+"; echo ready; while :; do sleep 0.1; done")
			stopped := make(chan error, 1)
			go func() { stopped <- vm.Stop(t.Context(), time.Minute) }()
			require.Equal(t, "tidied up", out.next(t))
			st, err := p.Wait()
			require.NoError(t, err)
			require.Equal(t, 9, st.Code)
			require.NoError(t, <-stopped)
			require.Equal(t, core.End{Reason: core.EndStopped}, waitEnd(t, vm))
		})
	}
}

func TestStopDoesNotWaitForAWorkloadThatIgnoresIt(t *testing.T) {
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64})
	p, _ := startMain(t, vm, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
	require.NoError(t, vm.Stop(t.Context(), 300*time.Millisecond))
	st, err := p.Wait()
	if err == nil {
		require.Equal(t, syscall.SIGKILL, st.Signal)
	} else {
		require.ErrorIs(t, err, core.ErrVMEnded)
	}
	require.Equal(t, core.End{Reason: core.EndStopped}, waitEnd(t, vm))
}

func TestStopWithoutAWorkload(t *testing.T) {
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 64})
	require.NoError(t, vm.WriteFile(t.Context(), "/file", bytes.NewReader([]byte("x")), 0o600))
	require.NoError(t, vm.Stop(t.Context(), time.Minute))
	require.Equal(t, core.End{Reason: core.EndStopped}, waitEnd(t, vm))
}
