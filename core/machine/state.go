package machine

import (
	"errors"
	"fmt"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/virtio"
)

// State is everything about a machine but the contents of its RAM and disks: plain data that can be encoded and decoded.
type State struct {
	VM      *hypervisor.VMState
	VCPUs   []*hypervisor.VCPUState
	Devices []virtio.State
	Serial  SerialState
}

// Save returns the state of a paused machine.
func (m *Machine) Save() (*State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != phasePaused || !m.quiet {
		return nil, errors.New("save machine: it is not paused")
	}
	st := &State{Serial: m.serial.state}
	for i := range m.cfg.VCPUs {
		v, err := m.vm.VCPU(i).Save()
		if err != nil {
			return nil, fmt.Errorf("save vCPU %d: %w", i, err)
		}
		st.VCPUs = append(st.VCPUs, v)
	}
	var err error
	if st.VM, err = m.vm.Save(); err != nil {
		return nil, fmt.Errorf("save VM: %w", err)
	}
	st.Devices = make([]virtio.State, len(m.slots)) // the zero value is an empty slot
	for i, s := range m.slots {
		if s.transport == nil {
			continue
		}
		if st.Devices[i], err = s.transport.Save(); err != nil {
			return nil, fmt.Errorf("save device %d: %w", i, err)
		}
	}
	return st, nil
}

// Restore loads a state into a new machine of the same configuration, whose memory holds what it held at Save. Resume starts it.
func (m *Machine) Restore(st *State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != phaseNew {
		return errors.New("restore machine: it has run already")
	}
	return m.load(st)
}

// Rewind loads a state into a paused machine that has run, in place of its own. As with Restore, its memory must hold what it held at that
// state's Save, and the devices whatever they keep outside their states. After an error the machine can only be stopped.
func (m *Machine) Rewind(st *State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.phase == phaseEnding:
		return ErrEnded
	case m.phase != phasePaused || !m.quiet:
		return errors.New("rewind machine: it is not paused")
	}
	for s := range m.occupied() {
		s.transport.Reset()
	}
	m.rewound = true
	return m.load(st)
}

// load puts a state into the VM, the vCPUs and the devices.
func (m *Machine) load(st *State) error {
	if len(st.VCPUs) != m.cfg.VCPUs || len(st.Devices) != len(m.slots) || st.VM == nil {
		return fmt.Errorf("restore machine: the state has %d vCPUs and %d devices, the machine %d and %d",
			len(st.VCPUs), len(st.Devices), m.cfg.VCPUs, len(m.slots))
	}
	m.serial.state = st.Serial
	m.quiet = true // a restored transport stands still until Resume
	for i, v := range st.VCPUs {
		if v == nil {
			return fmt.Errorf("restore vCPU %d: no state", i)
		}
		if err := m.vm.VCPU(i).Restore(v); err != nil {
			return fmt.Errorf("restore vCPU %d: %w", i, err)
		}
	}
	if err := m.vm.Restore(st.VM); err != nil {
		return fmt.Errorf("restore VM: %w", err)
	}
	for i, s := range m.slots {
		dev := st.Devices[i]
		switch {
		case dev.DeviceID == 0: // an empty slot then: a device that is there now is new to the guest
			continue
		case s.transport == nil:
			return fmt.Errorf("restore device %d: the guest knows a device of type %d there, and there is none", i, dev.DeviceID)
		}
		if err := s.transport.Restore(dev); err != nil {
			return fmt.Errorf("restore device %d: %w", i, err)
		}
	}
	return nil
}
