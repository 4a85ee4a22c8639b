// Package console is the virtio console device with one port (virtio 1.2 §5.3), and the ring that keeps the end of a log.
package console

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
)

// FeatureSize says that the configuration space holds the console's size (virtio 1.2 §5.3.3).
const FeatureSize uint64 = 1 << 0

const (
	// MaxInput is the most bytes of input that wait for the guest to read them.
	MaxInput = 64 << 10

	// maxOutput bounds what one chain of output may hold; what is beyond it is dropped. Linux sends a page at most.
	maxOutput = 1 << 20

	queueSize   = 64
	configBytes = 8 // cols, rows, max_nr_ports

	receiveQueue  = 0
	transmitQueue = 1
)

// ErrInputFull is returned by Write when the guest does not read its input.
var ErrInputFull = errors.New("console: input buffer is full")

// Config says what New makes.
type Config struct {
	Output io.Writer // gets what the guest prints, may be nil; it should not block for long, since the device's reset waits for it
	Log    *Ring     // keeps the end of the output, may be nil
	Cols   uint16    // size, 0 if unknown
	Rows   uint16
}

// Device is a virtio console. Write and SetSize may be called at any time from any goroutine.
type Device struct {
	output io.Writer
	log    *Ring

	mu     sync.Mutex // guards the receive queue and what follows; output needs no lock
	env    *virtio.Env
	paused bool
	resize bool   // the size changed during the pause
	input  []byte // waits for buffers of the guest, at most MaxInput
	config [configBytes]byte
}

// New returns the device.
func New(c Config) *Device {
	d := &Device{output: c.Output, log: c.Log}
	d.setSize(c.Cols, c.Rows)
	return d
}

// ID implements virtio.Device.
func (d *Device) ID() uint32 { return virtio.IDConsole }

// Features implements virtio.Device.
func (d *Device) Features() uint64 { return FeatureSize }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize, queueSize} }

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(off uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	virtio.ReadConfigBytes(d.config[:], off, p)
}

// WriteConfig implements virtio.Device; no field can be written.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(env *virtio.Env) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.env = env
	return nil
}

// Reset implements virtio.Device. Input that the guest has not read stays.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.env, d.paused, d.resize = nil, false, false
}

// Pause implements virtio.Pauser.
func (d *Device) Pause() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = true
}

// Resume implements virtio.Pauser. The transport's Notify then delivers what came meanwhile.
func (d *Device) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = false
	if d.resize {
		d.resize = false
		d.env.ConfigChanged()
	}
}

// Close implements virtio.Device.
func (d *Device) Close() error { return nil }

// Notify implements virtio.Device.
func (d *Device) Notify(queue int) {
	if queue == receiveQueue {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.deliver()
		return
	}
	env := d.env // Activate and Reset, which set it, never overlap this
	q := env.Queues[transmitQueue]
	for more := true; more; more = q.EnableNotify() {
		q.DisableNotify()
		for {
			c, ok, err := q.Pop()
			if err != nil {
				env.Fail(err)
				return
			}
			if !ok {
				break
			}
			d.print(c)
			q.Push(c.Head, 0)
		}
		q.Flush()
	}
}

func (d *Device) print(c *virtio.Chain) {
	room := maxOutput
	for _, b := range c.Readable {
		b = b[:min(len(b), room)]
		room -= len(b)
		if d.log != nil {
			_, _ = d.log.Write(b)
		}
		if d.output != nil {
			_, _ = d.output.Write(b) // a reader that is gone is no reason to stop the guest
		}
	}
}

// Write queues input for the guest. It never blocks: when the guest does not read, it takes what fits in MaxInput and returns
// how much that was, with ErrInputFull.
func (d *Device) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(p), MaxInput-len(d.input))
	d.input = append(d.input, p[:n]...)
	d.deliver()
	if n < len(p) {
		return n, ErrInputFull
	}
	return n, nil
}

// deliver moves input to the buffers that the guest made available. Caller holds mu.
func (d *Device) deliver() {
	if d.env == nil || d.paused || len(d.input) == 0 {
		return
	}
	q := d.env.Queues[receiveQueue]
	for len(d.input) > 0 {
		c, ok, err := q.Pop()
		if err != nil {
			d.env.Fail(err)
			return
		}
		if !ok {
			if !q.EnableNotify() {
				break
			}
			continue
		}
		if c.WriteLen == 0 {
			d.env.Fail(virtio.DriverErrorf("console receive buffer without space"))
			return
		}
		n := 0
		for _, b := range c.Writable {
			n += copy(b, d.input[n:])
		}
		d.input = d.input[:copy(d.input, d.input[n:])]
		q.Push(c.Head, uint32(n))
	}
	q.Flush()
}

// SetSize tells the guest the console's size in characters.
func (d *Device) SetSize(cols, rows uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setSize(cols, rows)
	if d.env == nil || !d.env.Has(FeatureSize) {
		return
	}
	if d.paused {
		d.resize = true
		return
	}
	d.env.ConfigChanged()
}

func (d *Device) setSize(cols, rows uint16) {
	binary.LittleEndian.PutUint16(d.config[0:], cols)
	binary.LittleEndian.PutUint16(d.config[2:], rows)
	binary.LittleEndian.PutUint32(d.config[4:], 1) // max_nr_ports
}

// deviceState is what a console carries through a snapshot.
type deviceState struct {
	Cols, Rows uint16
	Input      []byte
}

// SaveState implements virtio.Stateful.
func (d *Device) SaveState() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return msgpack.Marshal(deviceState{
		Cols:  binary.LittleEndian.Uint16(d.config[0:]),
		Rows:  binary.LittleEndian.Uint16(d.config[2:]),
		Input: d.input,
	})
}

// RestoreState implements virtio.Stateful.
func (d *Device) RestoreState(b []byte) error {
	var s deviceState
	if err := msgpack.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	if len(s.Input) > MaxInput {
		return fmt.Errorf("console: %d bytes of input", len(s.Input))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setSize(s.Cols, s.Rows)
	d.input = s.Input
	return nil
}
