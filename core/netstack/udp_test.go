package netstack

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestUDP(t *testing.T) {
	a := listenUDP(t, func(b []byte) []byte { return append([]byte("echo "), b[:min(len(b), 65000)]...) })
	g := newGuest(t, Config{Policy: allowing(t, a), UDPIdle: 300 * time.Millisecond})
	c := g.dialUDP(onGateway(a))
	buf := make([]byte, 1<<16)
	for _, n := range []int{1, 0, 1000, 65000} {
		p := frame(n)
		_, err := c.Write(p)
		require.NoError(t, err)
		n, err := c.Read(buf)
		require.NoError(t, err)
		require.Equal(t, append([]byte("echo "), p...), buf[:n])
	}
	require.Equal(t, 1, g.host.Stats().FlowsOpen)
	require.Eventually(t, func() bool { return g.host.Stats().FlowsOpen == 0 }, testTimeout, time.Millisecond, "idle")
	_, err := c.Write([]byte("again"))
	require.NoError(t, err)
	n, err := c.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "echo again", string(buf[:n]))
}

func frame(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

func TestUDPRefused(t *testing.T) {
	heard := make(chan struct{}, 1)
	a := listenUDP(t, func([]byte) []byte { heard <- struct{}{}; return nil })
	g := newGuest(t, Config{})
	c := g.dialUDP(onGateway(a))
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { // the ICMP message
		_, err := c.Write([]byte("x"))
		return err != nil && strings.Contains(err.Error(), "refused")
	}, testTimeout, time.Millisecond)
	require.Positive(t, g.host.Stats().ConnsRefused)
	require.Empty(t, heard)
	require.Zero(t, g.host.Stats().FlowsOpen)
}

func TestUDPFlowsAreBounded(t *testing.T) {
	a := listenUDP(t, func(b []byte) []byte { return b })
	g := newGuest(t, Config{Policy: allowing(t, a), MaxFlows: 10})
	for i := range 20 {
		c := g.dialUDP(onGateway(a))
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		if i < 10 {
			_, err = c.Read(make([]byte, 1))
			require.NoError(t, err)
		}
	}
	require.Eventually(t, func() bool { return g.host.Stats().ConnsLimited == 10 }, testTimeout, time.Millisecond)
	require.Equal(t, 10, g.host.Stats().FlowsOpen)
}

// TestSocketsAreBounded has two stacks that share what the process may open.
func TestSocketsAreBounded(t *testing.T) {
	limit := sockets.limit
	sockets.limit = func() int64 { return 4 }
	defer func() { sockets.limit = limit }()
	require.Zero(t, sockets.used.Load(), "other tests gave back all they took")
	u := listenUDP(t, func(b []byte) []byte { return b })
	a := listen(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	g := newGuest(t, Config{Policy: policy(t, Allow, "allow 127.0.0.1"), UDPIdle: 200 * time.Millisecond})
	for range 2 {
		c := g.dialUDP(onGateway(u))
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		require.NoError(t, err)
	}
	one, two := g.mustDial(onGateway(a)), g.mustDial(onGateway(a))
	other := newGuest(t, Config{Policy: allowing(t, a)})
	_, err := other.dial(onGateway(a))
	require.ErrorContains(t, err, "refused")
	require.EqualValues(t, 1, other.host.Stats().ConnsLimited)
	require.NoError(t, one.Close())
	require.NoError(t, two.Close())
	require.Eventually(t, func() bool { return sockets.used.Load() == 0 }, testTimeout, time.Millisecond)
	require.NoError(t, other.mustDial(onGateway(a)).Close())
}

// packet returns an IPv4 frame of the guest's.
func packet(proto tcpip.TransportProtocolNumber, from, to netip.Addr, payload []byte) []byte {
	b := make([]byte, ethernetBytes+header.IPv4MinimumSize, ethernetBytes+header.IPv4MinimumSize+len(payload))
	header.Ethernet(b).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(testMAC[:]), DstAddr: gatewayMAC, Type: header.IPv4ProtocolNumber})
	h := header.IPv4(b[ethernetBytes:])
	h.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(payload)), TTL: 64, Protocol: uint8(proto),
		SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(to.As4()),
	})
	h.SetChecksum(^h.CalculateChecksum())
	return append(b, payload...)
}

func echoRequest() []byte {
	p := make([]byte, header.ICMPv4MinimumSize+4)
	h := header.ICMPv4(p)
	h.SetType(header.ICMPv4Echo)
	h.SetIdent(7)
	h.SetSequence(9)
	copy(p[header.ICMPv4MinimumSize:], "ping")
	h.SetChecksum(^checksum.Checksum(p, 0))
	return p
}

func arpRequest(from, to netip.Addr) []byte {
	b := make([]byte, ethernetBytes+header.ARPSize)
	header.Ethernet(b).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(testMAC[:]), DstAddr: header.EthernetBroadcastAddress, Type: header.ARPProtocolNumber,
	})
	h := header.ARP(b[ethernetBytes:])
	h.SetIPv4OverEthernet()
	h.SetOp(header.ARPRequest)
	copy(h.HardwareAddressSender(), testMAC[:])
	copy(h.ProtocolAddressSender(), from.AsSlice())
	copy(h.ProtocolAddressTarget(), to.AsSlice())
	return b
}

