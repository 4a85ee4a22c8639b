package netstack

import (
	"context"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// What a connection may buffer in each direction, and with it the host's memory: many connections have smaller windows.
const (
	maxWindow    = 1 << 20
	minWindow    = 32 << 10
	windowBudget = 64 << 20 // what full windows share

	maxOpening = 1024 // connections being opened at once; further SYNs are dropped, and repeated by the guest
)

// handleTCP decides about a SYN of the guest's, on a goroutine of its own. The host's connection comes first, so that the guest sees a refusal as one.
func (s *Stack) handleTCP(r *tcp.ForwarderRequest) {
	if !s.begin() {
		r.Complete(false)
		return
	}
	defer s.tasks.Done()
	s.total.Add(1)
	to := addrPort(r.ID().LocalAddress, r.ID().LocalPort)
	window, ok := s.reserve()
	if !ok {
		s.limited.Add(1)
		r.Complete(true)
		return
	}
	defer s.unreserve()
	if to == dnsAddr {
		if c := s.accept(r, nil, window); c != nil {
			s.dns.serveTCP(c)
		}
		return
	}
	real, action, reason := s.decide(TCP, to)
	if action == Deny {
		s.refuse(TCP, to, reason)
		r.Complete(true)
		return
	}
	if !sockets.take() {
		s.limited.Add(1)
		r.Complete(true)
		return
	}
	defer sockets.give()
	host, err := s.dial("tcp4", real)
	if err != nil {
		s.failed.Add(1)
		r.Complete(true)
		return
	}
	if c := s.accept(r, host.(*net.TCPConn), window); c != nil {
		c.run()
	}
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(a.As4()), port)
}

// dial opens a connection of the host's.
func (s *Stack) dial(network string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.DialTimeout)
	defer cancel()
	return s.dialer(ctx, network, to.String())
}

// reserve counts a connection if there may be another, and returns its window.
func (s *Stack) reserve() (window int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened >= s.cfg.MaxConns {
		return 0, false
	}
	s.opened++
	return max(minWindow, min(maxWindow, windowBudget/s.opened)), true
}

func (s *Stack) unreserve() {
	s.mu.Lock()
	s.opened--
	s.mu.Unlock()
}

// conn is an established connection of the guest's.
type conn struct {
	s      *Stack
	ep     tcpip.Endpoint
	wq     *waiter.Queue
	host   *net.TCPConn // nil for the gateway's own services
	window int
}

// accept finishes the guest's handshake. It returns nil if that failed; host is closed then.
func (s *Stack) accept(r *tcp.ForwarderRequest, host *net.TCPConn, window int) *conn {
	c := &conn{s: s, wq: new(waiter.Queue), host: host, window: window}
	ep, terr := r.CreateEndpoint(c.wq)
	r.Complete(false)
	if terr != nil {
		c.abortHost()
		return nil
	}
	c.ep = ep
	ep.SocketOptions().SetReceiveBufferSize(int64(window), true)
	ep.SocketOptions().SetSendBufferSize(int64(window), true)
	ep.SocketOptions().SetDelayOption(false) // the sender on the other side has gathered what it wanted
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		c.abort()
		return nil
	}
	return c
}

// run moves data until both sides have ended or one has failed.
func (c *conn) run() {
	defer c.forget()
	failed := waiter.NewFunctionEntry(waiter.EventErr, func(waiter.EventMask) {
		if c.state() == tcp.StateError {
			_ = c.host.SetDeadline(time.Unix(1, 0)) // wakes who waits for the host
		}
	})
	c.wq.EventRegister(&failed)
	defer c.wq.EventUnregister(&failed)
	if c.state() == tcp.StateError {
		c.abort()
		return
	}
	up := make(chan bool, 1)
	c.s.tasks.Add(1)
	go func() {
		defer c.s.tasks.Done()
		ok := c.fromGuest()
		if !ok {
			c.abort()
		}
		up <- ok
	}()
	ok := c.toGuest()
	if !ok {
		c.abort()
	}
	if !<-up || !ok {
		return
	}
	_ = c.host.Close()
	c.finish()
}

func (c *conn) state() tcp.EndpointState { return tcp.EndpointState(c.ep.State()) }

// finish closes the guest's side when nothing more is to be sent, and waits until the guest has got it all, however slowly it reads.
func (c *conn) finish() {
	hup, ended := waiter.NewChannelEntry(waiter.EventHUp)
	c.wq.EventRegister(&hup)
	defer c.wq.EventUnregister(&hup)
	c.ep.Close()
	for c.state() != tcp.StateTimeWait && c.state() != tcp.StateClose && c.state() != tcp.StateError {
		select {
		case <-ended:
		case <-c.s.ctx.Done():
			c.ep.Abort()
			return
		}
	}
}

// abort resets both sides. It may be called more than once.
func (c *conn) abort() {
	c.ep.Abort()
	c.abortHost()
}

func (c *conn) abortHost() {
	if c.host != nil {
		_ = c.host.SetLinger(0)
		_ = c.host.Close()
	}
}

func (c *conn) forget() {
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
}

// fromGuest moves data from the guest to the host, straight from gVisor's segments into the socket. It returns true at the guest's end of data.
func (c *conn) fromGuest() bool {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	w, err := newSocketWriter(c.host)
	if err != nil {
		return false
	}
	for {
		_, err := c.ep.Read(w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			<-readable
			continue
		case *tcpip.ErrClosedForReceive:
			return c.host.CloseWrite() == nil
		case *tcpip.ErrBadBuffer: // the socket took nothing
		default:
			return false
		}
		if w.err != nil || w.blocked && !w.wait() {
			return false
		}
	}
}

// toGuest moves data from the host to the guest. It returns true at the host's end of data.
func (c *conn) toGuest() bool {
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	c.wq.EventRegister(&entry)
	defer c.wq.EventUnregister(&entry)
	// Whole segments, with TCP's and IP's headers and a timestamp; little enough that it fits when a full buffer has become writable again.
	r, err := newSocketReader(c.host, min(c.window/4, 2*(c.s.cfg.MTU-52)))
	if err != nil {
		return false
	}
	for {
		p, ok := r.read()
		if !ok {
			return false
		}
		if p == nil {
			return c.ep.Shutdown(tcpip.ShutdownWrite) == nil
		}
		for p.Len() > 0 {
			_, err := c.ep.Write(p, tcpip.WriteOptions{})
			if _, block := err.(*tcpip.ErrWouldBlock); block {
				<-writable
			} else if err != nil {
				r.release()
				return false
			}
		}
		r.release()
	}
}
