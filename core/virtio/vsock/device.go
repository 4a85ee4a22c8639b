// Package vsock is the virtio socket device (virtio 1.2 §5.10), stream sockets only. The host's end of every connection is a net.Conn in
// this process; the host's kernel takes no part.
package vsock

import (
	"context"
	"encoding/binary"
	"errors"
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
	BufferSize     = 256 << 10 // receive buffer of one connection, the most that the guest may send ahead
	MaxConnections = 16 << 10
	maxBacklog     = 1024 // connections that wait for one Listener's Accept
	maxResets      = 1024 // resets to unknown connections that wait for a receive buffer of the guest's
)

const (
	rxQueue    = 0 // host → guest
	txQueue    = 1 // guest → host
	eventQueue = 2
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
	conns     map[key]*Conn
	listeners map[uint32]*Listener
	nextPort  uint32

	// What waits for receive buffers of the guest's, in this order.
	resets  []header // to connections that do not exist
	control []*Conn  // with pending control packets
	writers []*Conn  // with pending data, taking turns

	packet [headerSize]byte // of the packet in work
}

// key names a connection.
type key struct{ host, guest uint32 }

// New returns the device.
func New(c Config) *Device {
	return &Device{
		cid: uint64(c.GuestCID), active: make(chan struct{}), conns: map[key]*Conn{}, listeners: map[uint32]*Listener{},
		nextPort: firstPort,
	}
}

// firstPort is the first port that Dial uses: high, so that it meets no listener's.
const firstPort = 1 << 30

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
	d.paused = true
}

// Resume implements virtio.Pauser.
func (d *Device) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = false
	d.pump()
}

// Reset implements virtio.Device: every connection fails with ECONNRESET, listeners stay.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.env != nil {
		d.env = nil
		d.active = make(chan struct{})
	}
	for _, c := range d.conns {
		c.fail(syscall.ECONNRESET)
	}
	clear(d.conns)
	d.resets, d.control, d.writers, d.paused = nil, nil, nil, false
}

// Close implements virtio.Device: connections and listeners fail with net.ErrClosed.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.env == nil {
		close(d.active) // wakes Dial
	}
	for _, c := range d.conns {
		c.fail(net.ErrClosed)
	}
	clear(d.conns)
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

func (d *Device) live() bool { return d.env != nil && !d.paused }

// batch is how many packets are received before others get the lock.
const batch = 128

// receive handles packets from the guest. It returns true if there may be more.
func (d *Device) receive() (more bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.live() {
		return false
	}
	q := d.env.Queues[txQueue]
	q.DisableNotify()
	for range batch {
		chain, ok, err := q.Pop()
		if err != nil {
			d.env.Fail(err)
			return false
		}
		if !ok {
			q.Flush()
			d.pump()
			return d.live() && q.EnableNotify()
		}
		if err := d.handleChain(chain); err != nil {
			d.env.Fail(err)
			return false
		}
		q.Push(chain.Head, 0)
	}
	q.Flush()
	d.pump()
	return true
}

// handleChain checks one packet and handles it.
func (d *Device) handleChain(chain *virtio.Chain) error {
	if gather(d.packet[:], chain.Readable) < headerSize {
		return virtio.DriverErrorf("socket packet of %d bytes, less than its header", chain.ReadLen)
	}
	var h header
	h.decode(&d.packet)
	if uint64(h.len) > chain.ReadLen-headerSize {
		return virtio.DriverErrorf("socket packet claims %d bytes of payload and has %d", h.len, chain.ReadLen-headerSize)
	}
	if h.srcCID != d.cid || h.dstCID != HostCID {
		return nil // to or from someone who is not here
	}
	if h.kind != typeStream {
		d.refuse(&h)
		return nil
	}
	d.handle(&h, chain.Readable)
	return nil
}

