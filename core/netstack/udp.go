package netstack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const maxDatagram = 65507

// flowKey is a pair of UDP sockets that talk.
type flowKey struct {
	guest uint16 // the guest's port
	to    netip.AddrPort
}

// flow is a socket of the host's, connected in place of the guest's.
type flow struct {
	conn *net.UDPConn
	raw  socketSender
	used atomic.Int64 // when a packet last went either way, in Unix nanoseconds
}

// handleUDP takes a packet of the guest's. It must not block. If it returns false, the guest is told that the port is unreachable.
func (s *Stack) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.UDP(pkt.TransportHeader().Slice())
	n := int(h.Length()) - header.UDPMinimumSize
	if len(h) < header.UDPMinimumSize || n < 0 || n > pkt.Data().Size() {
		return true
	}
	key := flowKey{guest: id.RemotePort, to: addrPort(id.LocalAddress, id.LocalPort)}
	data := pkt.Data().AsRange().ToSlice()[:n]
	if key.to == dnsAddr {
		s.dns.queryUDP(key.guest, data)
		return true
	}
	s.mu.Lock()
	f := s.flows[key]
	s.mu.Unlock()
	if f == nil {
		real, action, reason := s.decide(UDP, key.to)
		if action == Deny {
			s.refuse(UDP, key.to, reason)
			return false
		}
		if f = s.openFlow(key, real); f == nil {
			return true
		}
	}
	f.used.Store(time.Now().UnixNano())
	f.raw.send(data)
	return true
}

// openFlow makes a flow, unless there are too many or the host cannot. Calls for one key do not overlap, since the link's do not.
func (s *Stack) openFlow(key flowKey, real netip.AddrPort) *flow {
	s.mu.Lock()
	full := len(s.flows) >= s.cfg.MaxFlows
	s.mu.Unlock()
	if full || !sockets.take() {
		s.limited.Add(1)
		return nil
	}
	c, err := s.dial("udp4", real)
	if err != nil {
		sockets.give()
		s.failed.Add(1)
		return nil
	}
	f := &flow{conn: c.(*net.UDPConn)}
	if err := f.raw.init(f.conn); err != nil {
		f.close()
		return nil
	}
	f.used.Store(time.Now().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.flows[key] != nil {
		f.close()
		return s.flows[key]
	}
	s.flows[key] = f
	s.tasks.Add(1)
	go s.answers(key, f)
	return f
}

// close ends a flow that nobody uses any more.
func (f *flow) close() {
	_ = f.conn.Close()
	sockets.give()
}

// answers moves packets from the host to the guest until the flow is idle.
func (s *Stack) answers(key flowKey, f *flow) {
	defer s.tasks.Done()
	defer func() {
		s.mu.Lock()
		delete(s.flows, key)
		s.mu.Unlock()
		f.close()
	}()
	r, err := newSocketReader(f.conn, maxDatagram)
	if err != nil {
		return
	}
	for {
		_ = f.conn.SetReadDeadline(time.Unix(0, f.used.Load()).Add(s.cfg.UDPIdle))
		p, ok := r.read()
		switch {
		case ok:
			f.used.Store(time.Now().UnixNano())
			if p == nil { // an empty datagram
				s.sendUDP(key.to, key.guest, nil)
				break
			}
			s.sendUDP(key.to, key.guest, r.b[:r.n])
			r.release()
		case errors.Is(r.fault, os.ErrDeadlineExceeded):
			if time.Since(time.Unix(0, f.used.Load())) >= s.cfg.UDPIdle {
				return
			}
		case errors.Is(r.fault, unix.ECONNREFUSED), errors.Is(r.fault, unix.EHOSTUNREACH), errors.Is(r.fault, unix.ENETUNREACH):
			// An ICMP message. The other side may appear later, as with a guest that had this socket itself.
		default:
			return
		}
	}
}

// sendUDP sends the guest a packet that seems to come from the address.
func (s *Stack) sendUDP(from netip.AddrPort, guest uint16, data []byte) {
	local, remote := tcpip.AddrFrom4(from.Addr().As4()), tcpip.AddrFrom4(guestAddr.As4())
	route, terr := s.stack.FindRoute(nic, local, remote, header.IPv4ProtocolNumber, false)
	if terr != nil {
		return
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + header.UDPMinimumSize,
		Payload:            buffer.MakeWithData(data),
	})
	defer pkt.DecRef()
	h := header.UDP(pkt.TransportHeader().Push(header.UDPMinimumSize))
	pkt.TransportProtocolNumber = header.UDPProtocolNumber
	n := uint16(pkt.Size())
	h.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: guest, Length: n})
	sum := h.CalculateChecksum(checksum.Combine(route.PseudoHeaderChecksum(header.UDPProtocolNumber, n), pkt.Data().Checksum()))
	if sum != 0xffff { // RFC 768: a sum of 0 is sent as all ones
		sum = ^sum
	}
	h.SetChecksum(sum)
	_ = route.WritePacket(stack.NetworkHeaderParams{Protocol: header.UDPProtocolNumber, TTL: route.DefaultTTL()}, pkt)
}
