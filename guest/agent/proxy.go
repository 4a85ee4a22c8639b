package agent

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// ServeProxy accepts connections that each name a TCP port of the guest and then become a connection to it, until the listener is closed.
func (s *Server) ServeProxy(l net.Listener) error { return accept(l, s.proxy) }

func (s *Server) proxy(host net.Conn) {
	defer host.Close()
	f, err := wire.ReadUnbuffered(host)
	if err != nil {
		return
	}
	var req wire.ProxyRequest
	if f.Type != wire.TypeOpen || wire.Decode(f, &req) != nil {
		return
	}
	<-s.ready
	guest, err := dialLoopback(req.Port)
	if err != nil {
		wire.WriteMessage(host, wire.TypeResult, wire.Result{Error: toWire(err)})
		return
	}
	defer guest.Close()
	if wire.WriteMessage(host, wire.TypeResult, wire.Result{}) == nil {
		wire.Splice(host, guest)
	}
}

// dialLoopback connects to a server that listens on any address that includes the loopback one, of either family.
func dialLoopback(port uint16) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second} // a server whose backlog is full does not answer
	var first error
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := dialer.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	kind := kindOf(first)
	if kind == wire.KindRefused {
		return nil, &wire.Error{Kind: kind, Message: fmt.Sprintf("nothing listens on port %d of the guest", port)}
	}
	return nil, &wire.Error{Kind: kind, Message: fmt.Sprintf("connect to port %d of the guest: %v", port, first)}
}
