package machine

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// runVCPU is the life of one vCPU's thread.
func (m *Machine) runVCPU(i int) {
	runtime.LockOSThread()
	if m.cfg.Threads == nil {
		defer runtime.UnlockOSThread()
	} // else the thread ends with the vCPU, as it would do other work in the cgroup
	defer m.cpu[i].begin()()
	v := m.vm.VCPU(i)
	defer func() {
		m.mu.Lock()
		m.running--
		m.cond.Broadcast()
		m.mu.Unlock()
	}()
	if err := m.joinCgroup(); err != nil {
		m.end(Exit{Reason: ExitFailed, Err: err})
		return
	}
	for m.mayRun() {
		if err := m.runUntilKicked(v); err != nil {
			m.end(Exit{Reason: ExitFailed, Err: err})
			return
		}
	}
}

// joinCgroup puts the calling thread into the cgroup that the configuration says (Linux, Documentation/admin-guide/cgroup-v2.rst, "Threads").
func (m *Machine) joinCgroup() error {
	if m.cfg.Threads == nil {
		return nil
	}
	if _, err := m.cfg.Threads.WriteString(strconv.Itoa(unix.Gettid())); err != nil {
		return fmt.Errorf("put a vCPU into its cgroup: %w", err)
	}
	return nil
}

// runUntilKicked runs a vCPU and answers its exits. It returns only when the vCPU was kicked while none of its accesses was half done: KVM
// completes an access when it is entered again, and a state saved before that would repeat it (KVM API doc §5, struct kvm_run).
func (m *Machine) runUntilKicked(v hypervisor.VCPU) error {
	for {
		exit, err := v.Run()
		if err != nil {
			return err
		}
		switch exit.Reason {
		case hypervisor.ExitKicked:
			return nil
		case hypervisor.ExitMMIO:
			m.mmio(exit)
		case hypervisor.ExitPort:
			if m.port(exit) {
				m.end(Exit{Reason: ExitReset})
			}
		case hypervisor.ExitShutdown:
			m.end(Exit{Reason: ExitTripleFault})
		case hypervisor.ExitHalt:
			return errors.New("a vCPU halted with nothing to wake it")
		}
	}
}

// mayRun parks the calling vCPU while the machine is paused. It returns false once the machine ends.
func (m *Machine) mayRun() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phasePaused || m.held {
		m.parked++
		m.cond.Broadcast()
		for m.phase == phasePaused || m.held && m.phase == phaseRunning {
			m.cond.Wait()
		}
		m.parked--
		m.cond.Broadcast()
	}
	if m.phase == phaseRunning && (m.quiet || !m.listening) && !m.waking {
		m.waking = true
		go m.wakeDevices()
	}
	return m.phase == phaseRunning
}

// wakeDevices lets the devices go on, beside the guest's first steps and not before them: they have a dozen queues to look at. Until then they
// ignore the guest's notifications as in any pause.
func (m *Machine) wakeDevices() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waking = false
	if m.phase != phaseRunning {
		return
	}
	if !m.listening {
		m.listening = true
		m.listen()
	}
	if m.quiet {
		for s := range m.occupied() {
			s.transport.Resume()
		}
		m.quiet = false
	}
}

func (m *Machine) mmio(exit hypervisor.Exit) {
	s, off := m.slotAt(exit.Addr)
	switch {
	case s != nil && exit.Write:
		s.write(off, exit.Data)
	case s != nil:
		s.read(off, exit.Data)
	case !exit.Write:
		for i := range exit.Data {
			exit.Data[i] = 0xff
		}
	}
}

// port handles a possibly repeated access byte by byte. It reports whether the guest asked for a reset.
func (m *Machine) port(exit hypervisor.Exit) (reset bool) {
	for i := range exit.Data {
		port := exit.Addr + uint64(i%exit.Size)
		if exit.Write {
			reset = m.portWrite(port, exit.Data[i]) || reset
		} else {
			exit.Data[i] = m.portRead(port)
		}
	}
	return reset
}

func (m *Machine) kickAll() {
	for i := range m.cfg.VCPUs {
		m.vm.VCPU(i).Kick()
	}
}

// Pause stops all vCPUs and devices between two instructions and returns when none of them touches guest memory any more. Pausing a
// paused machine does nothing.
func (m *Machine) Pause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase == phaseRunning {
		m.phase = phasePaused
		m.kickAll()
	}
	for m.phase == phasePaused && m.parked < m.running {
		m.cond.Wait()
	}
	if m.phase == phaseEnding {
		return ErrEnded
	}
	if m.phase == phasePaused && !m.quiet {
		for s := range m.occupied() {
			s.transport.Pause()
		}
		m.quiet = true
	}
	return nil
}

// Resume lets a paused machine, or one whose state was restored, run. Resuming a running machine does nothing.
func (m *Machine) Resume() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.phase {
	case phaseEnding:
		return ErrEnded
	case phaseRunning:
		return nil
	case phasePaused:
		for i := range m.cfg.VCPUs {
			if !m.rewound {
				m.vm.VCPU(i).Paused()
			}
		}
		m.rewound = false
	case phaseNew:
		m.running = m.cfg.VCPUs
		for i := range m.cfg.VCPUs {
			go m.runVCPU(i)
		}
		if m.cfg.CPULimit > 0 {
			go m.throttle()
		}
	}
	m.phase = phaseRunning
	m.cond.Broadcast()
	return nil
}
