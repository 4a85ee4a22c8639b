// Package rng is the virtio entropy device (virtio 1.2 §5.4).
package rng

import (
	"crypto/rand"

	"github.com/supermachine/supermachine/core/virtio"
)

// MaxRequest is the most bytes that one request gets, however long its buffers are; the driver asks again for more. Linux asks
// for 64 at a time or for a cache line.
const MaxRequest = 4096

const queueSize = 8

// Device is a virtio entropy device. It works only inside Notify and has no state.
type Device struct {
	env *virtio.Env
}

// New returns the device.
func New() *Device { return &Device{} }

// ID implements virtio.Device.
func (d *Device) ID() uint32 { return virtio.IDRNG }

// Features implements virtio.Device.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig implements virtio.Device; there is no configuration space.
func (d *Device) ReadConfig(_ uint64, p []byte) { clear(p) }

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(env *virtio.Env) error {
	d.env = env
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() { d.env = nil }

// Close implements virtio.Device.
func (d *Device) Close() error { return nil }

// Notify implements virtio.Device.
func (d *Device) Notify(int) {
	q := d.env.Queues[0]
	for more := true; more; more = q.EnableNotify() {
		q.DisableNotify()
		for {
			c, ok, err := q.Pop()
			if err != nil {
				d.env.Fail(err)
				return
			}
			if !ok {
				break
			}
			q.Push(c.Head, fill(c.Writable))
		}
		q.Flush()
	}
}

// fill puts random bytes into the first MaxRequest bytes of bufs.
func fill(bufs [][]byte) uint32 {
	n := 0
	for _, b := range bufs {
		b = b[:min(len(b), MaxRequest-n)]
		_, _ = rand.Read(b) // never fails: it ends the process where there is no entropy
		n += len(b)
	}
	return uint32(n)
}