// refuse answers a packet that belongs to no connection with a reset, unless it is one.
func (d *Device) refuse(h *header) {
	if h.op != opRST && len(d.resets) < maxResets {
		d.resets = append(d.resets, header{
			srcCID: HostCID, dstCID: d.cid, srcPort: h.dstPort, dstPort: h.srcPort, kind: h.kind, op: opRST,
		})
	}
}

func (d *Device) handle(h *header, packet [][]byte) {
	k := key{host: h.dstPort, guest: h.srcPort}
	c := d.conns[k]
	if h.op == opRequest {
		if c != nil { // the guest began anew without ending the old connection
			c.fail(syscall.ECONNRESET)
			delete(d.conns, k)
		}
		d.accept(k, h)
		return
	}
	if c == nil {
		d.refuse(h)
		return
	}
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
	switch h.op {
	case opResponse:
		if c.state != stateConnecting {
			d.reset(c, syscall.ECONNRESET)
			return
		}
		c.state = stateConnected
		close(c.established)
	case opRST:
		delete(d.conns, k)
		err := error(syscall.ECONNRESET)
		if c.state == stateConnecting {
			err = syscall.ECONNREFUSED
		}
		c.fail(err)
	case opShutdown:
		d.peerShutdown(c, h.flags)
	case opRW:
		d.deliver(c, h, packet)
	case opCreditUpdate:
	case opCreditRequest:
		c.want(wantCredit)
	default:
		d.reset(c, syscall.ECONNRESET)
		return
	}
	if len(c.pending) > 0 {
		c.wantWrite() // it may have credit now
	}
}

// accept handles a connection request.
func (d *Device) accept(k key, h *header) {
	l := d.listeners[k.host]
	if l == nil || len(l.backlog) == cap(l.backlog) || len(d.conns) >= MaxConnections {
		d.refuse(h)
		return
	}
	c := d.newConn(k)
	c.state = stateConnected
	close(c.established)
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
	c.want(wantResponse)
	l.backlog <- c
}

func (d *Device) peerShutdown(c *Conn, flags uint32) {
	c.peerFlags |= flags & shutdownBoth
	if c.peerFlags&shutdownBoth == shutdownBoth {
		// The guest waits for this reset. What it sent before is here already and stays readable.
		delete(d.conns, c.key)
		d.refuse(&header{kind: typeStream, op: opShutdown, srcPort: c.key.guest, dstPort: c.key.host})
		c.fail(nil)
		return
	}
	c.wake()
}

func (d *Device) deliver(c *Conn, h *header, packet [][]byte) {
	if c.state == stateConnecting || c.peerFlags&shutdownSend != 0 || int(h.len) > BufferSize-c.rx.n {
		d.reset(c, syscall.ECONNRESET) // data before the connection, after its end, or without credit
		return
	}
	c.rxCount += h.len
	if c.state == stateClosing || c.readClosed {
		c.fwdCount += h.len // nobody will read it
		return
	}
	c.rx.put(packet, headerSize, int(h.len))
	c.wakeReader()
}

// reset ends a connection from our side at once.
func (d *Device) reset(c *Conn, err error) {
	delete(d.conns, c.key)
	d.refuse(&header{kind: typeStream, op: opRW, srcPort: c.key.guest, dstPort: c.key.host})
	c.fail(err)
}

// pump sends what waits, as long as the guest has receive buffers.
func (d *Device) pump() {
	if !d.live() {
		return
	}
	q := d.env.Queues[rxQueue]
	sent := false
	for d.pending() {
		chain, ok, err := q.Pop()
		if err != nil {
			d.env.Fail(err)
			return
		}
		if !ok {
			if sent {
				q.Flush()
				sent = false
			}
			if q.EnableNotify() {
				continue
			}
			return // Notify comes when the guest adds buffers
		}
		n, err := d.send(chain)
		if err != nil {
			d.env.Fail(err)
			return
		}
		q.Push(chain.Head, uint32(n))
		sent = true
	}
	if sent {
		q.Flush()
	}
	q.DisableNotify()
}

