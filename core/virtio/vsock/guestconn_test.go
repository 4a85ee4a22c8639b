package vsock

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const guestBuffer = 256 << 10

var errReset = errors.New("guest: connection reset")

// guestConn is a socket of the guest's. Fields are protected by the guest's mutex.
type guestConn struct {
	g    *guest
	k    key
	cond *sync.Cond

	connected, reset, closed bool
	discard                  bool // count what comes in and drop it
	received                 uint64
	localFlags, peerFlags    uint32
	rx                       []byte
	alloc                    uint32 // size of the receive buffer
	rxCount, fwdCount        uint32
	toldFwd, txCount         uint32
	peerAlloc, peerFwd       uint32
	readLimit, writeLimit    time.Time
}

func (g *guest) newConn(k key) *guestConn {
	c := &guestConn{g: g, k: k, cond: sync.NewCond(&g.mu), alloc: guestBuffer}
	g.conns[k] = c
	return c
}

func (c *guestConn) header(op uint16) header {
	c.toldFwd = c.fwdCount
	return header{op: op, srcPort: c.k.guest, dstPort: c.k.host, bufAlloc: c.alloc, fwdCnt: c.fwdCount}
}

// receive handles a packet of this connection's.
func (c *guestConn) receive(h *header, data []byte) {
	defer c.cond.Broadcast()
	c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
	switch h.op {
	case opResponse:
		c.connected = true
	case opRST:
		c.end()
	case opShutdown:
		c.peerFlags |= h.flags
		if c.peerFlags == shutdownBoth {
			c.g.answer(c.header(opRST))
			c.end()
		}
	case opRW:
		if len(data) == 0 {
			c.g.t.Errorf("empty data packet")
		}
		if c.rxCount+h.len-c.fwdCount > c.alloc {
			c.g.t.Errorf("device sent more than the guest has room for: %d after %d", h.len, c.rxCount-c.fwdCount)
		}
		c.rxCount += h.len
		c.received += uint64(h.len)
		if c.discard {
			c.consumed(len(data))
		} else {
			c.rx = append(c.rx, data...)
		}
	case opCreditRequest:
		c.g.answer(c.header(opCreditUpdate))
	}
}

// end takes the connection out of the guest's table; what was received stays readable.
func (c *guestConn) end() {
	c.reset = true
	delete(c.g.conns, c.k)
}

func (c *guestConn) consumed(n int) {
	c.fwdCount += uint32(n)
	if !c.reset && c.alloc-(c.rxCount-c.toldFwd) < 64<<10 && c.fwdCount != c.toldFwd {
		c.g.answer(c.header(opCreditUpdate))
	}
}

func late(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

// Read implements net.Conn.
func (c *guestConn) Read(p []byte) (int, error) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case late(c.readLimit):
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case len(c.rx) > 0:
			n := copy(p, c.rx)
			c.rx = append(c.rx[:0], c.rx[n:]...)
			c.consumed(n)
			return n, nil
		case c.peerFlags&shutdownSend != 0:
			return 0, io.EOF
		case c.reset:
			return 0, errReset
		}
		c.cond.Wait()
	}
}

// Write implements net.Conn.
func (c *guestConn) Write(p []byte) (int, error) {
	g := c.g
	g.mu.Lock()
	defer g.mu.Unlock()
	for n := 0; ; {
		credit := int(min(c.peerAlloc, c.alloc)) - int(c.txCount-c.peerFwd) // no more ahead than it has room for itself, as Linux
		switch {
		case c.closed:
			return n, net.ErrClosed
		case late(c.writeLimit):
			return n, os.ErrDeadlineExceeded
		case c.reset, c.localFlags&shutdownSend != 0, c.peerFlags&shutdownReceive != 0:
			return n, errReset
		case n == len(p):
			return n, nil
		case credit <= 0:
			c.cond.Wait()
			continue
		case len(g.free) == 0:
			g.cond.Wait()
			continue
		}
		k := min(credit, len(p)-n, 64<<10)
		c.txCount += uint32(k)
		g.transmit(c.header(opRW), p[n:n+k])
		n += k
	}
}

// shutdown is shutdown(2), with the flags of the protocol.
func (c *guestConn) shutdown(flags uint32) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	c.localFlags |= flags
	h := c.header(opShutdown)
	h.flags = c.localFlags
	c.g.answer(h)
}

// Close implements net.Conn.
func (c *guestConn) Close() error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	if !c.reset {
		c.localFlags = shutdownBoth
		h := c.header(opShutdown)
		h.flags = shutdownBoth
		c.g.answer(h)
	}
	c.cond.Broadcast()
	c.g.cond.Broadcast()
	return nil
}

// abort sends a reset.
func (c *guestConn) abort() {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	c.g.answer(c.header(opRST))
	c.end()
	c.cond.Broadcast()
}

// waitFor waits until something holds of the connection.
func (c *guestConn) waitFor(f func() bool) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for !f() {
		c.cond.Wait()
	}
}

func (c *guestConn) LocalAddr() net.Addr  { return Addr{guestCID, c.k.guest} }
func (c *guestConn) RemoteAddr() net.Addr { return Addr{HostCID, c.k.host} }

func (c *guestConn) SetDeadline(t time.Time) error {
	c.setLimit(&c.readLimit, t)
	c.setLimit(&c.writeLimit, t)
	return nil
}

func (c *guestConn) SetReadDeadline(t time.Time) error  { c.setLimit(&c.readLimit, t); return nil }
func (c *guestConn) SetWriteDeadline(t time.Time) error { c.setLimit(&c.writeLimit, t); return nil }

func (c *guestConn) setLimit(limit *time.Time, t time.Time) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	*limit = t
	wake := func() {
		c.g.mu.Lock()
		defer c.g.mu.Unlock()
		c.cond.Broadcast()
		c.g.cond.Broadcast()
	}
	if t.IsZero() {
		return
	}
	time.AfterFunc(max(0, time.Until(t)), wake)
}
