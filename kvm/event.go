package kvm

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// irqfd has the layout of struct kvm_irqfd.
type irqfd struct {
	fd, gsi, flags, resampleFD uint32
	_                          [16]byte
}

// ioeventfd has the layout of struct kvm_ioeventfd.
type ioeventfd struct {
	datamatch, addr uint64
	len             uint32
	fd              int32
	flags           uint32
	_               [36]byte
}

// newEventFile returns an eventfd that Go's poller waits on, and its descriptor for KVM.
func newEventFile() (*os.File, int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, 0, os.NewSyscallError("eventfd", err)
	}
	return os.NewFile(uintptr(fd), "eventfd"), fd, nil
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

type interrupt struct {
	file *os.File
}

// NewInterrupt binds an eventfd to interrupt line gsi (KVM API doc §4.75): raising it needs no call into the VM.
func (vm *VM) NewInterrupt(gsi uint32) (hypervisor.Interrupt, error) {
	file, fd, err := newEventFile()
	if err != nil {
		return nil, err
	}
	if err := ioctlPtr(vm.fd, kvmIRQFD, &irqfd{fd: uint32(fd), gsi: gsi}, "KVM_IRQFD"); err != nil {
		file.Close()
		return nil, err
	}
	return &interrupt{file: file}, nil
}

func (i *interrupt) Raise()       { i.file.Write(one) }
func (i *interrupt) Close() error { return i.file.Close() }

type doorbell struct {
	file *os.File
	buf  [8]byte
}

// NewDoorbell registers an ioeventfd with datamatch (KVM API doc §4.59).
func (vm *VM) NewDoorbell(addr uint64, value uint32) (hypervisor.Doorbell, error) {
	file, fd, err := newEventFile()
	if err != nil {
		return nil, err
	}
	arg := ioeventfd{datamatch: uint64(value), addr: addr, len: 4, fd: int32(fd), flags: 1 /* KVM_IOEVENTFD_FLAG_DATAMATCH */}
	if err := ioctlPtr(vm.fd, kvmIOEventFD, &arg, "KVM_IOEVENTFD"); err != nil {
		file.Close()
		return nil, err
	}
	return &doorbell{file: file}, nil
}

func (d *doorbell) Wait() bool {
	_, err := d.file.Read(d.buf[:])
	return err == nil
}

func (d *doorbell) Ring()        { d.file.Write(one) }
func (d *doorbell) Close() error { return d.file.Close() }
