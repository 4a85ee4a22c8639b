package netstack

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"
)

func now() time.Time { return time.Now() }

// zone is a name server on 127.0.0.1 that knows IPv4 addresses of names, and truncates what is asked over UDP for "long.".
type zone struct {
	addr  netip.AddrPort
	asked atomic.Int64
}

func newZone(t testing.TB, names map[string][]string) *zone {
	z := &zone{}
	answer := func(b []byte, udp bool) []byte {
		z.asked.Add(1)
		var m dnsmessage.Message
		if m.Unpack(b) != nil || len(m.Questions) != 1 {
			return nil
		}
		q := m.Questions[0]
		r := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
		addrs, ok := names[q.Name.String()]
		switch {
		case !ok:
			r.RCode = dnsmessage.RCodeNameError
		case udp && q.Name.String() == "long.":
			r.Truncated = true
		default:
			// Through an alias, as big sites do it.
			alias := dnsmessage.MustNewName("alias.test.")
			r.Answers = append(r.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.CNAMEResource{CNAME: alias},
			})
			for _, a := range addrs {
				r.Answers = append(r.Answers, dnsmessage.Resource{
					Header: dnsmessage.ResourceHeader{Name: alias, Class: dnsmessage.ClassINET, TTL: 1},
					Body:   &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()},
				})
			}
		}
		out, err := r.Pack()
		if err != nil {
			return nil
		}
		return out
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	c, err := net.ListenPacket("udp4", l.Addr().String())
	require.NoError(t, err)
	z.addr = netip.MustParseAddrPort(l.Addr().String())
	var all sync.WaitGroup
	all.Go(func() {
		b := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if a := answer(b[:n], true); a != nil {
				// One that is not an answer comes first.
				forged := append([]byte(nil), a...)
				forged[0]++
				_, _ = c.WriteTo(forged, from)
				_, _ = c.WriteTo(a, from)
			}
		}
	})
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			if _, err := io.ReadFull(c, b[:2]); err == nil {
				n := int(binary.BigEndian.Uint16(b))
				if _, err := io.ReadFull(c, b[:n]); err == nil {
					a := answer(b[:n], false)
					_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...))
				}
			}
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_, _ = c.Close(), l.Close()
		all.Wait()
	})
	return z
}

func question(t testing.TB, name string, kind dnsmessage.Type) []byte {
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 77, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	require.NoError(t, err)
	return b
}

// resolver returns the Go resolver of a program in the guest.
func (g *guest) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		if network == "tcp" || network == "tcp4" {
			return g.dial(dnsAddr)
		}
		return g.dialUDP(dnsAddr), nil
	}}
}

func (g *guest) lookup(name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	return g.resolver().LookupHost(ctx, name)
}

// raw asks one question and returns the message.
func (g *guest) raw(b []byte) (m dnsmessage.Message) {
	g.t.Helper()
	c := g.dialUDP(dnsAddr)
	_, err := c.Write(b)
	require.NoError(g.t, err)
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	require.NoError(g.t, err)
	require.NoError(g.t, m.Unpack(buf[:n]))
	return m
}

