// Package netstack is the network of one guest, without help of the host's kernel: a TCP/IP stack in this process (gVisor's) that ends the guest's
// connections and opens the host's own in their place, where a Policy allows it. A guest needs no address of the host's network, nor the host
// any right to make interfaces.
//
// The guest is GuestIP, has the gateway Gateway, and asks it for names; nothing else is on its network. Only IPv4 is spoken on it, and names have no
// IPv6 addresses there.
package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// What a guest is configured with.
const (
	GuestIP    = "192.168.127.2"
	Gateway    = "192.168.127.1" // also the name server; connections to its other ports go to the host's 127.0.0.1
	PrefixBits = 24
	GatewayMAC = "5a:53:4d:00:00:01" // always the same, so that a guest's ARP cache is right after a restore
	MaxMTU     = 65520
)

var (
	guestAddr   = netip.MustParseAddr(GuestIP)
	gatewayAddr = netip.MustParseAddr(Gateway)
	loopback    = netip.MustParseAddr("127.0.0.1")
	gatewayMAC  = func() tcpip.LinkAddress { m, _ := net.ParseMAC(GatewayMAC); return tcpip.LinkAddress(m) }()
)

const nic = 1

// Limits unless Config says otherwise.
const (
	DefaultMaxConns    = 10_000
	DefaultMaxFlows    = 4096
	DefaultDialTimeout = 30 * time.Second
	DefaultUDPIdle     = time.Minute
)

// Config says what New makes. Zero values stand for the defaults.
type Config struct {
	MAC    [6]byte // the guest's
	MTU    int     // of the guest's interface, 576 to MaxMTU; 0 means MaxMTU
	Policy Policy

	MaxConns    int           // TCP connections open at once, those being opened included; others are reset
	MaxFlows    int           // pairs of UDP sockets that talk; packets of others are dropped
	DialTimeout time.Duration // for a connection to be established
	UDPIdle     time.Duration // after which a UDP flow without packets ends

	HostNames   []string         // names that the gateway answers with its own address, such as "host.internal"; none by default
	Nameservers []netip.AddrPort // that queries are forwarded to; none means the host's, as in /etc/resolv.conf

	Log *slog.Logger // gets connections that were refused, a bounded number of them; nil for none
}

// ErrClosed is returned for a stack that was closed.
var ErrClosed = errors.New("netstack: closed")

// Stats are a guest's counters. Bytes are those of Ethernet frames.
type Stats struct {
	BytesFromGuest, BytesToGuest     uint64
	PacketsFromGuest, PacketsToGuest uint64
	DroppedFromGuest                 uint64 // frames that are none of this network's
	DroppedToGuest                   uint64 // frames that the device did not take

	ConnsOpen    int    // TCP connections now, those being opened included
	ConnsTotal   uint64 // TCP connections that the guest began
	ConnsRefused uint64 // TCP connections and UDP packets that the policy denied
	ConnsLimited uint64 // the same beyond MaxConns and MaxFlows, or beyond the process's file descriptors; see New
	ConnsFailed  uint64 // allowed, but the host could not establish them
	FlowsOpen    int    // UDP flows now
	DNSQueries   uint64
	DNSRefused   uint64 // of names that the policy denies
}

// Stack is the network of one guest. Its methods may be called at any time from any goroutine.
type Stack struct {
	cfg   Config
	stack *stack.Stack
	link  *link
	host  hostAddrs
	dns   resolver
	log   refusals

	dialer func(ctx context.Context, network, to string) (net.Conn, error) // net.Dialer's but in tests

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[*conn]struct{} // established TCP connections
	opened int                // with those being opened
	flows  map[flowKey]*flow

	total, refused, limited, failed, queries, namesRefused atomic.Uint64
}

