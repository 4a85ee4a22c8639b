package kvm

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// Intel's real-mode and EPT helper pages live right below the LAPIC's 4 GiB neighbourhood, where no RAM or device is.
const (
	identityMapAddr = 0xfffbc000
	tssAddr         = 0xfffbd000
)

// VM is one KVM virtual machine with its in-kernel interrupt controllers and timer.
type VM struct {
	sys   *System
	fd    int
	vcpus []*VCPU
}

// userMemoryRegion has the layout of struct kvm_userspace_memory_region.
type userMemoryRegion struct {
	slot, flags               uint32
	guestPhysAddr, memorySize uint64
	userspaceAddr             uint64
}

type pitConfig struct {
	flags uint32
	_     [15]uint32
}

// NewVM creates a VM. The memory slots are set before the interrupt controllers are made: after them each slot
// costs an SRCU grace period of several milliseconds.
func (s *System) NewVM(cfg hypervisor.VMConfig) (hypervisor.VM, error) {
	if cfg.VCPUs < 1 || cfg.VCPUs > s.MaxVCPUs() {
		return nil, fmt.Errorf("kvm: create VM: %d vCPUs, want 1 to %d", cfg.VCPUs, s.MaxVCPUs())
	}
	fd, err := ioctl(s.fd, kvmCreateVM, 0, "KVM_CREATE_VM")
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	vm := &VM{sys: s, fd: fd}
	if err := vm.setup(cfg); err != nil {
		vm.Close()
		return nil, err
	}
	return vm, nil
}

func (vm *VM) setup(cfg hypervisor.VMConfig) error {
	for i, r := range cfg.Memory.Regions() {
		slot := userMemoryRegion{
			slot: uint32(i), guestPhysAddr: r.Addr, memorySize: uint64(len(r.Bytes)),
			userspaceAddr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(r.Bytes)))),
		}
		if err := ioctlPtr(vm.fd, kvmSetUserMemoryRegion, &slot, "KVM_SET_USER_MEMORY_REGION"); err != nil {
			return err
		}
	}
	if _, err := ioctl(vm.fd, kvmSetTSSAddr, tssAddr, "KVM_SET_TSS_ADDR"); err != nil {
		return err
	}
	identity := uint64(identityMapAddr)
	if err := ioctlPtr(vm.fd, kvmSetIdentityMapAddr, &identity, "KVM_SET_IDENTITY_MAP_ADDR"); err != nil {
		return err
	}
	if _, err := ioctl(vm.fd, kvmCreateIRQChip, 0, "KVM_CREATE_IRQCHIP"); err != nil {
		return err
	}
	// KVM_PIT_SPEAKER_DUMMY: port 0x61 is answered in the kernel too.
	if err := ioctlPtr(vm.fd, kvmCreatePIT2, &pitConfig{flags: 1}, "KVM_CREATE_PIT2"); err != nil {
		return err
	}
	for i := range cfg.VCPUs {
		v, err := vm.newVCPU(i, cfg.VCPUs)
		if err != nil {
			return err
		}
		vm.vcpus = append(vm.vcpus, v)
	}
	return nil
}

// VCPU returns vCPU number i.
func (vm *VM) VCPU(i int) hypervisor.VCPU { return vm.vcpus[i] }

// Close releases the VM. Destroying it in the kernel takes some 20 ms, so callers close off their users' paths.
func (vm *VM) Close() error {
	var errs []error
	for _, v := range vm.vcpus {
		errs = append(errs, v.close())
	}
	vm.vcpus = nil
	if vm.fd >= 0 {
		errs = append(errs, unix.Close(vm.fd))
		vm.fd = -1
	}
	return errors.Join(errs...)
}
