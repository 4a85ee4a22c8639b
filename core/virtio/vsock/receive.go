package vsock

import (
	"syscall"

	"github.com/supermachine/supermachine/core/virtio"
)

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
	for n := range batch {
		chain, ok, err := q.Pop()
		if err != nil {
			d.fail(err)
			return false
		}
		if !ok {
			d.completeSent(n)
			d.pump()
			return d.live() && q.EnableNotify()
		}
		err = d.handleChain(chain)
		q.Push(chain.Head, 0)
		if err != nil {
			d.fail(err)
			return false
		}
	}
	d.completeSent(batch)
	d.pump()
	return d.live()
}

// handleChain checks one packet and handles it.
func (d *Device) handleChain(chain *virtio.Chain) error {
	if gather(d.packet[:], chain.Readable, 0) < headerSize {
		return virtio.DriverErrorf("socket packet of %d bytes, less than its header", chain.ReadLen)
	}
	var h header
	h.decode(&d.packet)
	switch {
	case uint64(h.len) > chain.ReadLen-headerSize:
		return virtio.DriverErrorf("socket packet claims %d bytes of payload and has %d", h.len, chain.ReadLen-headerSize)
	case h.srcCID != d.cid: // from someone who is not here
	case h.dstCID != HostCID, h.kind != typeStream:
		d.refuse(&h)
	default:
		d.handle(&h, chain.Readable)
	}
	return nil
}

// refuse answers a packet that belongs to no connection with a reset, unless it is one.
func (d *Device) refuse(h *header) {
	if h.op != opRST && d.resets.len() < maxResets {
		d.resets.push(resetPacket{cid: h.dstCID, key: key{host: h.dstPort, guest: h.srcPort}, kind: h.kind})
	}
}

func (d *Device) handle(h *header, packet [][]byte) {
	k := key{host: h.dstPort, guest: h.srcPort}
	c := d.conns[k]
	if h.op == opRequest {
		if c != nil { // the guest began anew without ending the old connection
			delete(d.conns, k)
			c.fail(syscall.ECONNRESET)
		}
		d.accept(k, h)
		return
	}
	if c == nil {
		d.refuse(h)
		return
	}
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
	if c.state == stateConnecting {
		d.answered(c, h)
		return
	}
	switch h.op {
	case opRST:
		delete(d.conns, k)
		c.fail(syscall.ECONNRESET)
	case opShutdown:
		d.peerShutdown(c, h.flags)
	case opRW:
		d.deliver(c, h, packet)
	case opCreditUpdate:
	case opCreditRequest:
		c.want(wantCredit)
	default:
		d.reset(c, ErrProtocol)
	}
	if len(c.pending) > 0 && c.state != stateClosed {
		d.writers.add(c) // it may have credit now
	}
}

// answered handles the answer to our connection request.
func (d *Device) answered(c *Conn, h *header) {
	switch h.op {
	case opResponse:
		c.state = stateConnected
		close(c.established)
	case opRST:
		delete(d.conns, c.key)
		c.fail(syscall.ECONNREFUSED)
	default:
		d.reset(c, ErrProtocol)
	}
}

// accept handles a connection request.
func (d *Device) accept(k key, h *header) {
	l := d.listeners[k.host]
	if l == nil || len(l.backlog) == cap(l.backlog) || d.full() {
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
	if c.peerFlags == shutdownBoth {
		// The guest waits for this reset. What it sent before is here already and stays readable.
		d.reset(c, nil)
		return
	}
	c.wake()
}

func (d *Device) deliver(c *Conn, h *header, packet [][]byte) {
	// What the guest may send depends on what it was told, not on what was read since.
	if c.peerFlags&shutdownSend != 0 || uint64(c.rxCount-c.toldFwd)+uint64(h.len) > uint64(c.window) {
		d.reset(c, ErrProtocol) // data after its end or without credit
		return
	}
	c.rxCount += h.len
	if c.state == stateClosing || c.readClosed {
		c.consume(int(h.len)) // nobody will read it
		return
	}
	off, n := headerSize, int(h.len)
	if n == 0 {
		return
	}
	if len(c.into) > 0 { // a Read waits, so nothing is unread before this
		k := gather(c.into[:min(n, len(c.into))], packet, off)
		c.into, c.got = c.into[k:], c.got+k
		c.consume(k)
		off, n = off+k, n-k
	}
	c.rx.put(&d.spares, packet, off, n)
	c.wakeReader()
}

// reset ends a connection from our side at once. A guest that has not heard of it is told nothing.
func (d *Device) reset(c *Conn, err error) {
	delete(d.conns, c.key)
	if c.wants&wantRequest == 0 {
		d.resets.push(resetPacket{cid: HostCID, key: c.key, kind: typeStream})
	}
	c.fail(err)
}
