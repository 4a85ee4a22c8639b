package virtio

// setStatus is the driver's write to the status register (virtio 1.2 §2.1, §3.1.1). Caller holds mu.
func (t *MMIO) setStatus(v uint32) {
	if v == 0 {
		t.reset()
		return
	}
	const known = StatusAcknowledge | StatusDriver | StatusFeaturesOK | StatusDriverOK | StatusFailed
	old := t.status.Load()
	if cleared := old &^ StatusNeedsReset &^ v; cleared != 0 {
		t.fail(DriverErrorf("status bits %#x cleared without a reset", cleared))
		return
	}
	set := v & known &^ old
	if old&StatusNeedsReset != 0 {
		set &= StatusFailed // nothing but giving up or a reset leads out of here
	}
	for _, step := range []struct {
		bit, needs uint32
		do         func() bool
	}{
		{StatusAcknowledge, 0, nil},
		{StatusDriver, StatusAcknowledge, nil},
		{StatusFeaturesOK, StatusDriver, t.featuresAgreed},
		{StatusDriverOK, StatusFeaturesOK, t.activate},
		{StatusFailed, 0, nil},
	} {
		if set&step.bit == 0 {
			continue
		}
		if t.status.Load()&step.needs != step.needs {
			t.fail(DriverErrorf("status bit %#x set before %#x", step.bit, step.needs))
			return
		}
		if step.do == nil || step.do() {
			t.status.Or(step.bit)
		}
		if t.Failure() != nil {
			return
		}
	}
}

// featuresAgreed decides about FEATURES_OK: the driver reads the bit back to learn the answer (§3.1.1 step 6).
func (t *MMIO) featuresAgreed() bool {
	return t.driverFeatures&^t.offered == 0 && !t.unknownFeatures && t.driverFeatures&FeatureVersion1 != 0
}

// activate starts the device. DRIVER_OK is set whether it succeeds or not, so that a failure reaches the driver as an interrupt.
func (t *MMIO) activate() bool {
	t.status.Or(StatusDriverOK)
	env := &Env{Memory: t.mem, Features: t.driverFeatures, Queues: t.queues, transport: t}
	if err := t.dev.Activate(env); err != nil {
		t.fail(err)
		return true
	}
	if t.run.Or(runActive)&runPaused == 0 {
		t.announce()
	} else if p, ok := t.dev.(Pauser); ok {
		p.Pause()
	}
	return true
}

// announce has the device look at every queue, on goroutines of its own.
func (t *MMIO) announce() {
	for i, q := range t.queues {
		if q.config.Ready {
			go t.Notify(i)
		}
	}
}

// reset stops the device and returns the registers to their initial state (§2.4.1, §4.2.2.1). A pause of the machine lasts on.
func (t *MMIO) reset() {
	t.run.And(^uint32(runActive))
	t.drain()
	t.dev.Reset()
	for _, q := range t.queues {
		q.disable()
		q.config = QueueConfig{}
	}
	t.queueSel, t.deviceFeaturesSel, t.driverFeaturesSel = 0, 0, 0
	t.driverFeatures, t.unknownFeatures = 0, false
	t.run.And(runPaused)
	t.failure.Store(nil)
	t.isr.Store(0)
	t.status.Store(0)
}

// Reset returns the transport and the device to their initial state, as a driver's reset would; a pause lasts on.
func (t *MMIO) Reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset()
}

// drain waits until no Device.Notify runs. The caller changed run before, so none starts again.
func (t *MMIO) drain() {
	for i := range t.gates {
		t.gates[i].Lock() // whoever held it has left Notify
		t.gates[i].Unlock()
	}
}

// Pause brings the device to rest: when it returns, nothing touches guest memory through this device until Resume. Work that
// the driver announced meanwhile stays in the rings. It waits for running Notify calls. No vCPU should run meanwhile.
func (t *MMIO) Pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pause()
}

// Resume continues after Pause or Restore, and has the device look at every queue again, on other goroutines.
func (t *MMIO) Resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.resume()
}

func (t *MMIO) pause() {
	old := t.run.Or(runPaused)
	if old&runPaused != 0 {
		return
	}
	t.drain()
	if p, ok := t.dev.(Pauser); ok && old&runActive != 0 {
		p.Pause()
	}
}

func (t *MMIO) resume() {
	old := t.run.And(^uint32(runPaused))
	if old&runPaused == 0 || old&runActive == 0 {
		return
	}
	if p, ok := t.dev.(Pauser); ok {
		p.Resume()
	}
	if t.isr.Load() != 0 {
		t.irq() // the driver has not seen this event yet; a second edge does no harm
	}
	t.announce()
}

// whilePaused runs f while the device is at rest.
func (t *MMIO) whilePaused(f func()) {
	paused := t.run.Load()&runPaused != 0
	t.pause()
	f()
	if !paused {
		t.resume()
	}
}

// Close resets and closes the device. Afterwards Write, Notify, Pause and Resume do nothing. A second Close does nothing.
func (t *MMIO) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.reset()
	t.closed = true
	return t.dev.Close()
}