// pending reports whether a packet can be sent, dropping from the lists whoever has nothing to send any more.
func (d *Device) pending() bool {
	if len(d.resets) > 0 {
		return true
	}
	for len(d.control) > 0 {
		if d.control[0].wants != 0 {
			return true
		}
		d.control[0].inControl = false
		d.control = pop(d.control)
	}
	for len(d.writers) > 0 {
		if c := d.writers[0]; c.canSend() {
			return true
		}
		d.writers[0].inWriters = false
		d.writers = pop(d.writers)
	}
	return false
}

// canSend reports whether the connection has data for the guest that the guest has room for.
func (c *Conn) canSend() bool { return len(c.pending) > 0 && c.writeErr() == nil && c.credit() > 0 }

// pop removes the first element in place, so that the slice's memory is used again.
func pop[T any](s []T) []T {
	var zero T
	n := copy(s, s[1:])
	s[n] = zero
	return s[:n]
}

// send writes the next packet into a receive buffer and returns its length.
func (d *Device) send(chain *virtio.Chain) (int, error) {
	if chain.WriteLen < headerSize {
		return 0, virtio.DriverErrorf("socket receive buffer of %d bytes, less than a header", chain.WriteLen)
	}
	var h header
	var data []byte
	switch {
	case len(d.resets) > 0:
		h = d.resets[0]
		d.resets = pop(d.resets)
	case len(d.control) > 0:
		h = d.control[0].controlPacket()
	default:
		c := d.writers[0]
		room := min(uint64(c.credit()), chain.WriteLen-headerSize, uint64(len(c.pending)))
		data = c.pending[:room]
		h = c.header(opRW)
		h.len = uint32(room)
		scatter(chain.Writable, headerSize, data)
		c.txCount += h.len
		c.pending = c.pending[room:]
		if len(d.writers) > 1 { // the next one's turn
			d.writers = append(pop(d.writers), c)
		}
		if len(c.pending) == 0 {
			c.wakeWriter()
		}
	}
	h.encode(&d.packet)
	scatter(chain.Writable, 0, d.packet[:])
	return headerSize + len(data), nil
}

// Dial connects to a port of the guest. It waits, as long as ctx allows, until the guest's driver is there and the guest answers; a port
// without a listener gives syscall.ECONNREFUSED.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := d.dial(ctx, port)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: Addr{uint32(d.cid), port}, Err: err}
	}
	return c, nil
}

func (d *Device) dial(ctx context.Context, port uint32) (*Conn, error) {
	if err := d.waitActive(ctx); err != nil {
		return nil, err
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil, net.ErrClosed
	}
	if len(d.conns) >= MaxConnections {
		d.mu.Unlock()
		return nil, fmt.Errorf("%d connections are open already: %w", MaxConnections, syscall.ENOBUFS)
	}
	k := key{host: d.freePort(port), guest: port}
	c := d.newConn(k)
	c.want(wantRequest)
	d.pump()
	d.mu.Unlock()
	select {
	case <-c.established:
	case <-ctx.Done():
		c.Close()
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.state == stateConnecting || c.state == stateClosed && c.err != nil {
		return nil, c.err
	}
	return c, nil
}

func (d *Device) waitActive(ctx context.Context) error {
	for {
		d.mu.Lock()
		active, ready := d.active, d.env != nil || d.closed
		d.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-active:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// freePort returns a host port that no connection to the guest's port uses. Ports are not used again until all others were.
func (d *Device) freePort(guest uint32) uint32 {
	for {
		p := d.nextPort
		if d.nextPort++; d.nextPort == 1<<32-1 {
			d.nextPort = firstPort
		}
		if d.conns[key{p, guest}] == nil && d.listeners[p] == nil {
			return p
		}
	}
}

// ErrPortInUse is returned by Listen.
var ErrPortInUse = errors.New("vsock: the port has a listener already")
