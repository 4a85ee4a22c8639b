package agent

import (
	"errors"
	"net"
	"strconv"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// reverse listens on a port of the guest for the host, until nobody waits for the request any more.
func (st *stream) reverse(req *wire.Reverse) error {
	dial := st.c.s.cfg.DialHost
	if dial == nil {
		return &wire.Error{Kind: wire.KindInvalid, Message: "this guest cannot connect to its host"}
	}
	listeners, port, err := listenLoopback(req.Port)
	if err != nil {
		return err
	}
	for _, l := range listeners {
		defer l.Close()
		go accept(l, func(guest net.Conn) {
			defer guest.Close()
			host, err := dial(req.Host)
			if err != nil {
				return // which the program sees as a connection that is closed at once
			}
			defer host.Close()
			wire.Splice(host, guest)
		})
	}
	st.reply(wire.Reply{Port: port})
	select {
	case <-st.gone:
	case <-st.c.s.down:
	}
	return errCanceled
}

// listenLoopback listens on a port of both loopback addresses, 0 for a free one; a guest may have no IPv6.
func listenLoopback(port uint16) ([]net.Listener, uint16, error) {
	first, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return nil, 0, &wire.Error{Kind: kindOf(err), Message: "listen on port " + strconv.Itoa(int(port)) + " of the guest: " + errors.Unwrap(err).Error()}
	}
	port = uint16(first.Addr().(*net.TCPAddr).Port)
	all := []net.Listener{first}
	if l, err := net.Listen("tcp", net.JoinHostPort("::1", strconv.Itoa(int(port)))); err == nil {
		all = append(all, l)
	}
	return all, port, nil
}
