package virtiotest

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/virtio"
)

// Timeout bounds every wait for the device; a test whose device does not answer fails after it.
const Timeout = 20 * time.Second

// Register offsets (virtio 1.2 §4.2.2), for tests that do not go through Driver's methods.
const (
	RegMagic             = 0x00
	RegVersion           = 0x04
	RegDeviceID          = 0x08
	RegVendorID          = 0x0c
	RegDeviceFeatures    = 0x10
	RegDeviceFeaturesSel = 0x14
	RegDriverFeatures    = 0x20
	RegDriverFeaturesSel = 0x24
	RegQueueSel          = 0x30
	RegQueueNumMax       = 0x34
	RegQueueNum          = 0x38
	RegQueueReady        = 0x44
	RegQueueNotify       = 0x50
	RegInterruptStatus   = 0x60
	RegInterruptACK      = 0x64
	RegStatus            = 0x70
	RegQueueDescLow      = 0x80
	RegQueueDriverLow    = 0x90
	RegQueueDeviceLow    = 0xa0
	RegConfigGeneration  = 0xfc
	RegConfig            = 0x100
)

// Driver is the guest's driver of one device.
type Driver struct {
	MMIO     *virtio.MMIO
	Mem      *hypervisor.Memory
	Features uint64 // what Start negotiated
	Queues   []*Queue

	t     testing.TB
	alloc allocator
	irqs  atomic.Int64
	irq   chan struct{} // holds a token after each interrupt
}

// New attaches a driver to dev in size bytes of guest memory, without bringing the device up. The device is closed at the
// test's end.
func New(t testing.TB, dev virtio.Device, size int) *Driver {
	mem := NewMemory(t, size)
	d := NewOn(t, dev, mem)
	t.Cleanup(func() { require.NoError(t, d.MMIO.Close()) })
	return d
}

// NewOn is New on existing memory, and leaves it to the caller to close the device.
func NewOn(t testing.TB, dev virtio.Device, mem *hypervisor.Memory) *Driver {
	d := &Driver{Mem: mem, t: t, irq: make(chan struct{}, 1)}
	d.alloc = allocator{t: t, mem: mem, next: mem.Regions()[0].Addr}
	d.MMIO = virtio.NewMMIO(dev, mem, d.interrupt)
	return d
}

// Start attaches a driver to dev in 16 MiB of guest memory and brings the device up with every feature it offers except
// the ones in without.
func Start(t testing.TB, dev virtio.Device, without uint64) *Driver {
	d := New(t, dev, 16<<20)
	d.Up(d.Offered() &^ without)
	return d
}

func (d *Driver) interrupt() {
	d.irqs.Add(1)
	select {
	case d.irq <- struct{}{}:
	default:
	}
}

// Interrupts returns how many times the interrupt line was raised.
func (d *Driver) Interrupts() int { return int(d.irqs.Load()) }