func TestDNS(t *testing.T) {
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("93.184.1.%d", i))
	}
	z := newZone(t, map[string][]string{"Example.com.": {"93.184.216.34"}, "example.com.": {"93.184.216.34"}, "long.": many, "evil.com.": {"1.1.1.1"}})
	g := newGuest(t, Config{Policy: policy(t, Allow, "deny evil.com"), Nameservers: []netip.AddrPort{z.addr}, HostNames: []string{"Host.Internal."}})

	addrs, err := g.lookup("example.com")
	require.NoError(t, err)
	require.Equal(t, []string{"93.184.216.34"}, addrs)
	addrs, err = g.lookup("host.internal")
	require.NoError(t, err)
	require.Equal(t, []string{Gateway}, addrs)
	addrs, err = g.lookup("long")
	require.NoError(t, err)
	require.Len(t, addrs, 100, "over TCP")
	_, err = g.lookup("nowhere.example")
	var dnsErr *net.DNSError
	require.ErrorAs(t, err, &dnsErr)
	require.True(t, dnsErr.IsNotFound)

	before := z.asked.Load()
	m := g.raw(question(t, "EVIL.com.", dnsmessage.TypeA))
	require.Equal(t, dnsmessage.RCodeRefused, m.RCode)
	require.EqualValues(t, 77, m.ID)
	require.True(t, m.Response)
	m = g.raw(question(t, "evil.com.", dnsmessage.TypeTXT))
	require.Equal(t, dnsmessage.RCodeRefused, m.RCode)
	m = g.raw(question(t, "example.com.", dnsmessage.TypeAAAA))
	require.Equal(t, dnsmessage.RCodeSuccess, m.RCode)
	require.Empty(t, m.Answers)
	require.Equal(t, before, z.asked.Load(), "none of these leaves the host")
	m = g.raw(question(t, "Example.com.", dnsmessage.TypeA))
	require.EqualValues(t, 77, m.ID)
	require.Equal(t, "Example.com.", m.Questions[0].Name.String())
	require.Len(t, m.Answers, 2)
	s := g.host.Stats()
	require.EqualValues(t, 2, s.DNSRefused)
	require.Greater(t, s.DNSQueries, uint64(7))
	require.Empty(t, g.host.dns.learned.names(netip.MustParseAddr("8.8.8.8"), now()))

	two := dnsmessage.Message{Header: dnsmessage.Header{ID: 5}, Questions: []dnsmessage.Question{
		{Name: dnsmessage.MustNewName("example.com."), Type: 1, Class: 1}, {Name: dnsmessage.MustNewName("evil.com."), Type: 1, Class: 1},
	}}
	b, err := two.Pack()
	require.NoError(t, err)
	require.Equal(t, dnsmessage.RCodeFormatError, g.raw(b).RCode)
	b = question(t, "example.com.", dnsmessage.TypeA)
	b[2] |= 2 << 3 // a status query
	require.Equal(t, dnsmessage.RCodeNotImplemented, g.raw(b).RCode)

	g.host.dns.servers.fixed = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), z.addr}
	_, err = g.lookup("example.com")
	require.NoError(t, err, "the second name server")
	g.host.dns.servers.fixed = g.host.dns.servers.fixed[:1]
	require.Equal(t, dnsmessage.RCodeServerFailure, g.raw(question(t, "example.com.", dnsmessage.TypeA)).RCode)
}

// TestNames has connections to names: allowed, denied, and leading to where they should not.
func TestNames(t *testing.T) {
	a := listen(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("hi")) })
	port := netip.MustParseAddrPort(a.String()).Port()
	const good, other = "93.184.216.34", "93.184.216.35"
	z := newZone(t, map[string][]string{
		"good.com.": {good}, "other.com.": {other},
		"rebind.good.com.": {"127.0.0.1", "169.254.169.254", "10.0.0.1", Gateway},
	})
	rules := []string{fmt.Sprintf("allow good.com:%d/tcp", port), "allow *.good.com"}
	g := newGuest(t, Config{Policy: policy(t, Deny, rules...), Nameservers: []netip.AddrPort{z.addr}})
	g.publish(good, other, "10.0.0.1", "169.254.169.254")
	to := func(s string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), port) }

	_, err := g.dial(to(good))
	require.ErrorContains(t, err, "refused", "before anybody asked for the name")
	addrs, err := g.lookup("good.com")
	require.NoError(t, err)
	require.Equal(t, []string{good}, addrs)
	c := g.mustDial(to(good))
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "hi", string(b))
	require.NoError(t, c.Close())
	_, err = g.dial(netip.AddrPortFrom(netip.MustParseAddr(good), port^1))
	require.ErrorContains(t, err, "refused", "another port")
	_, err = g.lookup("other.com")
	require.Error(t, err)
	_, err = g.dial(to(other))
	require.ErrorContains(t, err, "refused")

	refused := g.host.Stats().ConnsRefused
	addrs, err = g.lookup("rebind.good.com")
	require.NoError(t, err)
	require.Len(t, addrs, 4)
	for _, a := range []string{"169.254.169.254", "10.0.0.1", Gateway} {
		_, err := g.dial(to(a))
		require.ErrorContains(t, err, "refused", a)
	}
	require.Equal(t, refused+3, g.host.Stats().ConnsRefused)
	require.EqualValues(t, 1, g.host.dns.learned.count)
}

