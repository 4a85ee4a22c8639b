//go:build linux

// Command kvmcheck makes a virtual machine, runs a guest of a few bytes in it and closes it: the smallest proof that KVM works.
// It prints "ok".
package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/kvm"
)

func main() {
	if err := check(); err != nil {
		fmt.Fprintf(os.Stderr, "kvmcheck: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("ok")
}

// entry is where the guest's code lies.
const entry = 0x1000

// guest writes the byte 0x2a to port 0x10, in real mode.
var guest = []byte{0xb0, 0x2a, 0xe6, 0x10} // mov al,0x2a; out 0x10,al

func check() (err error) {
	runtime.LockOSThread()
	system, err := kvm.Open()
	if err != nil {
		return err
	}
	ram, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map the guest's memory: %w", err)
	}
	defer unix.Munmap(ram)
	copy(ram[entry:], guest)
	vm, err := system.NewVM(hypervisor.VMConfig{Memory: hypervisor.NewMemory(hypervisor.Region{Bytes: ram}), VCPUs: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	vcpu := vm.VCPU(0)
	state, err := vcpu.BootState()
	if err != nil {
		return err
	}
	state.Sregs.CS.Base, state.Sregs.CS.Selector = 0, 0
	state.Regs = hypervisor.Registers{RIP: entry, RFLAGS: 2}
	if err := vcpu.Restore(state); err != nil {
		return err
	}
	exit, err := vcpu.Run()
	if err != nil {
		return err
	}
	if exit.Reason != hypervisor.ExitPort || exit.Addr != 0x10 || string(exit.Data) != "\x2a" {
		return fmt.Errorf("the guest ended with %+v instead of writing to the port", exit)
	}
	return nil
}