// Read32 reads a register.
func (d *Driver) Read32(off uint64) uint32 {
	var p [4]byte
	d.MMIO.Read(off, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

// Write32 writes a register.
func (d *Driver) Write32(off uint64, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	d.MMIO.Write(off, p[:])
}

// Write64 writes a pair of registers, the low half at off.
func (d *Driver) Write64(off, v uint64) {
	d.Write32(off, uint32(v))
	d.Write32(off+4, uint32(v>>32))
}

// Config reads n bytes of the device configuration space.
func (d *Driver) Config(off uint64, n int) []byte {
	p := make([]byte, n)
	d.MMIO.Read(RegConfig+off, p)
	return p
}

// Status reads the device status.
func (d *Driver) Status() uint32 { return d.Read32(RegStatus) }

// SetStatus writes the device status.
func (d *Driver) SetStatus(v uint32) { d.Write32(RegStatus, v) }

// Offered reads the features that the device offers.
func (d *Driver) Offered() uint64 {
	d.Write32(RegDeviceFeaturesSel, 0)
	low := d.Read32(RegDeviceFeatures)
	d.Write32(RegDeviceFeaturesSel, 1)
	return uint64(d.Read32(RegDeviceFeatures))<<32 | uint64(low)
}

// Accept writes the driver's features and reports whether the device took FEATURES_OK. The driver bits are set before.
func (d *Driver) Accept(features uint64) bool {
	d.SetStatus(virtio.StatusAcknowledge)
	d.SetStatus(virtio.StatusAcknowledge | virtio.StatusDriver)
	d.Write32(RegDriverFeaturesSel, 0)
	d.Write32(RegDriverFeatures, uint32(features))
	d.Write32(RegDriverFeaturesSel, 1)
	d.Write32(RegDriverFeatures, uint32(features>>32))
	d.Features = features
	const agreed = virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK
	d.SetStatus(agreed)
	return d.Status() == agreed
}

// Up brings the device up from any state as virtio 1.2 §3.1.1 says, with queues of the maximum size.
func (d *Driver) Up(features uint64) {
	d.t.Helper()
	d.SetStatus(0)
	require.True(d.t, d.Accept(features), "FEATURES_OK was refused")
	d.Queues = nil
	for i := range d.MMIO.Queues() {
		d.Write32(RegQueueSel, uint32(i))
		d.Queues = append(d.Queues, d.addQueue(i, int(d.Read32(RegQueueNumMax))))
	}
	d.SetStatus(d.Status() | virtio.StatusDriverOK)
	require.NoError(d.t, d.MMIO.Failure())
}

// addQueue lays out the rings of a queue and enables it.
func (d *Driver) addQueue(index, size int) *Queue {
	d.t.Helper()
	q := &Queue{d: d, index: index, size: size}
	var desc, avail, used uint64
	desc, q.desc = d.alloc.alloc(16*size, 16)
	avail, q.avail = d.alloc.alloc(6+2*size, 4)
	used, q.used = d.alloc.alloc(8+8*size, 4)
	for i := size - 1; i >= 0; i-- {
		q.free = append(q.free, uint16(i))
	}
	q.eventIdx = d.Features&virtio.FeatureEventIdx != 0
	d.Write32(RegQueueSel, uint32(index))
	d.Write32(RegQueueNum, uint32(size))
	d.Write64(RegQueueDescLow, desc)
	d.Write64(RegQueueDriverLow, avail)
	d.Write64(RegQueueDeviceLow, used)
	d.Write32(RegQueueReady, 1)
	require.EqualValues(d.t, 1, d.Read32(RegQueueReady), "queue %d was not enabled", index)
	return q
}

// Reattach makes a driver for a device restored from a saved state: it knows the rings, buffers and features that d set up, on
// memory mem that holds a copy of d's (CopyMemory), and goes on where d stopped. The caller restores and resumes its MMIO; the
// device is closed at the test's end.
func (d *Driver) Reattach(dev virtio.Device, mem *hypervisor.Memory) *Driver {
	n := &Driver{Mem: mem, Features: d.Features, t: d.t, irq: make(chan struct{}, 1)}
	n.alloc = allocator{t: d.t, mem: mem, next: d.alloc.next}
	n.MMIO = virtio.NewMMIO(dev, mem, n.interrupt)
	n.t.Cleanup(func() { require.NoError(n.t, n.MMIO.Close()) })
	for _, q := range d.Queues {
		c := *q
		c.d = n
		c.desc, c.avail, c.used = d.remap(mem, q.desc), d.remap(mem, q.avail), d.remap(mem, q.used)
		c.free = append([]uint16(nil), q.free...)
		n.Queues = append(n.Queues, &c)
	}
	return n
}

// remap returns the bytes of mem at the guest address that b has in d's memory.
func (d *Driver) remap(mem *hypervisor.Memory, b []byte) []byte {
	return mem.Regions()[0].Bytes[offsetIn(d.Mem.Regions()[0].Bytes, b):][:len(b):len(b)]
}

// CopyMemory returns a copy of the driver's guest memory, as a snapshot would hold it.
func (d *Driver) CopyMemory() *hypervisor.Memory {
	mem := NewMemory(d.t, int(d.Mem.Size()))
	copy(mem.Regions()[0].Bytes, d.Mem.Regions()[0].Bytes)
	return mem
}

// Alloc returns n bytes of guest memory and their address.
func (d *Driver) Alloc(n int) (uint64, []byte) { return d.alloc.alloc(n, 16) }

// WaitInterrupt waits until the line was raised since the last wait, then reads and acknowledges InterruptStatus.
func (d *Driver) WaitInterrupt() uint32 {
	d.t.Helper()
	select {
	case <-d.irq:
	case <-time.After(Timeout):
		require.FailNow(d.t, "virtiotest: no interrupt")
	}
	isr := d.Read32(RegInterruptStatus)
	d.Write32(RegInterruptACK, isr)
	return isr
}
