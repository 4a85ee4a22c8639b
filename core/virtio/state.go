package virtio

import (
	"errors"
	"fmt"
)

// State is the saved state of a transport and its device: plain data, meant for msgpack.
type State struct {
	DeviceID          uint32
	Status            uint32
	DriverFeatures    uint64
	DriverFeaturesSel uint32
	DeviceFeaturesSel uint32
	UnknownFeatures   bool // the driver accepted bits beyond the first 64
	QueueSel          uint32
	InterruptStatus   uint32
	Generation        uint32
	Queues            []QueueState
	Failure           string // why DEVICE_NEEDS_RESET is set
	Device            []byte // the device's own state (Stateful)
}

// ErrNotPaused is returned by Save while the device may be working.
var ErrNotPaused = errors.New("virtio: device is not paused")

// Save returns the state of the registers, the queues and the device. It must be called between Pause and Resume.
func (t *MMIO) Save() (State, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.run.Load()&runPaused == 0 {
		return State{}, ErrNotPaused
	}
	s := State{
		DeviceID:          t.dev.ID(),
		Status:            t.status.Load(),
		DriverFeatures:    t.driverFeatures,
		DriverFeaturesSel: t.driverFeaturesSel,
		DeviceFeaturesSel: t.deviceFeaturesSel,
		UnknownFeatures:   t.unknownFeatures,
		QueueSel:          t.queueSel,
		InterruptStatus:   t.isr.Load(),
		Generation:        t.generation.Load(),
	}
	if err := t.Failure(); err != nil {
		s.Failure = err.Error()
	}
	for i, q := range t.queues {
		qs, err := q.save()
		if err != nil {
			return State{}, fmt.Errorf("save virtio device %d queue %d: %w", t.dev.ID(), i, err)
		}
		s.Queues = append(s.Queues, qs)
	}
	if d, ok := t.dev.(Stateful); ok {
		var err error
		if s.Device, err = d.SaveState(); err != nil {
			return State{}, fmt.Errorf("save virtio device %d: %w", t.dev.ID(), err)
		}
	}
	return s, nil
}

// StateError says why a saved state does not fit the device.
type StateError struct {
	DeviceID uint32
	Reason   string
	Err      error // the cause, may be nil
}

func (e *StateError) Error() string {
	s := fmt.Sprintf("restore virtio device %d: %s", e.DeviceID, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *StateError) Unwrap() error { return e.Err }

// Restore loads a state that Save returned into a transport that was not used yet, and leaves it paused: Resume starts the
// device, which then looks at every queue, so that nothing announced before the save is lost. Guest memory must already hold
// what it held at the save. Every value is checked like the driver's own writes; after an error the transport may only be closed.
func (t *MMIO) Restore(s State) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	bad := func(reason string, err error) error {
		return &StateError{DeviceID: t.dev.ID(), Reason: reason, Err: err}
	}
	if t.status.Load() != 0 || t.run.Load()&runActive != 0 {
		return bad("the device is in use", nil)
	}
	if err := t.checkState(s); err != "" {
		return bad(err, nil)
	}
	for i, q := range t.queues {
		if err := q.restore(s.Queues[i], s.DriverFeatures); err != nil {
			return bad(fmt.Sprintf("queue %d", i), err)
		}
	}
	if d, ok := t.dev.(Stateful); ok && len(s.Device) > 0 {
		if err := d.RestoreState(s.Device); err != nil {
			return bad("device state", err)
		}
	}
	t.driverFeatures, t.unknownFeatures = s.DriverFeatures, s.UnknownFeatures
	t.driverFeaturesSel, t.deviceFeaturesSel, t.queueSel = s.DriverFeaturesSel, s.DeviceFeaturesSel, s.QueueSel
	t.generation.Store(s.Generation)
	t.run.Or(runPaused)
	if s.Failure != "" {
		err := errors.New(s.Failure)
		t.failure.Store(&err)
		t.run.Or(runFailed)
	}
	t.status.Store(s.Status &^ StatusDriverOK)
	if s.Status&StatusDriverOK != 0 {
		t.activate()
		if err := t.Failure(); err != nil && s.Failure == "" {
			return bad("activate", err)
		}
	}
	t.isr.Or(s.InterruptStatus)
	return nil
}

// checkState returns what is wrong with s, or "".
func (t *MMIO) checkState(s State) string {
	const known = StatusAcknowledge | StatusDriver | StatusDriverOK | StatusFeaturesOK | StatusNeedsReset | StatusFailed
	agreed := s.Status&StatusFeaturesOK != 0
	switch {
	case s.DeviceID != t.dev.ID():
		return fmt.Sprintf("the state is of a device %d", s.DeviceID)
	case len(s.Queues) != len(t.queues):
		return fmt.Sprintf("the state has %d queues instead of %d", len(s.Queues), len(t.queues))
	case s.Status&^known != 0, s.InterruptStatus&^(isrQueue|isrConfig) != 0:
		return "unknown status bits"
	case s.Status&StatusDriverOK != 0 && !agreed:
		return "active without agreed features"
	case (s.Status&StatusNeedsReset != 0) != (s.Failure != ""):
		return "needs a reset without a reason, or the reverse"
	case agreed && (s.UnknownFeatures || s.DriverFeatures&^t.offered != 0 || s.DriverFeatures&FeatureVersion1 == 0):
		return fmt.Sprintf("features %#x were not offered (%#x)", s.DriverFeatures, t.offered)
	}
	if !agreed {
		for _, q := range s.Queues {
			if q.Ready {
				return "a queue is ready without agreed features"
			}
		}
	}
	return ""
}
