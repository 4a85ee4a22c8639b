package kvm

import (
	"encoding/binary"
	"os"
	"sync"

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

func newEventFD() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, os.NewSyscallError("eventfd", err)
	}
	return fd, nil
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// interrupt has no os.File: that asks the kernel twice about a descriptor that nobody waits for, on the path of each restore.
type interrupt struct {
	mu sync.RWMutex // held for reading by those who use fd
	fd int          // -1 after Close
}

// NewInterrupt binds an eventfd to interrupt line gsi (KVM API doc §4.75): raising it needs no call into the VM.
func (vm *VM) NewInterrupt(gsi uint32) (hypervisor.Interrupt, error) {
	fd, err := newEventFD()
	if err != nil {
		return nil, err
	}
	if err := ioctlPtr(vm.fd, kvmIRQFD, &irqfd{fd: uint32(fd), gsi: gsi}, "KVM_IRQFD"); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &interrupt{fd: fd}, nil
}

func (i *interrupt) Raise() {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if i.fd >= 0 {
		unix.Write(i.fd, one)
	}
}

func (i *interrupt) Close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	fd := i.fd
	if i.fd = -1; fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// doorbell gives its descriptor to Go's poller when somebody waits for the first time, which is after a restored guest has begun to run.
type doorbell struct {
	mu   sync.Mutex // guards what follows
	fd   int        // -1 after Close
	file *os.File   // has fd from the first Wait on

	buf [8]byte
}

// NewDoorbell registers an ioeventfd with datamatch (KVM API doc §4.59).
func (vm *VM) NewDoorbell(addr uint64, value uint32) (hypervisor.Doorbell, error) {
	fd, err := newEventFD()
	if err != nil {
		return nil, err
	}
	arg := ioeventfd{datamatch: uint64(value), addr: addr, len: 4, fd: int32(fd), flags: 1 /* KVM_IOEVENTFD_FLAG_DATAMATCH */}
	if err := ioctlPtr(vm.fd, kvmIOEventFD, &arg, "KVM_IOEVENTFD"); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &doorbell{fd: fd}, nil
}

// open returns nil after Close.
func (d *doorbell) open() *os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.file == nil && d.fd >= 0 {
		d.file = os.NewFile(uintptr(d.fd), "eventfd")
	}
	return d.file
}

func (d *doorbell) Wait() bool {
	f := d.open()
	if f == nil {
		return false
	}
	_, err := f.Read(d.buf[:])
	return err == nil
}

func (d *doorbell) Ring() {
	if f := d.open(); f != nil {
		f.Write(one)
	}
}

func (d *doorbell) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	fd := d.fd
	d.fd = -1
	switch {
	case d.file != nil:
		return d.file.Close()
	case fd >= 0:
		return unix.Close(fd)
	}
	return nil
}
