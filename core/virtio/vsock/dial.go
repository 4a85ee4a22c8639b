package vsock

import (
	"context"
	"fmt"
	"net"
	"syscall"
)

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
	if err := d.lockActive(ctx); err != nil {
		return nil, err
	}
	if err := d.dialErr(); err != nil {
		d.mu.Unlock()
		return nil, err
	}
	k := key{host: d.freePort(port), guest: port}
	c := d.newConn(k)
	c.want(wantRequest)
	d.pump()
	d.mu.Unlock()
	select {
	case <-c.established:
	case <-ctx.Done():
		_ = c.Close()
		return nil, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	return c, nil
}

// dialErr returns why no connection can be made.
func (d *Device) dialErr() error {
	switch {
	case d.closed:
		return net.ErrClosed
	case d.broken != nil:
		return d.broken
	case d.full():
		return fmt.Errorf("%d connections are open already: %w", MaxConnections, syscall.ENOBUFS)
	}
	return nil
}

// lockActive locks the device's mutex once the driver is there or the device was closed.
func (d *Device) lockActive(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		d.mu.Lock()
		if d.env != nil || d.closed {
			return nil
		}
		active := d.active
		d.mu.Unlock()
		select {
		case <-active:
		case <-ctx.Done():
		}
	}
}

// freePort returns a host port that no connection to the guest's port uses. Ports are not used again until all others were.
func (d *Device) freePort(guest uint32) uint32 {
	for {
		p := d.nextPort
		if d.nextPort++; d.nextPort == lastPort {
			d.nextPort = firstPort
		}
		if d.conns[key{p, guest}] == nil && d.listeners[p] == nil {
			return p
		}
	}
}
