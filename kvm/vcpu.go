package kvm

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// The exits of KVM_RUN that can happen to a VM with in-kernel interrupt controllers (KVM API doc §5).
const (
	exitUnknown       = 0
	exitIO            = 2
	exitHLT           = 5
	exitMMIO          = 6
	exitShutdown      = 8
	exitFailEntry     = 9
	exitInternalError = 17
	exitSystemEvent   = 24
)

// VCPU is one virtual processor: a descriptor and the page(s) it shares with the kernel (struct kvm_run).
type VCPU struct {
	sys    *System
	fd     int
	id     int
	shared []byte
	tscKHz uint32                  // 0: not asked yet
	cpuid  []hypervisor.CPUIDEntry // must not change once the vCPU has run

	tid    atomic.Int32 // the thread in Run, 0 outside
	kicked atomic.Bool
}

func (vm *VM) newVCPU(id, total int) (*VCPU, error) {
	fd, err := ioctl(vm.fd, kvmCreateVCPU, uintptr(id), "KVM_CREATE_VCPU")
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	v := &VCPU{sys: vm.sys, fd: fd, id: id, cpuid: vcpuCPUID(vm.sys.cpuid, id, total)}
	v.shared, err = unix.Mmap(fd, 0, vm.sys.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("kvm: map the run area of vCPU %d: %w", id, err)
	}
	// Set now what a saved state most likely has too: where a machine is made before it is known what for, that is off the restore's path.
	if err := v.setCPUID(v.cpuid); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

func (v *VCPU) close() error {
	return errors.Join(unix.Munmap(v.shared), unix.Close(v.fd))
}

// immediateExit returns the word of struct kvm_run that holds request_interrupt_window (byte 0, unused with in-kernel
// interrupt controllers) and immediate_exit (byte 1), so that it can be stored to atomically while the kernel reads it.
func (v *VCPU) immediateExit() *uint32 { return (*uint32)(unsafe.Pointer(&v.shared[0])) }

const immediateExitSet = 1 << 8

// Kick makes Run return: immediate_exit catches a thread that is about to enter the guest, the signal one that is inside.
// SIGURG is the signal the Go runtime already owns and ignores when it is spurious.
func (v *VCPU) Kick() {
	v.kicked.Store(true)
	atomic.StoreUint32(v.immediateExit(), immediateExitSet)
	if tid := v.tid.Load(); tid != 0 {
		unix.Tgkill(os.Getpid(), int(tid), unix.SIGURG)
	}
}

// Paused implements hypervisor.VCPU (KVM API doc §4.69, KVM_KVMCLOCK_CTRL). It fails harmlessly where the guest does not use kvm-clock.
func (v *VCPU) Paused() { _, _ = ioctl(v.fd, kvmKVMClockCtrl, 0, "KVM_KVMCLOCK_CTRL") }

// Run enters the guest (KVM API doc §4.10).
func (v *VCPU) Run() (hypervisor.Exit, error) {
	v.tid.Store(int32(unix.Gettid()))
	defer v.tid.Store(0)
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), kvmRun, 0)
		switch errno {
		case 0:
			return v.exit()
		case unix.EINTR, unix.EAGAIN:
			// In this order: a Kick that is between its two stores must not leave immediate_exit set for ever.
			atomic.StoreUint32(v.immediateExit(), 0)
			if v.kicked.CompareAndSwap(true, false) {
				return hypervisor.Exit{Reason: hypervisor.ExitKicked}, nil
			}
		default:
			return hypervisor.Exit{}, fmt.Errorf("kvm: KVM_RUN of vCPU %d: %w", v.id, errno)
		}
	}
}

func field[T any](v *VCPU, off int) T { return *(*T)(unsafe.Pointer(&v.shared[off])) }

// exit decodes struct kvm_run; its union starts at byte 32.
func (v *VCPU) exit() (hypervisor.Exit, error) {
	const union = 32
	switch reason := field[uint32](v, 8); reason {
	case exitIO:
		size, count := int(v.shared[union+1]), int(field[uint32](v, union+4))
		off := int(field[uint64](v, union+8))
		return hypervisor.Exit{
			Reason: hypervisor.ExitPort, Addr: uint64(field[uint16](v, union+2)), Write: v.shared[union] == 1,
			Data: v.shared[off : off+size*count], Size: size,
		}, nil
	case exitMMIO:
		n := int(field[uint32](v, union+16))
		return hypervisor.Exit{
			Reason: hypervisor.ExitMMIO, Addr: field[uint64](v, union), Write: v.shared[union+20] != 0,
			Data: v.shared[union+8 : union+8+n], Size: n,
		}, nil
	case exitHLT:
		return hypervisor.Exit{Reason: hypervisor.ExitHalt}, nil
	case exitShutdown, exitSystemEvent:
		return hypervisor.Exit{Reason: hypervisor.ExitShutdown}, nil
	case exitFailEntry:
		return hypervisor.Exit{}, fmt.Errorf("kvm: vCPU %d failed to enter the guest: hardware reason %#x", v.id, field[uint64](v, union))
	case exitInternalError:
		return hypervisor.Exit{}, fmt.Errorf("kvm: internal error on vCPU %d: suberror %d", v.id, field[uint32](v, union))
	case exitUnknown:
		return hypervisor.Exit{}, fmt.Errorf("kvm: unknown exit of vCPU %d: hardware reason %#x", v.id, field[uint64](v, union))
	default:
		return hypervisor.Exit{}, fmt.Errorf("kvm: exit reason %d of vCPU %d is not supported", reason, v.id)
	}
}
