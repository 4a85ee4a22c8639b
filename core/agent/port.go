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
