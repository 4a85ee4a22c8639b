// Package vsock is the virtio socket device (virtio 1.2 §5.10), stream sockets only. The host's end of every connection is a net.Conn in
// this process; the host's kernel takes no part.
package vsock

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/supermachine/supermachine/core/virtio"
)

// HostCID is the host's address (§5.10.4).
const HostCID = 2

// Limits on what a guest can make the host keep.
const (
	maxWindow      = 1 << 20  // receive buffer of a connection: what the guest may send ahead
	minWindow      = 64 << 10 // the same of one among many
	windowBudget   = 64 << 20 // what full windows share
	MaxConnections = 16 << 10
	maxBacklog     = 1024 // connections that wait for one Listener's Accept
	maxResets      = 1024 // resets of unknown connections that wait for a receive buffer of the guest's
)

const (
	rxQueue    = 0 // host → guest
	txQueue    = 1 // guest → host
	eventQueue = 2
)

// Errors of connections that match syscall.ECONNRESET, as the guest's own resets do.
var (
	ErrProtocol    = fmt.Errorf("vsock: the guest broke the protocol of the connection: %w", syscall.ECONNRESET)
	ErrDeviceReset = fmt.Errorf("vsock: the guest's driver reset the device: %w", syscall.ECONNRESET)
)

// Config describes the device.
type Config struct {
	GuestCID uint32 // the guest's address, at least 3
}

// Device is a virtio socket device. One mutex protects everything: what runs under it copies memory and never waits.
type Device struct {
	cid uint64

	mu        sync.Mutex
	env       *virtio.Env   // nil while the driver is not there
	active    chan struct{} // closed while env is set
	paused    bool
	closed    bool
	broken    error // why the device fails until the driver resets it
	conns     map[key]*Conn
	listeners map[uint32]*Listener
	nextPort  uint32

	// What waits for receive buffers of the guest's, in this order.
	resets  resetQueue // of connections that do not exist any more, or never did
	control line       // with pending control packets
	writers line       // with pending data, taking turns

	sent   completions
	packet [headerSize]byte // of the packet in work
	spares spares
}

// key names a connection.
type key struct{ host, guest uint32 }

// New returns the device.
func New(c Config) *Device {
	return &Device{
		cid: uint64(c.GuestCID), active: make(chan struct{}), conns: map[key]*Conn{}, listeners: map[uint32]*Listener{},
		nextPort: firstPort, control: line{which: controlLine}, writers: line{which: writerLine},
	}
}

// Dial uses the ports from firstPort, high so that it meets no listener's, up to but without lastPort, which means any port.
const (
	firstPort = 1 << 30
	lastPort  = 1<<32 - 1
)

// ID implements virtio.Device.
func (d *Device) ID() uint32 { return virtio.IDVsock }

// Features implements virtio.Device: VIRTIO_VSOCK_F_STREAM (§5.10.3).
func (d *Device) Features() uint64 { return 1 }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 { return []uint16{rxQueue: 256, txQueue: 256, eventQueue: 16} }

// ReadConfig implements virtio.Device: the guest's CID (§5.10.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	virtio.ReadConfigBytes(binary.LittleEndian.AppendUint64(nil, d.cid), off, p)
}

// WriteConfig implements virtio.Device: there is nothing to write.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(env *virtio.Env) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.env, d.paused = env, false
	close(d.active)
	return nil
}

// Pause implements virtio.Pauser: Dial, Write and Read go on waiting, and nobody touches the guest.
func (d *Device) Pause() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.announceSent()
	d.paused = true
}

// Resume implements virtio.Pauser. After a restore, the connections that nobody asked for with Restored are reset.
func (d *Device) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = false
	for _, c := range d.conns {
		switch {
		case !c.orphan:
		case c.state == stateClosing:
			c.orphan = false
			c.startLinger()
		default:
			d.reset(c, ErrDeviceReset)
		}
	}
	d.pump()
}

// Reset implements virtio.Device: every connection fails with ErrDeviceReset, listeners stay.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.env != nil {
		d.env = nil
		d.active = make(chan struct{})
	}
	d.endAll(ErrDeviceReset)
	d.paused, d.broken, d.sent.owed = false, nil, 0
}

// endAll ends every connection without telling the guest.
func (d *Device) endAll(err error) {
	for _, c := range d.conns {
		c.fail(err)
	}
	clear(d.conns)
	d.resets = resetQueue{}
}

// fail gives the device up until the driver resets it: every connection fails with an error that matches virtio.ErrDriver.
func (d *Device) fail(err error) {
	d.sent.owed = 0
	// First, so that a driver that finds the buffer at fault among the used ones knows already.
	d.env.Fail(err)
	for _, q := range d.env.Queues {
		q.Flush()
	}
	d.broken = fmt.Errorf("vsock: the device failed: %w", err)
	d.endAll(d.broken)
}

// Close implements virtio.Device: listeners and waiting dialers fail with net.ErrClosed, and connections too unless Reset was
// called before.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.env == nil {
		close(d.active) // wakes Dial
	}
	d.endAll(net.ErrClosed)
	for _, l := range d.listeners {
		l.end()
	}
	clear(d.listeners)
	return nil
}

// Notify implements virtio.Device.
func (d *Device) Notify(queue int) {
	switch queue {
	case rxQueue:
		d.mu.Lock()
		d.pump()
		d.mu.Unlock()
	case txQueue:
		for d.receive() {
		}
	}
}

func (d *Device) live() bool { return d.env != nil && !d.paused && d.broken == nil }

// full reports whether there may be no further connection. Resets count, so that what waits is bounded.
func (d *Device) full() bool { return len(d.conns)+d.resets.len() >= MaxConnections }
