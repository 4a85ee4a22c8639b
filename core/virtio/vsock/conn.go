package vsock

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const network = "vsock"

// Addr is the address of one end of a connection.
type Addr struct{ CID, Port uint32 }

// Network returns "vsock".
func (a Addr) Network() string { return network }

// String returns "CID:PORT".
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// Control packets that a connection waits to send.
const (
	wantRequest = 1 << iota
	wantResponse
	wantShutdown
	wantCredit
)

type connState uint8

const (
	stateConnecting connState = iota // REQUEST sent or about to be
	stateConnected
	stateClosing // closed by us: SHUTDOWN sent or about to be, the guest's reset is awaited
	stateClosed
)

// closeTimeout is how long a guest may take to answer our SHUTDOWN before it gets a reset, as in Linux.
const closeTimeout = 8 * time.Second

// Conn is a connection to the guest. It implements net.Conn, CloseRead and CloseWrite. Fields are protected by the device's mutex.
type Conn struct {
	d   *Device
	key key

	state       connState
	established chan struct{} // closed once connecting is over
	err         error         // why it is closed; nil with stateClosed: the guest ended it in order
	readClosed  bool          // CloseRead was called
	localFlags  uint32        // of the SHUTDOWN that we sent or want to
	peerFlags   uint32        // of the guest's
	linger      *time.Timer
	orphan      bool // restored, and nobody has asked for it

	window  uint32 // size of the receive buffer
	rx      ring   // received and not read
	into    []byte // rest of the buffer of a Read that waits: what comes goes there first
	got     int    // bytes put into it
	pending []byte // what Write still has to send, or had when the state was saved

	// Credit (§5.10.6.3): modulo 2^32, as in the protocol.
	rxCount, fwdCount, toldFwd uint32 // received, consumed, consumed as last told to the guest
	txCount                    uint32 // sent
	peerAlloc, peerFwd         uint32 // the guest's buffer, and what the guest has consumed

	wants  uint8
	places [lines]place

	reading, writing      sync.Mutex    // one reader and one writer at a time
	readable, writable    chan struct{} // one token: look again
	readLimit, writeLimit deadline
}

func (d *Device) newConn(k key) *Conn {
	c := &Conn{
		d: d, key: k, window: windowAmong(len(d.conns)), established: make(chan struct{}),
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1), readLimit: newDeadline(), writeLimit: newDeadline(),
	}
	d.conns[k] = c
	return c
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (c *Conn) wakeReader() { signal(c.readable) }
func (c *Conn) wakeWriter() { signal(c.writable) }
func (c *Conn) wake()       { c.wakeReader(); c.wakeWriter() }

// fail ends the connection; the caller takes it out of the device's map. A nil err is an end in order.
func (c *Conn) fail(err error) {
	if c.state == stateClosed {
		return
	}
	connecting := c.state == stateConnecting
	if c.state == stateClosing {
		err = net.ErrClosed
	}
	c.state, c.err, c.wants = stateClosed, err, 0
	c.d.control.remove(c)
	c.d.writers.remove(c)
	if c.linger != nil {
		c.linger.Stop()
	}
	if connecting {
		close(c.established)
	}
	c.wake()
}

// credit returns how many bytes the guest has room for.
func (c *Conn) credit() uint32 {
	if inFlight := c.txCount - c.peerFwd; inFlight < c.peerAlloc {
		return c.peerAlloc - inFlight
	}
	return 0
}

// want puts the connection in line to send a control packet.
func (c *Conn) want(w uint8) {
	c.wants |= w
	c.d.control.add(c)
}

// windowAmong returns the window of a new connection: the more there are, the smaller, so that a guest cannot make the host keep much.
func windowAmong(conns int) uint32 {
	return uint32(min(max(windowBudget/(conns+1), minWindow), maxWindow))
}

// creditDue reports whether to tell the guest what was consumed: once it believes that less than half of the buffer is free, and if
// the news is worth a packet. Linux sends no more ahead than it has room for itself.
func (c *Conn) creditDue() bool {
	ahead := min(c.window, c.peerAlloc)
	return c.state == stateConnected && c.rxCount-c.toldFwd >= ahead/2 && c.fwdCount-c.toldFwd >= max(ahead/4, 1)
}

// header returns a packet's header with this connection's addresses and credit.
func (c *Conn) header(op uint16) header {
	c.toldFwd = c.fwdCount
	return header{
		srcCID: HostCID, dstCID: c.d.cid, srcPort: c.key.host, dstPort: c.key.guest, kind: typeStream, op: op,
		bufAlloc: c.window, fwdCnt: c.fwdCount,
	}
}

// controlPacket takes the most urgent control packet that waits.
func (c *Conn) controlPacket() header {
	switch {
	case c.wants&wantRequest != 0:
		c.wants &^= wantRequest
		return c.header(opRequest)
	case c.wants&wantResponse != 0:
		c.wants &^= wantResponse
		return c.header(opResponse)
	case c.wants&wantShutdown != 0:
		c.wants &^= wantShutdown
		h := c.header(opShutdown)
		h.flags = c.localFlags
		return h
	default:
		c.wants &^= wantCredit
		return c.header(opCreditUpdate)
	}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		n, done, err := c.tryRead(p)
		if done {
			return n, c.opError("read", err)
		}
		c.into, c.got = p, 0
		d.mu.Unlock()
		select {
		case <-c.readable:
		case <-c.readLimit.expired():
		}
		d.mu.Lock()
		n, c.into, c.got = c.got, nil, 0
		if n > 0 {
			return n, nil
		}
	}
}

