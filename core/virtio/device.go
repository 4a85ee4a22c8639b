// Package virtio is the device side of virtio 1.2: the MMIO transport, the split virtqueue and the interface that a device
// implements. The devices themselves are in the packages below it.
//
// The driver is the guest's kernel and may be hostile. Every value it supplies is checked before use; a driver that breaks the
// rules finds DEVICE_NEEDS_RESET set in its device's status and harms nothing but its own machine.
package virtio

import (
	"errors"
	"fmt"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// Device IDs (virtio 1.2 §5).
const (
	IDNet        uint32 = 1
	IDBlock      uint32 = 2
	IDConsole    uint32 = 3
	IDRNG        uint32 = 4
	IDBalloon    uint32 = 5
	IDVsock      uint32 = 19
	IDFileSystem uint32 = 26
)

// Feature bits that belong to the transport and the queues (virtio 1.2 §6). The transport always offers these three.
const (
	FeatureIndirectDesc uint64 = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx     uint64 = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1     uint64 = 1 << 32 // VIRTIO_F_VERSION_1
)

const transportFeatures = FeatureIndirectDesc | FeatureEventIdx | FeatureVersion1

// ErrDriver is matched (errors.Is) by every error that the guest's driver caused by breaking the rules of virtio.
var ErrDriver = errors.New("virtio: driver broke the protocol")

// DriverErrorf returns an error that matches ErrDriver, for Env.Fail.
func DriverErrorf(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDriver, fmt.Sprintf(format, args...))
}

// Device is one virtio device behind a transport. The transport calls its methods and never overlaps Activate, Reset, Pause,
// Resume, SaveState, RestoreState and Close with one another. Notify may overlap itself for different queues, but none of the
// former: the transport first waits for running Notify calls to return.
//
// A device that works on guest memory from goroutines of its own must stop them in Reset and, as a Pauser, in Pause. One that
// works only inside Notify needs neither a lock nor a Pauser.
type Device interface {
	// ID returns the virtio device ID.
	ID() uint32
	// Features returns the device-specific feature bits that are offered, always the same. The transport adds its own.
	Features() uint64
	// QueueSizes returns the maximum size of each queue: powers of two, 1 to 32768; always the same.
	QueueSizes() []uint16
	// ReadConfig fills p from the device configuration space at off, little endian; bytes out of range are zero. It may be
	// called at any time, from several goroutines at once, and must not block.
	ReadConfig(off uint64, p []byte)
	// WriteConfig is the driver's write of p to the device configuration space at off, under ReadConfig's rules.
	WriteConfig(off uint64, p []byte)
	// Activate tells that the driver set DRIVER_OK: features are negotiated and the queues are live. It must not block and must
	// not call the transport's Read, Write, Pause or Resume. Queues yield chains only after it has returned; the transport then
	// calls Notify for every ready queue. An error becomes DEVICE_NEEDS_RESET.
	Activate(env *Env) error
	// Notify tells that the driver made buffers available in a queue, or that the device should look whether it did. It runs on
	// a goroutine of the machine's, one at a time for each queue, only while the device is active and not paused; it may do
	// I/O, but must come back in bounded time, since reset and pause wait for it. Queue.Pop yields nothing more once they do.
	Notify(queue int)
	// Reset returns the device to its initial state, on the driver's wish or at teardown, whether it is active or not. When it
	// returns, the device no longer touches guest memory, the queues or the Env that Activate got.
	Reset()
	// Close releases the device's resources. Reset was called before; nothing is called after it.
	Close() error
}

// Pauser is implemented by devices that touch guest memory or queues outside Notify.
type Pauser interface {
	// Pause stops the device: when it returns, the device touches neither guest memory nor queues, holds no chain it popped,
	// and has flushed its queues. Called only while the device is active. Reset ends a pause too.
	Pause()
	// Resume continues after Pause. The transport then calls Notify for every ready queue.
	Resume()
}

// Stateful is implemented by devices that have state of their own to be saved with the machine.
type Stateful interface {
	// SaveState returns the state, the msgpack encoding of a plain struct. Called only while the machine is paused.
	SaveState() ([]byte, error)
	// RestoreState loads what SaveState returned. It is called at most once, before Activate, on a new device. The bytes may
	// come from a hostile file.
	RestoreState([]byte) error
}

// Env is what an active device works with, from Activate until Reset.
type Env struct {
	Memory   *hypervisor.Memory // the guest's RAM
	Features uint64             // negotiated features, those of the transport included
	Queues   []*Queue           // as many as QueueSizes; a queue that the driver left disabled never yields a chain

	transport *MMIO
}

// Interrupt tells the driver that buffers were used, whatever suppression it asked for. Queue.Flush is the usual way.
func (e *Env) Interrupt() { e.transport.interrupt(isrQueue) }

// ConfigChanged tells the driver that the configuration space changed. The new values must already be in place.
func (e *Env) ConfigChanged() {
	e.transport.generation.Add(1)
	e.transport.interrupt(isrConfig)
}

// Fail marks the device as broken until the driver resets it (DEVICE_NEEDS_RESET, virtio 1.2 §2.1.2): the queues yield nothing
// more and the driver gets a configuration interrupt. The first error is kept for MMIO.Failure. It never blocks and may be
// called from any goroutine that may use the Env.
func (e *Env) Fail(err error) { e.transport.fail(err) }

// Has reports whether all the given feature bits were negotiated.
func (e *Env) Has(features uint64) bool { return e.Features&features == features }

// ReadConfigBytes implements Device.ReadConfig for a configuration space that is the bytes cfg.
func ReadConfigBytes(cfg []byte, off uint64, p []byte) {
	clear(p)
	if off < uint64(len(cfg)) {
		copy(p, cfg[off:])
	}
}
