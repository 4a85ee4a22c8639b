// Package hypervisor is the small interface between the machine and the host's virtualization: KVM on Linux,
// Hypervisor.framework on macOS. The backends implement it; nothing above the machine imports a backend.
package hypervisor

import (
	"errors"
	"fmt"
)

// Hypervisor creates virtual machines on this host.
type Hypervisor interface {
	// Name is the backend's short name, such as "kvm".
	Name() string
	// NewVM creates a VM with its RAM, interrupt controllers and vCPUs, none of them running. It does not block on guests.
	// The VM holds host resources until its Close.
	NewVM(VMConfig) (VM, error)
	// Compatible returns an *IncompatibleError if a vCPU that was saved with this state cannot go on here.
	Compatible(*VCPUState) error
	// CPUDigest returns a short text that is the same on hosts whose guests see the same CPU.
	CPUDigest() string
}

// VMConfig says what NewVM creates.
type VMConfig struct {
	Memory *Memory // the guest's RAM; must outlive the VM
	VCPUs  int     // number of vCPUs, at least 1
}

// VM is one virtual machine. Its methods may be called from any goroutine.
type VM interface {
	// VCPU returns vCPU number i, 0 ≤ i < VMConfig.VCPUs.
	VCPU(i int) VCPU
	// NewInterrupt returns a handle that raises interrupt line (GSI) line, edge-triggered.
	NewInterrupt(line uint32) (Interrupt, error)
	// NewDoorbell makes a 4-byte guest write of value to guest physical address addr wake Doorbell.Wait instead of
	// returning from VCPU.Run.
	NewDoorbell(addr uint64, value uint32) (Doorbell, error)
	// Save returns the state shared by all vCPUs, best right after theirs. No vCPU may be in Run.
	Save() (*VMState, error)
	// Restore loads a state that Save returned, after all vCPUs' states. No vCPU may be in Run.
	Restore(*VMState) error
	// Close releases everything. No vCPU may be in Run.
	Close() error
}

// VCPU is one virtual processor. Run, Save and Restore must not overlap; Kick may be called at any time from any goroutine.
type VCPU interface {
	// Run enters the guest on the calling OS thread, which must be locked to the goroutine, and blocks until the guest needs
	// the host or Kick is called. Before the next Run the caller fills Exit.Data of a read; that Run completes the access.
	Run() (Exit, error)
	// Kick makes the current Run, or else the next one, return ExitKicked.
	Kick()
	// Save returns the vCPU's whole state. A pending port or MMIO access must have been completed by a Run.
	Save() (*VCPUState, error)
	// Restore loads a state that Save returned, or that the machine built for a boot.
	Restore(*VCPUState) error
	// BootState returns the state after reset, for the machine to set entry registers in; it holds the vCPU's CPUID.
	BootState() (*VCPUState, error)
	// Paused tells the guest, before the next Run, that it was stopped by the host, so that its watchdogs do not bark at the lost time.
	Paused()
	// PageFaults returns how many accesses of the guest to its memory the host has had to resolve since the vCPU was made. It may be called while
	// the vCPU runs. Where the host does not count them that is an error.
	PageFaults() (uint64, error)
}

// ExitReason is why VCPU.Run returned.
type ExitReason int

const (
	ExitKicked   ExitReason = iota // Kick was called
	ExitPort                       // port I/O (x86): Exit.Addr is the port
	ExitMMIO                       // access to an address without RAM
	ExitHalt                       // the vCPU executed HLT and no interrupt controller is there to wake it
	ExitShutdown                   // triple fault, or the guest asked the platform to go down
)

// Exit tells what the guest wants. Data aliases memory of the vCPU and is valid until the next Run.
type Exit struct {
	Reason ExitReason
	Addr   uint64 // port number or guest physical address
	Write  bool   // the guest writes Data; otherwise the caller fills it
	Data   []byte // the bytes of the access; a repeated port access holds Count items of Size bytes
	Size   int    // bytes of one item
}

// Interrupt raises one interrupt line of the guest.
type Interrupt interface {
	// Raise signals the line once. It never blocks and may be called from any goroutine; after Close it does nothing.
	Raise()
	Close() error
}

// Doorbell waits for one kind of guest write.
type Doorbell interface {
	// Wait blocks until the guest has written since the last Wait, or Close. It returns false after Close.
	Wait() bool
	// Ring wakes Wait as a guest's write would.
	Ring()
	Close() error
}

// ErrIncompatible is matched (errors.Is) by every IncompatibleError.
var ErrIncompatible = errors.New("another CPU")

// IncompatibleError says why a saved vCPU cannot go on on this host.
type IncompatibleError struct {
	Reason string // what the host lacks or has differently
}

func (e *IncompatibleError) Error() string {
	return "this host's CPU cannot continue the saved machine: " + e.Reason
}

// Is reports that every IncompatibleError is an ErrIncompatible.
func (e *IncompatibleError) Is(target error) bool { return target == ErrIncompatible }

// ErrUnavailable is matched (errors.Is) by every UnavailableError.
var ErrUnavailable = errors.New("virtualization is not available")

// UnavailableError says why this host cannot run VMs and what to do about it.
type UnavailableError struct {
	Reason string // what is missing
	Fix    string // what the user can do
	Err    error  // the cause, may be nil
}

// Cause returns the reason together with the underlying error, if there is one.
func (e *UnavailableError) Cause() string {
	if e.Err != nil {
		return fmt.Sprintf("%s (%v)", e.Reason, e.Err)
	}
	return e.Reason
}

func (e *UnavailableError) Error() string {
	s := fmt.Sprintf("%v: %s", ErrUnavailable, e.Cause())
	if e.Fix != "" {
		s += "; " + e.Fix
	}
	return s
}

// Is reports that every UnavailableError is an ErrUnavailable.
func (e *UnavailableError) Is(target error) bool { return target == ErrUnavailable }

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }
