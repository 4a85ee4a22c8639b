package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// openAny opens /dev/kvm even where the CPU lacks vmx and svm: guests of a few instructions run there too.
func openAny(t testing.TB) *System {
	s, err := OpenUnchecked()
	if err != nil {
		t.Skipf("needs a /dev/kvm that opens: %v", err)
	}
	t.Cleanup(func() { unix.Close(s.fd) })
	return s
}

// newRealModeVM returns a one-vCPU VM about to execute code at address 0x1000 in real mode.
func newRealModeVM(t testing.TB, s *System, code []byte) (*VM, hypervisor.VCPU, []byte) {
	ram, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	copy(ram[0x1000:], code)
	vm, err := s.NewVM(hypervisor.VMConfig{Memory: hypervisor.NewMemory(hypervisor.Region{Bytes: ram}), VCPUs: 1})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, vm.Close())
		require.NoError(t, unix.Munmap(ram))
	})
	v := vm.VCPU(0)
	st, err := v.BootState()
	require.NoError(t, err)
	st.Sregs.CS.Base, st.Sregs.CS.Selector = 0, 0
	st.Regs = hypervisor.Registers{RIP: 0x1000, RFLAGS: 2}
	require.NoError(t, v.Restore(st))
	return vm.(*VM), v, ram
}

func run(t testing.TB, v hypervisor.VCPU) hypervisor.Exit {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	exit, err := v.Run()
	require.NoError(t, err)
	return exit
}

func TestGuestWritesAPort(t *testing.T) {
	_, v, _ := newRealModeVM(t, openAny(t), []byte{0xb0, 0x2a, 0xe6, 0x10}) // mov al,0x2a; out 0x10,al
	exit := run(t, v)
	require.Equal(t, hypervisor.ExitPort, exit.Reason)
	require.Equal(t, uint64(0x10), exit.Addr)
	require.True(t, exit.Write)
	require.Equal(t, []byte{0x2a}, exit.Data)
}

func TestGuestReadsMMIO(t *testing.T) {
	// mov ax,0xf000; mov ds,ax; mov al,[0xfff0+0x20 wraps]... reads physical 0x100010, which has no RAM.
	_, v, _ := newRealModeVM(t, openAny(t), []byte{0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xa0, 0x20, 0x00, 0xe6, 0x11})
	exit := run(t, v)
	require.Equal(t, hypervisor.ExitMMIO, exit.Reason)
	require.Equal(t, uint64(0x100010), exit.Addr)
	require.False(t, exit.Write)
	exit.Data[0] = 0x77
	exit = run(t, v)
	require.Equal(t, hypervisor.ExitPort, exit.Reason)
	require.Equal(t, []byte{0x77}, exit.Data)
}

func TestKickBeforeAndDuringRun(t *testing.T) {
	_, v, _ := newRealModeVM(t, openAny(t), []byte{0xeb, 0xfe}) // jmp $
	v.Kick()
	require.Equal(t, hypervisor.ExitKicked, run(t, v).Reason)
	done := make(chan hypervisor.Exit)
	go func() { done <- run(t, v) }()
	for { // a kick is never lost, so the first or the second ends the run
		v.Kick()
		select {
		case exit := <-done:
			require.Equal(t, hypervisor.ExitKicked, exit.Reason)
			return
		default:
		}
	}
}

func TestDoorbellRingsWithoutAnExit(t *testing.T) {
	// mov ax,0xffff; mov ds,ax; mov dword [0x20],5; out 0x10,al
	code := []byte{0xb8, 0xff, 0xff, 0x8e, 0xd8, 0x66, 0xc7, 0x06, 0x20, 0x00, 5, 0, 0, 0, 0xe6, 0x10}
	vm, v, _ := newRealModeVM(t, openAny(t), code)
	bell, err := vm.NewDoorbell(0x100010, 5)
	require.NoError(t, err)
	require.Equal(t, hypervisor.ExitPort, run(t, v).Reason)
	require.True(t, bell.Wait())
	require.NoError(t, bell.Close())
	require.False(t, bell.Wait())
}

// A machine that is stopped before it ran has doorbells that nobody ever waited for.
func TestEventsAreSilentAfterClose(t *testing.T) {
	vm, _, _ := newRealModeVM(t, openAny(t), nil)
	bell, err := vm.NewDoorbell(0x100010, 5)
	require.NoError(t, err)
	irq, err := vm.NewInterrupt(5)
	require.NoError(t, err)
	irq.Raise()
	for range 2 {
		require.NoError(t, bell.Close())
		require.NoError(t, irq.Close())
		require.False(t, bell.Wait())
		bell.Ring()
		irq.Raise()
	}
}

// The counter in the guest's registers and memory goes on where it stood, in another VM.
func TestSaveAndRestoreContinueTheGuest(t *testing.T) {
	s := openAny(t)
	// inc cx; mov ax,cx; out 0x10,ax; jmp back
	vm, v, _ := newRealModeVM(t, s, []byte{0x41, 0x89, 0xc8, 0xe7, 0x10, 0xeb, 0xf9})
	for range 3 {
		run(t, v)
	}
	v.Kick() // completes the port access
	require.Equal(t, hypervisor.ExitKicked, run(t, v).Reason)
	vmState, err := vm.Save()
	require.NoError(t, err)
	vcpuState, err := v.Save()
	require.NoError(t, err)

	vm2, v2, _ := newRealModeVM(t, s, []byte{0x41, 0x89, 0xc8, 0xe7, 0x10, 0xeb, 0xf9})
	require.NoError(t, v2.Restore(vcpuState))
	require.NoError(t, vm2.Restore(vmState))
	exit := run(t, v2)
	require.Equal(t, []byte{4, 0}, exit.Data)
}

func TestUnavailableHostsAreExplained(t *testing.T) {
	dir := t.TempDir()
	noFlags := filepath.Join(dir, "cpuinfo")
	require.NoError(t, os.WriteFile(noFlags, []byte("flags\t\t: fpu sse\n"), 0o600))
	_, err := open(filepath.Join(dir, "kvm"), noFlags)
	require.ErrorIs(t, err, hypervisor.ErrUnavailable)
	require.ErrorContains(t, err, "does not exist")

	notKVM := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(notKVM, nil, 0o600))
	_, err = open(notKVM, noFlags)
	require.ErrorIs(t, err, hypervisor.ErrUnavailable)
	require.ErrorContains(t, err, "version 12")

	if os.Geteuid() != 0 {
		require.NoError(t, os.Chmod(notKVM, 0))
		_, err = open(notKVM, noFlags)
		require.ErrorContains(t, err, "kvm group")
	}
	if _, err := os.Stat(DevicePath); err == nil {
		_, err = open(DevicePath, noFlags)
		var unavailable *hypervisor.UnavailableError
		require.True(t, errors.As(err, &unavailable))
		require.Contains(t, unavailable.Reason, "neither vmx nor svm")
	}
}
