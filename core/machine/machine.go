// Package machine is the board: physical memory map, boot, device wiring, the vCPUs' run loops, pause and resume, and the state of all
// of it. It knows nothing of images or agents.
package machine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/virtio"
)

// Config describes one machine.
type Config struct {
	Hypervisor hypervisor.Hypervisor
	MemoryMiB  int // MinMemoryMiB to MaxMemoryMiB
	VCPUs      int // 1 to MaxVCPUs
	// CPULimit is how many of the host's CPUs the vCPUs may use on average, such as 0.5; 0: no limit.
	CPULimit float64
	// Threads, if not nil, is the file cgroup.threads of a cgroup (v2) that the vCPUs' threads are put into. The machine closes it.
	Threads *os.File
	// Memory is the guest's RAM where the caller maps it (a snapshot's memory image); nil allocates MemoryMiB. The machine takes
	// ownership and unmaps it.
	Memory *hypervisor.Memory
	// Devices appear to the guest in this order, which must be the same in a machine that restores a state, MaxDevices at most. Nil is an empty
	// place: a machine that restores the state may have a device there, of which the guest learns when it looks again. The machine closes them.
	Devices []virtio.Device
	// Serial receives what the guest writes to its first serial port.
	Serial io.Writer
}

// Boot says what a machine starts with.
type Boot struct {
	Kernel  io.ReaderAt // uncompressed vmlinux ELF with a PVH entry
	Initrd  [][]byte    // cpio archives, unpacked in order
	Cmdline string      // appended to the board's own arguments
}

// ExitReason is why a machine ended.
type ExitReason int

const (
	ExitStopped     ExitReason = iota // Stop or Close was called
	ExitReset                         // the guest asked for a reset
	ExitTripleFault                   // a vCPU hit a triple fault
	ExitFailed                        // the host could not go on; Exit.Err says why
)

func (r ExitReason) String() string {
	return [...]string{"stopped", "guest reset", "triple fault", "failed"}[r]
}

// Exit is the end of a machine.
type Exit struct {
	Reason ExitReason
	Err    error // with ExitFailed
}

// Machine is one virtual machine. Its methods may be called from any goroutine.
type Machine struct {
	cfg    Config
	mem    *hypervisor.Memory
	vm     hypervisor.VM
	slots  []*slot
	cpu    []cpuTime // of each vCPU
	serial serial

	mu        sync.Mutex
	cond      *sync.Cond // signalled when any of the fields below changes
	phase     phase
	running   int  // vCPU goroutines that have not returned
	parked    int  // of them, those that wait in pause
	quiet     bool // the devices are paused
	waking    bool // wakeDevices is about to run
	listening bool // the doorbells are answered
	held      bool // the vCPUs wait because of CPULimit
	rewound   bool // since the pause began: no time has passed for the guest
	exit      Exit
	ended     chan struct{} // closed when the phase becomes ending

	users  sync.WaitGroup // calls of WithMemory
	bells  sync.WaitGroup
	closed chan struct{} // closed when everything is released
}

type phase int

const (
	phaseNew phase = iota // no vCPU has run yet
	phaseRunning
	phasePaused // paused or on the way there
	phaseEnding
)

// ErrEnded is returned by operations on a machine that has ended.
var ErrEnded = errors.New("the machine has ended")

// New creates the machine with all devices wired; no vCPU runs until Boot, or Restore and Resume. On an error everything,
// including cfg.Memory and cfg.Devices, is released.
func New(cfg Config) (m *Machine, err error) {
	m = &Machine{cfg: cfg, mem: cfg.Memory, cpu: make([]cpuTime, max(cfg.VCPUs, 0)), serial: serial{out: cfg.Serial}, ended: make(chan struct{}), closed: make(chan struct{})}
	m.cond = sync.NewCond(&m.mu)
	defer func() {
		if err != nil {
			m.release()
			m = nil
		}
	}()
	switch {
	case cfg.VCPUs < 1 || cfg.VCPUs > MaxVCPUs:
		return m, fmt.Errorf("%d vCPUs are out of range, 1 to %d are possible", cfg.VCPUs, MaxVCPUs)
	case cfg.MemoryMiB < MinMemoryMiB || cfg.MemoryMiB > MaxMemoryMiB:
		return m, fmt.Errorf("%d MiB of memory are out of range, %d to %d are possible", cfg.MemoryMiB, MinMemoryMiB, MaxMemoryMiB)
	case len(cfg.Devices) > MaxDevices:
		return m, fmt.Errorf("%d devices, at most %d are possible", len(cfg.Devices), MaxDevices)
	}
	if m.mem == nil {
		if m.mem, err = allocateMemory(cfg.MemoryMiB); err != nil {
			return m, err
		}
	}
	if m.vm, err = cfg.Hypervisor.NewVM(hypervisor.VMConfig{Memory: m.mem, VCPUs: cfg.VCPUs}); err != nil {
		return m, err
	}
	for i, dev := range cfg.Devices {
		s, err := m.newSlot(i, dev)
		if err != nil {
			return m, err
		}
		m.slots = append(m.slots, s)
	}
	return m, nil
}