// tryRead reads without waiting. The caller holds the device's mutex.
func (c *Conn) tryRead(p []byte) (n int, done bool, err error) {
	switch {
	case c.locallyClosed():
		return 0, true, net.ErrClosed
	case c.readLimit.passed():
		return 0, true, os.ErrDeadlineExceeded
	case c.readClosed:
		return 0, true, io.EOF
	case len(p) == 0:
		return 0, true, nil
	case c.rx.n > 0:
		n = c.rx.take(&c.d.spares, p)
		if c.consume(n) {
			c.d.pump()
		}
		return n, true, nil
	case c.state == stateClosed && c.err != nil:
		return 0, true, c.err
	case c.state == stateClosed, c.peerFlags&shutdownSend != 0:
		return 0, true, io.EOF
	}
	return 0, false, nil
}

// consume notes that n bytes of what was received need no room any more, and reports whether that is news for the guest.
func (c *Conn) consume(n int) (due bool) {
	c.fwdCount += uint32(n)
	if due = c.creditDue(); due {
		c.want(wantCredit)
	}
	return due
}

// locallyClosed reports whether Close was called, or the whole device was closed.
func (c *Conn) locallyClosed() bool {
	return c.state == stateClosing || c.state == stateClosed && errors.Is(c.err, net.ErrClosed)
}

// Write implements net.Conn. It returns when the guest's driver has all of p.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(c.pending) > 0 { // the rest of a Write that was saved
		if err := c.drain(); err != nil {
			return 0, c.opError("write", err)
		}
	}
	c.pending = p
	err := c.drain()
	left := len(c.pending)
	c.pending = nil
	return len(p) - left, c.opError("write", err)
}

// drain waits until pending is sent. The caller holds the device's mutex, which is released meanwhile.
func (c *Conn) drain() error {
	d := c.d
	for {
		if err := c.writeErr(); err != nil {
			return err
		}
		if len(c.pending) > 0 {
			d.writers.add(c)
			d.pump()
		}
		if len(c.pending) == 0 {
			return nil
		}
		d.mu.Unlock()
		select {
		case <-c.writable:
		case <-c.writeLimit.expired():
		}
		d.mu.Lock()
		if len(c.pending) == 0 {
			return nil
		}
	}
}

// writeErr returns why nothing can be written now.
func (c *Conn) writeErr() error {
	if err := c.sendErr(); err != nil {
		return err
	}
	if c.writeLimit.passed() {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// sendErr returns why the connection takes no more data.
func (c *Conn) sendErr() error {
	switch {
	case c.locallyClosed():
		return net.ErrClosed
	case c.state == stateClosed && c.err != nil:
		return c.err
	case c.state == stateClosed, c.localFlags&shutdownSend != 0, c.peerFlags&shutdownReceive != 0:
		return syscall.EPIPE
	}
	return nil
}

// canSend reports whether the connection has data for the guest that the guest has room for.
func (c *Conn) canSend() bool { return len(c.pending) > 0 && c.credit() > 0 && c.sendErr() == nil }

// CloseWrite tells the guest that no more data will come; reading goes on. A Write under way fails with EPIPE.
func (c *Conn) CloseWrite() error { return c.shutdown(shutdownSend) }

// CloseRead tells the guest that no more data is wanted; what still comes is dropped.
func (c *Conn) CloseRead() error { return c.shutdown(shutdownReceive) }

func (c *Conn) shutdown(flag uint32) error {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.locallyClosed() {
		return c.opError("shutdown", net.ErrClosed)
	}
	if flag == shutdownReceive {
		c.readClosed = true
		c.dropUnread()
	}
	if c.state == stateConnected && c.localFlags&flag == 0 {
		c.localFlags |= flag
		c.want(wantShutdown)
		d.pump()
	}
	c.wake()
	return nil
}

// dropUnread consumes what was received.
func (c *Conn) dropUnread() {
	c.fwdCount += uint32(c.rx.n)
	c.rx.drop(&c.d.spares)
}

// Close implements net.Conn. Data that the guest has not read yet stays readable there.
func (c *Conn) Close() error {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	switch c.state {
	case stateClosing:
		return c.opError("close", net.ErrClosed)
	case stateClosed:
		if errors.Is(c.err, net.ErrClosed) {
			return c.opError("close", net.ErrClosed)
		}
		c.err = net.ErrClosed // what is unread is not wanted any more
		c.dropUnread()
		c.wake()
		return nil
	case stateConnecting:
		d.reset(c, net.ErrClosed)
		d.pump()
		return nil
	}
	c.state, c.localFlags = stateClosing, shutdownBoth
	c.dropUnread()
	c.want(wantShutdown)
	c.startLinger()
	c.wake()
	d.pump()
	return nil
}

func (c *Conn) startLinger() { c.linger = time.AfterFunc(closeTimeout, c.endLinger) }

// endLinger resets a connection whose guest did not answer our SHUTDOWN.
func (c *Conn) endLinger() {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.state == stateClosing {
		d.reset(c, net.ErrClosed)
		d.pump()
	}
}

func (c *Conn) opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: network, Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return Addr{HostCID, c.key.host} }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return Addr{uint32(c.d.cid), c.key.guest} }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.readLimit.set(t)
	c.writeLimit.set(t)
	return c.closedError()
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.readLimit.set(t)
	return c.closedError()
}

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writeLimit.set(t)
	return c.closedError()
}

func (c *Conn) closedError() error {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if c.locallyClosed() {
		return c.opError("set deadline", net.ErrClosed)
	}
	return nil
}
