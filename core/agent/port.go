package agent

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// DialPort turns conn, freshly connected to ProxyPort, into a connection to a TCP port on the guest's loopback address. An *Error says
// that nothing listens there. After an error, also of ctx, the caller closes conn.
func DialPort(ctx context.Context, conn net.Conn, port uint16) error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := wire.WriteMessage(conn, wire.TypeOpen, wire.ProxyRequest{Port: port})
	var f wire.Frame
	if err == nil {
		f, err = wire.ReadUnbuffered(conn)
	}
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	var r wire.Result
	if f.Type != wire.TypeResult {
		return fmt.Errorf("%w: no answer to the request for port %d", wire.ErrProtocol, port)
	}
	if err := wire.Decode(f, &r); err != nil {
		return err
	}
	if r.Error != nil {
		r.Error.Message = printable(r.Error.Message)
		return r.Error
	}
	return nil
}

// Ports returns the TCP ports that programs in the guest listen on, the oldest listener first. It is the guest's claim.
func (c *Client) Ports(ctx context.Context) ([]uint16, error) {
	s, err := c.open(ctx, wire.Request{Ports: &wire.Empty{}})
	if err != nil {
		return nil, err
	}
	r, err := s.started(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Ports) > wire.MaxPorts {
		return nil, fmt.Errorf("%w: %d ports", wire.ErrProtocol, len(r.Ports))
	}
	_, err = s.finish(ctx)
	return r.Ports, err
}

// Reverse has the guest listen on a TCP port of its loopback address, 0 for a free one, and connect what arrives to a vsock port of the host. It
// returns the port. The guest stops listening when stop is called; connections stay.
func (c *Client) Reverse(ctx context.Context, port uint16, host uint32) (_ uint16, stop func(), err error) {
	s, err := c.open(ctx, wire.Request{Reverse: &wire.Reverse{Port: port, Host: host}})
	if err != nil {
		return 0, nil, err
	}
	r, err := s.started(ctx)
	if err != nil {
		return 0, nil, err
	}
	return r.Port, func() { s.abandon(ErrClosed) }, nil
}
