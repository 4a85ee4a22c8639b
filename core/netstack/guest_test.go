package netstack

import (
	"context"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

var testMAC = [6]byte{2, 0, 0, 0, 0, 2}

const testTimeout = 30 * time.Second

// guest is a second stack in a guest's place, with a cable of two goroutines between them.
type guest struct {
	t     testing.TB
	host  *Stack
	stack *stack.Stack
	link  *link
}

// newGuest connects a guest to a new stack. Both are closed at the test's end, and whatever is left of them then fails the test.
func newGuest(t testing.TB, c Config) *guest {
	before := runtime.NumGoroutine()
	c.MAC = testMAC
	s, err := New(c)
	require.NoError(t, err)
	t.Cleanup(func() { noneLeft(t, before) })
	g := plugIn(t, s)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return g
}

// noneLeft waits until there are no more goroutines than before.
func noneLeft(t testing.TB, before int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b := make([]byte, 1<<20)
			t.Fatalf("%d goroutines left, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
	}
}

// plugIn connects a new guest to a stack.
func plugIn(t testing.TB, s *Stack) *guest {
	g := &guest{t: t, host: s, link: &link{mac: tcpip.LinkAddress(testMAC[:]), mtu: uint32(s.cfg.MTU), guest: gatewayMAC}}
	done := make(chan struct{})
	var wires sync.WaitGroup
	wire := func(to func([]byte)) func([][]byte) bool {
		frames := make(chan []byte, 1024)
		wires.Go(func() {
			for {
				select {
				case f := <-frames:
					to(f)
				case <-done:
					return
				}
			}
		})
		return func(parts [][]byte) bool {
			var f []byte
			for _, p := range parts {
				f = append(f, p...)
			}
			select {
			case frames <- f:
				return true
			default:
				return false
			}
		}
	}
	out := wire(func(f []byte) { s.Send([][]byte{f}) })
	g.link.deliver.Store(&out)
	s.Attach(wire(g.receive))

	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	// A receiver that moderates its window slowly would be what the tests measure.
	window := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 4 << 20, Max: 8 << 20}
	require.Nil(t, g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &window))
	require.Nil(t, g.stack.CreateNIC(nic, g.link))
	addr := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(guestAddr.As4()), PrefixLen: PrefixBits}
	require.Nil(t, g.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: addr}, stack.AddressProperties{}))
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: addr.Subnet(), NIC: nic},
		{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(gatewayAddr.As4()), NIC: nic},
	})
	t.Cleanup(func() {
		g.stack.Destroy()
		close(done)
		wires.Wait()
	})
	return g
}

// receive takes a frame from the host.
func (g *guest) receive(f []byte) {
	d := g.link.dispatcher.Load()
	if d == nil {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
	defer pkt.DecRef()
	pkt.LinkHeader().Consume(ethernetBytes)
	(*d).DeliverNetworkPacket(header.Ethernet(f).Type(), pkt)
}

func full(to netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(to.Addr().As4()), Port: to.Port()}
}

// dial connects the guest to an address.
func (g *guest) dial(to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, full(to), ipv4.ProtocolNumber)
}

func (g *guest) mustDial(to netip.AddrPort) *gonet.TCPConn {
	g.t.Helper()
	c, err := g.dial(to)
	require.NoError(g.t, err)
	require.NoError(g.t, c.SetDeadline(time.Now().Add(testTimeout)))
	return c
}

// dialUDP makes a UDP socket of the guest's that is connected to an address.
func (g *guest) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	a := full(to)
	c, err := gonet.DialUDP(g.stack, nil, &a, ipv4.ProtocolNumber)
	require.NoError(g.t, err)
	require.NoError(g.t, c.SetDeadline(time.Now().Add(testTimeout)))
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// onGateway is where the guest finds a port of the host's 127.0.0.1.
func onGateway(a net.Addr) netip.AddrPort {
	return netip.AddrPortFrom(gatewayAddr, netip.MustParseAddrPort(a.String()).Port())
}

// listen serves connections to a port of 127.0.0.1.
func listen(t testing.TB, serve func(*net.TCPConn)) net.Addr {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
	return l.Addr()
}

// listenUDP answers datagrams to a port of 127.0.0.1.
func listenUDP(t testing.TB, answer func([]byte) []byte) net.Addr {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	var done sync.WaitGroup
	done.Go(func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if a := answer(b[:n]); a != nil {
				_, _ = c.WriteTo(a, from)
			}
		}
	})
	t.Cleanup(func() {
		_ = c.Close()
		done.Wait()
	})
	return c.LocalAddr()
}

func policy(t testing.TB, def Action, rules ...string) Policy {
	p, err := ParsePolicy(def, rules...)
	require.NoError(t, err)
	return p
}

// allowing returns a policy that allows one address of the host's.
func allowing(t testing.TB, a net.Addr) Policy { return policy(t, Allow, "allow "+a.String()) }

// publish has the stack find the port of 127.0.0.1 at the same port of public addresses.
func (g *guest) publish(addrs ...string) {
	dial := g.host.dialer
	g.host.dialer = func(ctx context.Context, network, to string) (net.Conn, error) {
		a := netip.MustParseAddrPort(to)
		for _, p := range addrs {
			if a.Addr() == netip.MustParseAddr(p) {
				to = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(a.Port())))
			}
		}
		return dial(ctx, network, to)
	}
}

// abort ends a connection of the guest's as its kernel does when a program is gone: by a reset.
func (g *guest) abort(c *gonet.TCPConn) {
	local := netip.MustParseAddrPort(c.LocalAddr().String())
	for _, e := range g.stack.RegisteredEndpoints() {
		if ep, ok := e.(*tcp.Endpoint); ok && ep.TransportEndpointInfo.ID.LocalPort == local.Port() {
			ep.Abort()
		}
	}
}

// snapshot returns the established connections.
func (s *Stack) snapshot() (list []*conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		list = append(list, c)
	}
	return list
}