// New returns a running stack. All stacks together open no more connections and flows than half of the file descriptors that the process may have.
func New(c Config) (*Stack, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("netstack: %w", err)
	}
	s := &Stack{cfg: c, conns: map[*conn]struct{}{}, flows: map[flowKey]*flow{}}
	if err := s.host.init(net.InterfaceAddrs); err != nil {
		return nil, fmt.Errorf("netstack: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.log.to = c.Log
	s.dialer = (&net.Dialer{Control: prepareSocket}).DialContext
	s.dns.init(s)
	s.link = &link{mac: gatewayMAC, mtu: uint32(c.MTU), guest: tcpip.LinkAddress(c.MAC[:])}
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := s.setUp(); err != nil {
		s.stack.Destroy()
		s.cancel()
		return nil, fmt.Errorf("netstack: %w", err)
	}
	return s, nil
}

func (c *Config) complete() error {
	set := func(p *int, def int) {
		if *p == 0 {
			*p = def
		}
	}
	set(&c.MTU, MaxMTU)
	set(&c.MaxConns, DefaultMaxConns)
	set(&c.MaxFlows, DefaultMaxFlows)
	if c.DialTimeout == 0 {
		c.DialTimeout = DefaultDialTimeout
	}
	if c.UDPIdle == 0 {
		c.UDPIdle = DefaultUDPIdle
	}
	switch {
	case c.MAC[0]&1 != 0 || c.MAC == [6]byte{} || tcpip.LinkAddress(c.MAC[:]) == gatewayMAC:
		return fmt.Errorf("the guest's MAC address %v is not a unicast address of its own", net.HardwareAddr(c.MAC[:]))
	case c.MTU < 576 || c.MTU > MaxMTU:
		return fmt.Errorf("MTU %d is not in 576 to %d", c.MTU, MaxMTU)
	case c.MaxConns < 0 || c.MaxFlows < 0 || c.DialTimeout < 0 || c.UDPIdle < 0:
		return errors.New("negative limit")
	}
	for i := range c.Policy.Rules {
		if err := c.Policy.Rules[i].check(); err != nil {
			return err
		}
	}
	if c.Policy.Default > Deny {
		return fmt.Errorf("policy: default action %d", c.Policy.Default)
	}
	names := make([]string, len(c.HostNames))
	for i, n := range c.HostNames {
		names[i] = strings.TrimSuffix(strings.ToLower(n), ".")
		if err := checkName(names[i]); err != nil {
			return fmt.Errorf("host's name: %w", err)
		}
	}
	c.HostNames = names
	return nil
}

// setUp configures gVisor's stack: it takes packets to every address, and answers for every one.
func (s *Stack) setUp() error {
	check := func(what string, err tcpip.Error) error {
		if err != nil {
			return fmt.Errorf("%s: %v", what, err)
		}
		return nil
	}
	window := tcpip.TCPReceiveBufferSizeRangeOption{Min: minWindow, Default: maxWindow, Max: maxWindow}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: minWindow, Default: maxWindow, Max: maxWindow}
	// Ends of connections that the guest's kernel has forgotten about are kept no longer than a cable of no length needs. While they are, a
	// connection from the same port gets no answer.
	timeWait, finWait := tcpip.TCPTimeWaitTimeoutOption(time.Millisecond), tcpip.TCPLingerTimeoutOption(10*time.Second)
	// A guest that does not answer is most likely paused: connections last for minutes, and go on soon after it does.
	retries, maxRTO := tcpip.TCPMaxRetriesOption(300), tcpip.TCPMaxRTOOption(3*time.Second)
	subnet := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(gatewayAddr.As4()), PrefixLen: PrefixBits}
	err := errors.Join(
		check("TCP receive buffers", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &window)),
		check("TCP send buffers", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &send)),
		check("TCP TIME-WAIT", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &timeWait)),
		check("TCP FIN-WAIT", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &finWait)),
		check("TCP retries", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &retries)),
		check("TCP timeout", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &maxRTO)),
		check("interface", s.stack.CreateNIC(nic, s.link)),
	)
	if err != nil {
		return err
	}
	err = errors.Join(
		check("address", s.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol: ipv4.ProtocolNumber, AddressWithPrefix: subnet,
		}, stack.AddressProperties{})),
		check("spoofing", s.stack.SetSpoofing(nic, true)),
		check("promiscuous mode", s.stack.SetPromiscuousMode(nic, true)),
		check("neighbor", s.stack.AddStaticNeighbor(nic, header.IPv4ProtocolNumber, tcpip.AddrFrom4(guestAddr.As4()), s.link.guest)),
	)
	s.stack.SetRouteTable([]tcpip.Route{{Destination: subnet.Subnet(), NIC: nic}})
	forwarder := tcp.NewForwarder(s.stack, maxWindow, min(s.cfg.MaxConns, maxOpening), s.handleTCP)
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, s.handleUDP)
	return err
}