// Memory returns the guest's RAM, valid until Done is closed.
func (m *Machine) Memory() *hypervisor.Memory { return m.mem }

// WithMemory calls f with the guest's RAM. Nothing of the machine is released meanwhile, neither RAM nor devices, even if it ends. It returns
// false, without calling f, if the machine has ended.
func (m *Machine) WithMemory(f func(*hypervisor.Memory)) bool {
	m.mu.Lock()
	if m.phase == phaseEnding {
		m.mu.Unlock()
		return false
	}
	m.users.Add(1)
	m.mu.Unlock()
	defer m.users.Done()
	f(m.mem)
	return true
}

// boardCmdline is what every kernel on this board needs: no probing for hardware that is not there, a panic that resets at once, no
// rewriting of the kernel's locks for one CPU, which is a third of a boot in the testbed and gains such a guest little, no timer that compares the
// TSC with other clocks twice a second for ever, and early messages on the serial port until the virtio console takes over.
const boardCmdline = "earlycon=uart8250,io,0x3f8 console=hvc0 8250.nr_uarts=0 reboot=k panic=-1 swiotlb=noforce cryptomgr.notests random.trust_cpu=on " +
	"noreplace-smp tsc=nowatchdog"

// Boot loads the kernel and starts the vCPUs. It returns without waiting for the guest.
func (m *Machine) Boot(b Boot) error {
	entry, end, err := loadKernel(b.Kernel, m.mem)
	if err != nil {
		return err
	}
	addr, size, err := loadInitrd(b.Initrd, end, m.mem)
	if err != nil {
		return err
	}
	cmdline := boardCmdline
	for _, s := range m.slots {
		cmdline += fmt.Sprintf(" virtio_mmio.device=4K@%#x:%d", s.addr, s.gsi)
	}
	if b.Cmdline != "" {
		cmdline += " " + strings.TrimSpace(b.Cmdline)
	}
	if err := writeStartInfo(m.mem, cmdline, addr, size); err != nil {
		return err
	}
	table, ok := m.mem.Slice(mpTableAddr, 0xa0000-mpTableAddr)
	if mp := mpTable(mpTableAddr, m.cfg.VCPUs); !ok || copy(table, mp) < len(mp) {
		return fmt.Errorf("the MP table does not fit")
	}
	for i := range m.cfg.VCPUs {
		st, err := m.vm.VCPU(i).BootState()
		if err != nil {
			return err
		}
		if i == 0 {
			setEntry(st, entry)
		}
		if err := m.vm.VCPU(i).Restore(st); err != nil {
			return err
		}
	}
	return m.Resume()
}

// Done is closed when the machine has ended and all its resources are released.
func (m *Machine) Done() <-chan struct{} { return m.closed }

// Ended is closed as soon as the guest can run no further; releasing its resources may go on after that.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// Exit returns why the machine ended. It is only meaningful after Ended is closed.
func (m *Machine) Exit() Exit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.exit
}

// Stop ends the machine at once, without asking the guest, and returns without waiting for the release of its resources.
// Stopping an ended machine does nothing.
func (m *Machine) Stop() { m.end(Exit{Reason: ExitStopped}) }

// end moves the machine into its last phase; the first reason stands.
func (m *Machine) end(e Exit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseEnding {
		return
	}
	m.phase, m.exit = phaseEnding, e
	close(m.ended)
	m.cond.Broadcast()
	m.kickAll()
	go func() {
		m.mu.Lock()
		for m.running > 0 {
			m.cond.Wait()
		}
		m.mu.Unlock()
		m.release()
	}()
}

// release frees everything. No vCPU may be running.
func (m *Machine) release() {
	m.users.Wait()
	for _, s := range m.slots {
		s.stop()
	}
	m.bells.Wait()
	for s := range m.occupied() {
		s.transport.Close()
	}
	for _, dev := range m.cfg.Devices[len(m.slots):] {
		if dev != nil {
			dev.Close() // New failed before it was wired
		}
	}
	if m.vm != nil {
		m.vm.Close()
	}
	if m.cfg.Threads != nil {
		m.cfg.Threads.Close()
	}
	if m.mem != nil {
		releaseMemory(m.mem)
	}
	close(m.closed)
}
