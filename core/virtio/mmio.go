package virtio

import (
	"encoding/binary"
	"sync"
	"sync/atomic"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// MMIOSize is the bytes of guest physical address space that a device's register block takes.
const MMIOSize = 0x1000

// Registers (virtio 1.2 §4.2.2).
const (
	regMagicValue        = 0x000
	regVersion           = 0x004
	regDeviceID          = 0x008
	regVendorID          = 0x00c
	regDeviceFeatures    = 0x010
	regDeviceFeaturesSel = 0x014
	regDriverFeatures    = 0x020
	regDriverFeaturesSel = 0x024
	regQueueSel          = 0x030
	regQueueNumMax       = 0x034
	regQueueNum          = 0x038
	regQueueReady        = 0x044
	// RegQueueNotify is the offset of the register that a driver writes a queue's index to, for the machine's doorbells.
	RegQueueNotify      = 0x050
	regInterruptStatus  = 0x060
	regInterruptACK     = 0x064
	regStatus           = 0x070
	regQueueDescLow     = 0x080
	regQueueDescHigh    = 0x084
	regQueueDriverLow   = 0x090
	regQueueDriverHigh  = 0x094
	regQueueDeviceLow   = 0x0a0
	regQueueDeviceHigh  = 0x0a4
	regSHMLenLow        = 0x0b0
	regSHMBaseHigh      = 0x0bc
	regConfigGeneration = 0x0fc
	regConfig           = 0x100
)

const (
	magicValue = 0x74726976 // "virt"
	version    = 2
	vendorID   = 0x4d505553 // "SUPM"
)

// Device status bits (virtio 1.2 §2.1).
const (
	StatusAcknowledge uint32 = 1
	StatusDriver      uint32 = 2
	StatusDriverOK    uint32 = 4
	StatusFeaturesOK  uint32 = 8
	StatusNeedsReset  uint32 = 64
	StatusFailed      uint32 = 128
)

// Bits of InterruptStatus.
const (
	isrQueue  = 1
	isrConfig = 2
)

// Bits of MMIO.run. The device works exactly while the value is runActive.
const (
	runActive = 1 << iota // the driver set DRIVER_OK and Activate succeeded
	runPaused             // between Pause and Resume
	runFailed             // Env.Fail was called
)

// MMIO is one device's register block of the virtio-mmio transport, version 2 (virtio 1.2 §4.2).
//
// Locks: mu guards the registers and orders Activate, Reset, Pause and Resume; it may be held while a device comes to rest. The
// registers that drivers use while running (QueueNotify, InterruptStatus, InterruptACK, Status when read) and everything that a
// device calls through Env or Queue use atomics only, so no vCPU waits for a device there and no device for a vCPU. A queue's
// gate is held during Device.Notify; who wants the device to rest first changes run, then takes and releases each gate.
type MMIO struct {
	dev     Device
	mem     *hypervisor.Memory
	irq     func()
	offered uint64

	run        atomic.Uint32
	status     atomic.Uint32
	isr        atomic.Uint32
	generation atomic.Uint32
	failure    atomic.Pointer[error]
	gates      []sync.Mutex

	mu                sync.Mutex
	queues            []*Queue
	queueSel          uint32
	deviceFeaturesSel uint32
	driverFeaturesSel uint32
	driverFeatures    uint64
	unknownFeatures   bool // the driver accepted bits beyond the first 64
	closed            bool
}

// NewMMIO returns the register block of dev, in the state after reset. irq raises the device's interrupt line (edge); it must be
// cheap and callable from any goroutine. The transport owns dev from now on: Close closes it.
func NewMMIO(dev Device, mem *hypervisor.Memory, irq func()) *MMIO {
	t := &MMIO{dev: dev, mem: mem, irq: irq, offered: dev.Features() | transportFeatures}
	sizes := dev.QueueSizes()
	t.gates = make([]sync.Mutex, len(sizes))
	for _, size := range sizes {
		t.queues = append(t.queues, &Queue{
			mem: mem, run: &t.run, maxSize: size,
			interrupt: func() { t.interrupt(isrQueue) },
		})
	}
	return t
}

// Device returns the device behind the registers.
func (t *MMIO) Device() Device { return t.dev }

// Queues returns the number of queues.
func (t *MMIO) Queues() int { return len(t.queues) }

// Failure returns why the device is in DEVICE_NEEDS_RESET, or nil if it is not. It does not block.
func (t *MMIO) Failure() error {
	if p := t.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Read is the driver's read of len(p) bytes at offset off. Registers are read 32 bits wide and aligned, and read as zero
// otherwise; the configuration space may be read at any width.
func (t *MMIO) Read(off uint64, p []byte) {
	if off >= regConfig {
		clear(p)
		t.dev.ReadConfig(off-regConfig, p)
		return
	}
	clear(p)
	if len(p) == 4 && off%4 == 0 {
		binary.LittleEndian.PutUint32(p, t.readRegister(off))
	}
}

// ReadPlaceholder is the driver's read of a register where there is no device (virtio 1.2 §4.2.2, DeviceID): a driver finds a place that has
// nothing for it yet.
func ReadPlaceholder(off uint64, p []byte) {
	clear(p)
	if len(p) != 4 {
		return
	}
	switch off {
	case regMagicValue:
		binary.LittleEndian.PutUint32(p, magicValue)
	case regVersion:
		binary.LittleEndian.PutUint32(p, version)
	case regVendorID:
		binary.LittleEndian.PutUint32(p, vendorID)
	}
}

func (t *MMIO) readRegister(off uint64) uint32 {
	switch off {
	case regInterruptStatus:
		return t.isr.Load()
	case regStatus:
		return t.status.Load()
	case regMagicValue:
		return magicValue
	case regVersion:
		return version
	case regDeviceID:
		return t.dev.ID()
	case regVendorID:
		return vendorID
	case regConfigGeneration:
		return t.generation.Load()
	}
	if off >= regSHMLenLow && off <= regSHMBaseHigh {
		return 0xffffffff // §4.2.2.1: the length and base of a shared memory region that does not exist
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch off {
	case regDeviceFeatures:
		if t.deviceFeaturesSel < 2 {
			return uint32(t.offered >> (32 * t.deviceFeaturesSel))
		}
	case regQueueNumMax:
		if q := t.selected(); q != nil {
			return uint32(q.maxSize)
		}
	case regQueueReady:
		if q := t.selected(); q != nil && q.config.Ready {
			return 1
		}
	}
	return 0
}

// Write is the driver's write of p at offset off. Writes that are not 32 bits wide and aligned are ignored, except in the
// configuration space. A write to QueueNotify runs Notify; one to Status may wait for the device to come to rest.
func (t *MMIO) Write(off uint64, p []byte) {
	if off >= regConfig {
		t.dev.WriteConfig(off-regConfig, p)
		return
	}
	if len(p) != 4 || off%4 != 0 {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	switch off {
	case RegQueueNotify:
		if uint64(v) < uint64(len(t.queues)) {
			t.Notify(int(v))
		}
	case regInterruptACK:
		t.isr.And(^v)
	default:
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.closed {
			t.writeRegister(off, v)
		}
	}
}

func (t *MMIO) writeRegister(off uint64, v uint32) {
	switch off {
	case regDeviceFeaturesSel:
		t.deviceFeaturesSel = v
	case regDriverFeaturesSel:
		t.driverFeaturesSel = v
	case regDriverFeatures:
		t.acceptFeatures(v)
	case regQueueSel:
		t.queueSel = v
	case regStatus:
		t.setStatus(v)
	default:
		if q := t.selected(); q != nil {
			t.writeQueueRegister(q, off, v)
		}
	}
}

func (t *MMIO) selected() *Queue {
	if uint64(t.queueSel) < uint64(len(t.queues)) {
		return t.queues[t.queueSel]
	}
	return nil
}

// acceptFeatures ignores writes after FEATURES_OK (§3.1.1: the driver must not accept new features after that step).
func (t *MMIO) acceptFeatures(v uint32) {
	if t.status.Load()&StatusFeaturesOK != 0 {
		return
	}
	switch t.driverFeaturesSel {
	case 0:
		t.driverFeatures = t.driverFeatures&^0xffffffff | uint64(v)
	case 1:
		t.driverFeatures = t.driverFeatures&0xffffffff | uint64(v)<<32
	default:
		t.unknownFeatures = t.unknownFeatures || v != 0
	}
}

// writeQueueRegister ignores changes to a queue that is ready (§4.2.2.2: the driver must not make them).
func (t *MMIO) writeQueueRegister(q *Queue, off uint64, v uint32) {
	if off == regQueueReady {
		t.setQueueReady(q, v)
		return
	}
	if q.config.Ready {
		return
	}
	c := &q.config
	switch off {
	case regQueueNum:
		c.Size = uint16(min(v, 0xffff)) // 65535 is no valid size, like everything above
	case regQueueDescLow:
		setLow(&c.Desc, v)
	case regQueueDescHigh:
		setHigh(&c.Desc, v)
	case regQueueDriverLow:
		setLow(&c.Driver, v)
	case regQueueDriverHigh:
		setHigh(&c.Driver, v)
	case regQueueDeviceLow:
		setLow(&c.Device, v)
	case regQueueDeviceHigh:
		setHigh(&c.Device, v)
	}
}

func setLow(addr *uint64, v uint32)  { *addr = *addr&^0xffffffff | uint64(v) }
func setHigh(addr *uint64, v uint32) { *addr = *addr&0xffffffff | uint64(v)<<32 }

func (t *MMIO) setQueueReady(q *Queue, v uint32) {
	ready := v&1 != 0
	if ready == q.config.Ready {
		return
	}
	if !ready {
		// §4.2.2.1: the device must not access the queue once the driver reads zero back.
		t.whilePaused(q.disable)
		return
	}
	if t.status.Load()&StatusFeaturesOK == 0 {
		t.fail(DriverErrorf("queue enabled before the features were agreed"))
		return
	}
	t.whilePaused(func() {
		if err := q.enable(q.config, t.driverFeatures); err != nil {
			t.fail(err)
		}
	})
}

// Notify tells the device that the driver made buffers available in a queue. It returns when Device.Notify has; it does nothing
// while the device is inactive or paused, since Activate and Resume look at every queue anyway.
func (t *MMIO) Notify(queue int) {
	gate := &t.gates[queue]
	gate.Lock()
	defer gate.Unlock()
	if t.run.Load() == runActive && t.queues[queue].config.Ready {
		t.dev.Notify(queue)
	}
}

// interrupt records the event before raising the line, so that the handler finds it (§4.2.2.1).
func (t *MMIO) interrupt(event uint32) {
	t.isr.Or(event)
	t.irq()
}

// fail takes no lock: devices call it from Notify and from their own goroutines.
func (t *MMIO) fail(err error) {
	if !t.failure.CompareAndSwap(nil, &err) {
		return
	}
	t.run.Or(runFailed)
	// §2.1.2: with DRIVER_OK set, DEVICE_NEEDS_RESET is followed by a configuration change notification.
	if t.status.Or(StatusNeedsReset)&StatusDriverOK != 0 {
		t.interrupt(isrConfig)
	}
}