// Attach implements core/virtio/net.Link.
func (s *Stack) Attach(deliver func(parts [][]byte) bool) { s.link.deliver.Store(&deliver) }

// Send implements core/virtio/net.Link: a frame from the guest.
func (s *Stack) Send(parts [][]byte) { s.link.inject(parts) }

// Stats returns the counters. They stay after Close.
func (s *Stack) Stats() Stats {
	s.mu.Lock()
	open, flows := s.opened, len(s.flows)
	s.mu.Unlock()
	l := s.link
	return Stats{
		BytesFromGuest: l.bytesFrom.Load(), PacketsFromGuest: l.packetsFrom.Load(), DroppedFromGuest: l.droppedFrom.Load(),
		BytesToGuest: l.bytesTo.Load(), PacketsToGuest: l.packetsTo.Load(), DroppedToGuest: l.droppedTo.Load(),
		ConnsOpen: open, ConnsTotal: s.total.Load(), ConnsRefused: s.refused.Load(), ConnsLimited: s.limited.Load(),
		ConnsFailed: s.failed.Load(), FlowsOpen: flows, DNSQueries: s.queries.Load(), DNSRefused: s.namesRefused.Load(),
	}
}

// Close ends every connection and waits for all goroutines to end. Frames sent later are dropped. A second Close does nothing.
func (s *Stack) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.link.close()
	s.mu.Lock()
	for c := range s.conns {
		c.abort()
	}
	for _, f := range s.flows {
		_ = f.conn.Close()
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(ended)
	}()
	for again := time.NewTicker(5 * time.Millisecond); ; {
		// Tasks may wait for handshakes, or be about to begin one.
		for _, e := range s.stack.RegisteredEndpoints() {
			e.Abort()
		}
		select {
		case <-again.C:
			continue
		case <-ended:
		}
		again.Stop()
		s.stack.Destroy()
		return nil
	}
}

// begin counts a task that Close waits for. It returns false if the stack is closed.
func (s *Stack) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.tasks.Add(1)
	}
	return !s.closed
}

// decide asks the policy. It returns the address to connect to.
func (s *Stack) decide(proto Protocol, to netip.AddrPort) (netip.AddrPort, Action, string) {
	targets := []target{s.host.classify(to.Addr())}
	var names []string
	if to.Addr() == gatewayAddr {
		// The host's 127.0.0.1, which a rule allows by either address.
		gateway := special{prefix: netip.PrefixFrom(gatewayAddr, 32), what: "the host"}
		targets = []target{{addr: gatewayAddr, special: gateway}, s.host.classify(loopback)}
		to = netip.AddrPortFrom(loopback, to.Port())
	} else {
		names = s.dns.names(to.Addr())
	}
	action, reason := s.cfg.Policy.decide(proto, to.Port(), targets, names)
	return to, action, reason
}

// refuse counts what the policy denied.
func (s *Stack) refuse(proto Protocol, to netip.AddrPort, reason string) {
	s.refused.Add(1)
	s.log.report(proto.String(), to.String(), reason)
}