// TestFrames looks at what the stack answers to single frames.
func TestFrames(t *testing.T) {
	s, err := New(Config{MAC: testMAC, MTU: 1500})
	require.NoError(t, err)
	var answers [][]byte
	s.Attach(func(parts [][]byte) bool {
		answers = append(answers, bytes.Join(parts, nil))
		return true
	})
	ask := func(f []byte) []byte { // ARP and ICMP are answered within Send
		answers = nil
		s.Send([][]byte{f[:3], f[3:]})
		if len(answers) == 0 {
			return nil
		}
		return answers[0]
	}
	stranger := netip.MustParseAddr("192.168.127.3")
	f := ask(arpRequest(guestAddr, gatewayAddr))
	require.NotNil(t, f)
	require.Equal(t, gatewayMAC, tcpip.LinkAddress(header.ARP(f[ethernetBytes:]).HardwareAddressSender()))
	require.NotNil(t, ask(arpRequest(netip.IPv4Unspecified(), gatewayAddr)))
	f = ask(packet(header.ICMPv4ProtocolNumber, guestAddr, gatewayAddr, echoRequest()))
	require.NotNil(t, f)
	require.Equal(t, testMAC[:], f[:6])
	reply := header.ICMPv4(f[ethernetBytes+header.IPv4MinimumSize:])
	require.Equal(t, header.ICMPv4EchoReply, reply.Type())
	require.EqualValues(t, 9, reply.Sequence())
	for name, f := range map[string][]byte{
		"ARP for somebody else":  arpRequest(guestAddr, stranger),
		"ARP by somebody else":   arpRequest(stranger, gatewayAddr),
		"ping of somebody else":  packet(header.ICMPv4ProtocolNumber, guestAddr, stranger, echoRequest()),
		"ping by somebody else":  packet(header.ICMPv4ProtocolNumber, stranger, gatewayAddr, echoRequest()),
		"another protocol":       packet(47, guestAddr, gatewayAddr, make([]byte, 40)),
		"UDP to all":             packet(17, guestAddr, netip.MustParseAddr("255.255.255.255"), make([]byte, 40)),
		"UDP to the subnet":      packet(17, guestAddr, netip.MustParseAddr("192.168.127.255"), make([]byte, 40)),
		"UDP to a group":         packet(17, guestAddr, netip.MustParseAddr("224.0.0.1"), make([]byte, 40)),
		"UDP to the guest":       packet(17, guestAddr, guestAddr, make([]byte, 40)),
		"UDP to a loopback":      packet(17, guestAddr, loopback, make([]byte, 40)),
		"nothing":                make([]byte, ethernetBytes),
		"less than a header":     make([]byte, 13),
		"longer than the MTU":    packet(1, guestAddr, gatewayAddr, make([]byte, 1481)),
		"another Ethernet frame": make([]byte, 100),
	} {
		dropped := s.Stats().DroppedFromGuest
		require.Nil(t, ask(f), name)
		require.Equal(t, dropped+1, s.Stats().DroppedFromGuest, name)
	}
	require.NoError(t, s.Close())
	require.Nil(t, ask(arpRequest(guestAddr, gatewayAddr)), "closed")
}

func TestConfigErrors(t *testing.T) {
	for want, c := range map[string]Config{
		"MAC address": {},
		"MTU":         {MAC: testMAC, MTU: 100},
		"negative":    {MAC: testMAC, MaxConns: -1},
		"name":        {MAC: testMAC, HostNames: []string{"a b"}},
		"rule":        {MAC: testMAC, Policy: Policy{Rules: []Rule{{}}}},
		"default":     {MAC: testMAC, Policy: Policy{Default: 9}},
	} {
		_, err := New(c)
		require.ErrorContains(t, err, want)
	}
}

// FuzzFrame sends arbitrary frames, some of them made to get further.
func FuzzFrame(f *testing.F) {
	udp := make([]byte, 20)
	binary.BigEndian.PutUint16(udp[2:], 53)
	binary.BigEndian.PutUint16(udp[4:], 20)
	syn := make([]byte, 20)
	syn[12], syn[13] = 5<<4, byte(header.TCPFlagSyn)
	binary.BigEndian.PutUint16(syn[2:], 80)
	f.Add(arpRequest(guestAddr, gatewayAddr), uint8(0))
	f.Add(packet(header.ICMPv4ProtocolNumber, guestAddr, gatewayAddr, echoRequest()), uint8(0))
	f.Add(packet(header.UDPProtocolNumber, guestAddr, gatewayAddr, udp), uint8(17))
	f.Add(packet(header.TCPProtocolNumber, guestAddr, gatewayAddr, syn), uint8(6))
	f.Add(packet(header.TCPProtocolNumber, guestAddr, netip.MustParseAddr("10.0.0.1"), syn), uint8(3))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		p, err := ParsePolicy(Deny)
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(Config{MAC: testMAC, Policy: p, MaxConns: 16, MaxFlows: 16, Nameservers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}})
		if err != nil {
			t.Fatal(err)
		}
		s.Attach(func(parts [][]byte) bool {
			if f := bytes.Join(parts, nil); len(f) < ethernetBytes || len(f) > MaxMTU+ethernetBytes || !bytes.Equal(f[6:12], []byte(gatewayMAC)) {
				t.Errorf("the guest gets %x", f)
			}
			return true
		})
		i := min(int(cut), len(b))
		s.Send([][]byte{b[:i], b[i:]})
		if len(b) > ethernetBytes+header.IPv4MinimumSize { // the same with a header that is in order
			h := b[ethernetBytes:]
			proto := []tcpip.TransportProtocolNumber{1, 6, 17}[cut%3]
			s.Send([][]byte{packet(proto, guestAddr, gatewayAddr, h[header.IPv4MinimumSize:min(len(h), 60000)])})
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if n := s.Stats().ConnsOpen; n != 0 {
			t.Fatalf("%d connections after the end", n)
		}
	})
}
