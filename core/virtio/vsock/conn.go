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

	rx      ring   // received and not read
	pending []byte // what Write still has to send

	// Credit (§5.10.6.3): modulo 2^32, as in the protocol.
	rxCount, fwdCount, toldFwd uint32 // received, consumed, consumed as last told to the guest
	txCount                    uint32 // sent
	peerAlloc, peerFwd         uint32 // the guest's buffer, and what the guest has consumed

	wants                uint8
	inControl, inWriters bool // it is in the device's list

	reading, writing      sync.Mutex    // one reader and one writer at a time
	readable, writable    chan struct{} // one token: look again
	readLimit, writeLimit deadline
}

func (d *Device) newConn(k key) *Conn {
	c := &Conn{
		d: d, key: k, established: make(chan struct{}),
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
	if !c.inControl {
		c.inControl = true
		c.d.control = append(c.d.control, c)
	}
}

func (c *Conn) wantWrite() {
	if !c.inWriters {
		c.inWriters = true
		c.d.writers = append(c.d.writers, c)
	}
}

// header returns a packet's header with this connection's addresses and credit.
func (c *Conn) header(op uint16) header {
	c.toldFwd = c.fwdCount
	return header{
		srcCID: HostCID, dstCID: c.d.cid, srcPort: c.key.host, dstPort: c.key.guest, kind: typeStream, op: op,
		bufAlloc: BufferSize, fwdCnt: c.fwdCount,
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
	for {
		n, done, err := c.tryRead(p)
		if done {
			return n, c.opError("read", err)
		}
		select {
		case <-c.readable:
		case <-c.readLimit.expired():
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		}
	}
}

func (c *Conn) tryRead(p []byte) (n int, done bool, err error) {
	d := c.d
	d.mu.Lock()
	defer d.mu.Unlock()
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
		n = c.rx.take(p)
		c.fwdCount += uint32(n)
		// Tell the guest once it may believe that less than half of the buffer is free.
		if c.state == stateConnected && c.rxCount-c.toldFwd >= BufferSize/2 && c.fwdCount != c.toldFwd {
			c.want(wantCredit)
			d.pump()
		}
		return n, true, nil
	case c.state == stateClosed && c.err != nil:
		return 0, true, c.err
	case c.state == stateClosed, c.peerFlags&shutdownSend != 0:
		return 0, true, io.EOF
	}
	return 0, false, nil
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
	c.pending = p
	if len(p) > 0 {
		c.wantWrite()
		d.pump()
	}
	for {
		left := len(c.pending)
		err := c.writeErr()
		if left == 0 && (len(p) > 0 || err == nil) || err != nil {
			c.pending = nil
			d.mu.Unlock()
			if left == 0 && len(p) > 0 {
				err = nil
			}
			return len(p) - left, c.opError("write", err)
		}
		d.mu.Unlock()
		select {
		case <-c.writable:
		case <-c.writeLimit.expired():
		}
		d.mu.Lock()
	}
}

// writeErr returns why nothing can be written now.
func (c *Conn) writeErr() error {
	switch {
	case c.locallyClosed():
		return net.ErrClosed
	case c.writeLimit.passed():
		return os.ErrDeadlineExceeded
	case c.state == stateClosed && c.err != nil:
		return c.err
	case c.state == stateClosed, c.localFlags&shutdownSend != 0, c.peerFlags&shutdownReceive != 0:
		return syscall.EPIPE
	}
	return nil
}

// CloseWrite tells the guest that no more data will come; reading goes on.
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
		c.fwdCount += uint32(c.rx.n)
		c.rx = ring{}
		c.wakeReader()
	}
	if c.state == stateConnected && c.localFlags&flag == 0 {
		c.localFlags |= flag
		c.want(wantShutdown)
		d.pump()
	}
	return nil
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
		c.rx = ring{}
		c.wake()
		return nil
	case stateConnecting:
		d.reset(c, net.ErrClosed)
		d.pump()
		return nil
	}
	c.state, c.rx = stateClosing, ring{}
	c.localFlags = shutdownBoth
	c.want(wantShutdown)
	c.linger = time.AfterFunc(closeTimeout, c.endLinger)
	c.wake()
	d.pump()
	return nil
}

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

// deadline is a point in time that can be waited for and moved.
type deadline struct {
	mu    *sync.Mutex
	state *deadlineState
}

type deadlineState struct {
	timer *time.Timer
	done  chan struct{} // closed when the deadline has passed
}

func newDeadline() deadline {
	return deadline{&sync.Mutex{}, &deadlineState{done: make(chan struct{})}}
}

// expired returns a channel that is closed once the deadline that is set now has passed. A wait on it ends spuriously when the
// deadline is moved into the past.
func (d deadline) expired() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.done
}

func (d deadline) passed() bool {
	select {
	case <-d.expired():
		return true
	default:
		return false
	}
}

// set moves the deadline; zero means none.
func (d deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.state
	if st.timer != nil && !st.timer.Stop() {
		<-st.done // the timer fires right now
	}
	st.timer = nil
	select {
	case <-st.done:
		st.done = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	done := st.done
	if left := time.Until(t); left > 0 {
		st.timer = time.AfterFunc(left, func() { close(done) })
		return
	}
	close(done)
}
