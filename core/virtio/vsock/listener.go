package vsock

import (
	"errors"
	"net"
	"sync"
)

// ErrPortInUse is returned by Listen.
var ErrPortInUse = errors.New("vsock: the port has a listener already")

// Listener accepts connections from the guest to one port of the host.
type Listener struct {
	d       *Device
	port    uint32
	backlog chan *Conn
	once    sync.Once
	ended   chan struct{}
}

// Listen accepts connections from the guest to a port of the host, until the Listener or the device is closed.
func (d *Device) Listen(port uint32) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fail := func(err error) (net.Listener, error) {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: Addr{HostCID, port}, Err: err}
	}
	if d.closed {
		return fail(net.ErrClosed)
	}
	if d.listeners[port] != nil {
		return fail(ErrPortInUse)
	}
	l := &Listener{d: d, port: port, backlog: make(chan *Conn, maxBacklog), ended: make(chan struct{})}
	d.listeners[port] = l
	return l, nil
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.ended:
	default:
		select {
		case c := <-l.backlog:
			return c, nil
		case <-l.ended:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: network, Addr: l.Addr(), Err: net.ErrClosed}
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return Addr{HostCID, l.port} }

// Close implements net.Listener. Connections that nobody accepted are closed.
func (l *Listener) Close() error {
	l.d.mu.Lock()
	if l.d.listeners[l.port] == l {
		delete(l.d.listeners, l.port)
	}
	l.end()
	l.d.mu.Unlock()
	for {
		select {
		case c := <-l.backlog:
			c.Close()
		default:
			return nil
		}
	}
}

func (l *Listener) end() { l.once.Do(func() { close(l.ended) }) }
