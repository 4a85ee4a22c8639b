package agent

import (
	"fmt"
	"net"
	"strconv"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// ServeProxy accepts connections that each name a TCP port of the guest and then become a connection to it.
func (s *Server) ServeProxy(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go s.proxy(c)
	}
}

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
	w := wire.NewWriter(host)
	guest, err := dialLoopback(req.Port)
	if err != nil {
		w.Send(wire.TypeResult, f.Stream, 0, wire.Result{Error: toWire(err)})
		return
	}
	defer guest.Close()
	if w.Send(wire.TypeResult, f.Stream, 0, wire.Result{}) == nil {
		wire.Splice(host, guest)
	}
}

// dialLoopback connects to a server that listens on any address that includes the loopback one, of either family.
func dialLoopback(port uint16) (net.Conn, error) {
	var first error
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, &wire.Error{Kind: kindOf(first), Message: fmt.Sprintf("nothing listens on port %d of the guest", port)}
}