func TestLearnedIsBounded(t *testing.T) {
	var l learned
	at := time.Unix(1e9, 0)
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{1, byte(i >> 16), byte(i >> 8), byte(i)}) }
	check := func() {
		n := 0
		for _, list := range l.addrs {
			n += len(list)
			require.NotEmpty(t, list)
		}
		require.Equal(t, l.count, n)
		require.LessOrEqual(t, n, maxLearned)
	}
	for i := range 3 * maxLearned {
		l.add(addr(i), "a", 0, at)
		if i%1000 == 0 {
			check()
		}
	}
	check()
	require.Equal(t, []string{"a"}, l.names(addr(3*maxLearned-1), at.Add(minTTL-1)))
	require.Empty(t, l.names(addr(3*maxLearned-1), at.Add(minTTL)))
	for i := range 3 * maxLearnedNames {
		l.add(addr(1), fmt.Sprint(i), time.Hour, at.Add(minTTL+1))
	}
	check()
	require.Len(t, l.names(addr(1), at.Add(minTTL+2)), maxLearnedNames)
	l.add(addr(1), fmt.Sprint(3*maxLearnedNames-1), 48*time.Hour, at.Add(minTTL+1))
	require.Len(t, l.names(addr(1), at.Add(2*time.Hour)), 1)
	require.Empty(t, l.names(addr(1), at.Add(25*time.Hour)), "no longer than maxTTL")
}

func TestResolvConf(t *testing.T) {
	require.Equal(t, []netip.AddrPort{
		netip.MustParseAddrPort("127.0.0.53:53"), netip.MustParseAddrPort("[fe80::1%eth0]:53"), netip.MustParseAddrPort("1.1.1.1:53"),
	}, parseResolvConf("# comment\nnameserver 127.0.0.53\noptions edns0\nnameserver\nnameserver fe80::1%eth0\n\tnameserver  1.1.1.1 \nnameserver x\nnameserver 8.8.8.8"))
}

// FuzzDNS answers arbitrary queries, and learns from arbitrary answers.
func FuzzDNS(f *testing.F) {
	f.Add(question(f, "example.com.", dnsmessage.TypeA), question(f, "example.com.", dnsmessage.TypeA))
	f.Add(question(f, "host.internal.", dnsmessage.TypeAAAA), []byte{})
	q, _, _ := parseQuery(question(f, "good.com.", dnsmessage.TypeA))
	f.Add(question(f, "good.com.", dnsmessage.TypeA), q.reply(0, netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("127.0.0.1")))
	f.Fuzz(func(t *testing.T, query, answer []byte) {
		p, err := ParsePolicy(Deny, "allow good.com")
		if err != nil {
			t.Fatal(err)
		}
		s := &Stack{cfg: Config{Policy: p, HostNames: []string{"host.internal"}}}
		s.ctx, s.cancel = context.WithCancel(t.Context())
		s.cancel() // nobody is asked
		_ = s.host.init(testHost)
		s.dns.init(s)
		s.dns.servers.fixed = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}
		if a := s.dns.answer(query, "udp"); a != nil {
			var m dnsmessage.Parser
			h, err := m.Start(a)
			if err != nil || !h.Response || h.ID != binary.BigEndian.Uint16(query) {
				t.Fatalf("%x is no answer to %x", a, query)
			}
		}
		if q, code, ok := parseQuery(query); ok && code == 0 {
			q.answeredBy(answer, q.header.ID)
			if b, err := q.forwarded(1); err == nil {
				if again, _, ok := parseQuery(b); !ok || again.name != q.name {
					t.Fatalf("%q is forwarded as %q", q.name, again.name)
				}
			}
		}
		s.dns.learn("good.com", answer)
		for a := range s.dns.learned.addrs {
			if s.host.classify(a).special.prefix.IsValid() {
				t.Fatalf("learned %v", a)
			}
		}
	})
}
