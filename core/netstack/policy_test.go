package netstack

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseRule(t *testing.T) {
	for in, want := range map[string]string{
		"allow 10.0.0.0/8":                "",
		"deny *":                          "",
		"allow example.com:443":           "",
		"allow *.npmjs.org:443/tcp":       "",
		"deny 1.2.3.4:1-1024":             "",
		"allow *:53/udp":                  "",
		"allow Example.COM.":              "allow example.com",
		"  allow\t1.2.3.4/32 ":            "allow 1.2.3.4",
		"allow 10.0.0.0/8/udp":            "",
		"allow 10.0.0.0/8:53,60-61/udp":   "",
		"allow ::1":                       "",
		"allow fd00::/8":                  "",
		"allow fd00::/8/tcp":              "",
		"allow [fd00::/8]:22/tcp":         "",
		"allow [::1]":                     "allow ::1",
		"allow ::ffff:10.1.2.3":           "allow 10.1.2.3",
		"allow ::ffff:10.0.0.0/104":       "allow 10.0.0.0/8",
		"allow a-b.c_d.example:80-80/any": "allow a-b.c_d.example:80",
		"allow 0.0.0.0/0":                 "",
	} {
		r, err := ParseRule(in)
		require.NoError(t, err, in)
		if want == "" {
			want = in
		}
		require.Equal(t, want, r.String())
		require.NoError(t, r.check(), in)
	}
	for in, want := range map[string]string{
		"":                         "expected",
		"allow":                    "expected",
		"allow a b":                "expected",
		"permit *":                 `action "permit"`,
		"ALLOW *":                  `action "ALLOW"`,
		"allow *:0":                `port "0"`,
		"allow *:65536":            `port "65536"`,
		"allow *:":                 `port ""`,
		"allow *:+5":               `port "+5"`,
		"allow *:9-5":              "backwards",
		"allow *:1-2-3":            `port "2-3"`,
		"allow *:http":             `port "http"`,
		"allow *:80/icmp":          `protocol "icmp"`,
		"allow 10.0.0.0/8/":        `protocol ""`,
		"allow 10.0.0.1/8":         "did you mean 10.0.0.0/8",
		"allow 10.0.0.0/33":        "not a network",
		"allow 1.2.3":              "not an IP address",
		"allow 1.2.3.256":          "not an IP address",
		"allow fe80::1%eth0":       "not an IP address",
		"allow [::1":               `without "]"`,
		"allow [::1]80":            `after "]"`,
		"allow [1.2.3.4]:80":       "for IPv6",
		"allow ::ffff:10.0.0.0/90": "neither an IPv4 nor",
		"allow a.*.com":            "can only stand for",
		"allow *foo.com":           "can only stand for",
		"allow *.":                 "name",
		"allow a..b":               "part of 0 bytes",
		"allow münchen.de":         "punycode",
		"allow foo!":               `contains '!'`,
		"allow :80":                "not an IP address",
	} {
		_, err := ParseRule(in)
		require.ErrorIs(t, err, ErrRule, in)
		require.ErrorContains(t, err, want, in)
	}
	_, err := ParsePolicy(Allow, "allow *", "nonsense")
	require.ErrorIs(t, err, ErrRule)
	require.Error(t, (&Rule{Domain: "UPPER"}).check())
	require.Error(t, (&Rule{Action: 7, Domain: "*"}).check())
	require.Error(t, (&Rule{Prefix: netip.MustParsePrefix("10.0.0.1/8")}).check())
}

func FuzzParseRule(f *testing.F) {
	for _, s := range []string{
		"allow 10.0.0.0/8", "deny *", "allow example.com:443", "allow *.npmjs.org:443/tcp", "deny 1.2.3.4:1-1024", "allow [fd00::/8]:22,80-90/udp",
		"allow ::ffff:1.2.3.4", "allow ::/0", "allow [::]:1", "allow 1.2.3.4/0", "deny a.b.:1/any", "allow ::ffff:0:0/96/tcp",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		if err := r.check(); err != nil {
			t.Fatalf("%q became %q: %v", s, r.String(), err)
		}
		back, err := ParseRule(r.String())
		if err != nil || back.String() != r.String() || back.Action != r.Action || back.Protocol != r.Protocol {
			t.Fatalf("%q became %q, then %q: %v", s, r.String(), back.String(), err)
		}
	})
}

// testHost lists interfaces with a private and a public address.
func testHost() ([]net.Addr, error) {
	return []net.Addr{
		&net.IPNet{IP: net.ParseIP("127.0.0.1"), Mask: net.CIDRMask(8, 32)},
		&net.IPNet{IP: net.ParseIP("192.168.1.10"), Mask: net.CIDRMask(24, 32)},
		&net.IPNet{IP: net.ParseIP("5.6.7.8"), Mask: net.CIDRMask(24, 32)},
		&net.IPNet{IP: net.ParseIP("2a00::1"), Mask: net.CIDRMask(64, 128)},
	}, nil
}

func TestDecide(t *testing.T) {
	const public = "93.184.216.34"
	for _, tt := range []struct {
		def   Action
		rules []string
		proto Protocol
		to    string
		names []string
		want  Action
	}{
		{Allow, nil, TCP, public + ":443", nil, Allow},
		{Deny, nil, TCP, public + ":443", nil, Deny},
		{Allow, nil, TCP, "[2606:2800::1]:443", nil, Allow},
		// Special addresses are denied by default, by "*", by names and by networks that contain more.
		{Allow, nil, TCP, "127.0.0.1:1", nil, Deny},
		{Allow, []string{"allow *"}, TCP, "127.0.0.1:1", nil, Deny},
		{Allow, []string{"allow 0.0.0.0/0"}, TCP, "127.0.0.1:1", nil, Deny},
		{Allow, []string{"allow 127.0.0.0/8"}, TCP, "127.0.0.1:1", nil, Allow},
		{Allow, []string{"allow evil.com"}, TCP, "127.0.0.1:1", []string{"evil.com"}, Deny},
		{Allow, nil, TCP, "[::1]:1", nil, Deny},
		{Allow, []string{"allow ::/0"}, TCP, "[::1]:1", nil, Deny},
		{Allow, []string{"allow ::1"}, TCP, "[::1]:1", nil, Allow},
		{Allow, nil, TCP, "[::ffff:127.0.0.1]:1", nil, Deny},
		{Allow, nil, TCP, "[::127.0.0.1]:1", nil, Deny},
		{Allow, nil, TCP, "[64:ff9b::7f00:1]:1", nil, Deny},
		{Allow, nil, TCP, "[2002:7f00:1::]:1", nil, Deny},
		{Allow, nil, TCP, "169.254.169.254:80", nil, Deny},
		{Allow, []string{"allow 169.254.0.0/16"}, TCP, "169.254.169.254:80", nil, Deny},
		{Allow, []string{"allow 169.254.169.254"}, TCP, "169.254.169.254:80", nil, Allow},
		{Allow, []string{"allow 169.254.0.0/16"}, TCP, "169.254.1.1:80", nil, Allow},
		{Allow, nil, TCP, "[fd00:ec2::254]:80", nil, Deny},
		{Allow, []string{"allow fd00::/8"}, TCP, "[fd00:ec2::254]:80", nil, Deny},
		{Allow, []string{"allow fd00::/8"}, TCP, "[fd00::1]:80", nil, Allow},
		{Allow, nil, TCP, "[fe80::1]:80", nil, Deny},
		{Allow, nil, TCP, "168.63.129.16:80", nil, Deny},
		{Allow, nil, TCP, "0.0.0.0:80", nil, Deny},
		{Allow, nil, TCP, "0.1.2.3:80", nil, Deny},
		{Allow, nil, UDP, "224.0.0.251:5353", nil, Deny},
		{Allow, nil, UDP, "255.255.255.255:67", nil, Deny},
		{Allow, nil, TCP, "10.1.2.3:80", nil, Deny},
		{Allow, nil, TCP, "172.31.0.1:80", nil, Deny},
		{Allow, nil, TCP, "172.32.0.1:80", nil, Allow},
		{Allow, nil, TCP, "100.64.0.1:80", nil, Deny},
		{Allow, []string{"allow 100.64.0.0/10"}, TCP, "100.100.100.200:80", nil, Deny},
		{Deny, []string{"allow 10.0.0.0/8"}, TCP, "10.1.2.3:80", nil, Allow},
		{Allow, []string{"deny 10.1.0.0/16", "allow 10.0.0.0/8"}, TCP, "10.1.2.3:80", nil, Deny},
		{Allow, []string{"deny *", "allow 10.0.0.0/8"}, TCP, "10.1.2.3:80", nil, Deny},
		{Allow, []string{"allow *", "allow 10.0.0.0/8"}, TCP, "10.1.2.3:80", nil, Allow},
		{Allow, []string{"deny 0.0.0.0/0", "allow 10.0.0.0/8"}, TCP, "10.1.2.3:80", nil, Deny},
		// The host's own.
		{Allow, []string{"allow 192.168.0.0/16"}, TCP, "192.168.1.10:22", nil, Deny},
		{Allow, []string{"allow 192.168.0.0/16"}, TCP, "192.168.1.11:22", nil, Allow},
		{Allow, []string{"allow 192.168.1.10:22"}, TCP, "192.168.1.10:22", nil, Allow},
		{Allow, nil, TCP, "5.6.7.8:22", nil, Deny},
		{Allow, []string{"allow 5.6.7.0/24"}, TCP, "5.6.7.8:22", nil, Deny},
		{Allow, nil, TCP, "5.6.7.9:22", nil, Allow},
		{Allow, nil, TCP, "[2a00::1]:22", nil, Deny},
		{Allow, []string{"allow 192.168.0.0/16"}, TCP, Gateway + ":22", nil, Deny},
		{Allow, []string{"allow 192.168.127.1"}, TCP, Gateway + ":22", nil, Allow},
		{Allow, []string{"allow 127.0.0.1:22"}, TCP, Gateway + ":22", nil, Allow},
		{Allow, []string{"allow 127.0.0.1:23"}, TCP, Gateway + ":22", nil, Deny},
		{Allow, []string{"deny 192.168.127.1", "allow 127.0.0.1"}, TCP, Gateway + ":22", nil, Deny},
		// Ports, protocols, names, order.
		{Deny, []string{"allow *:443"}, TCP, public + ":443", nil, Allow},
		{Deny, []string{"allow *:443"}, TCP, public + ":80", nil, Deny},
		{Deny, []string{"allow *:440-450,80/tcp"}, TCP, public + ":450", nil, Allow},
		{Deny, []string{"allow *:440-450,80/tcp"}, UDP, public + ":450", nil, Deny},
		{Allow, []string{"deny 93.184.216.34:1-1024"}, TCP, public + ":1024", nil, Deny},
		{Allow, []string{"deny 93.184.216.34:1-1024"}, TCP, public + ":1025", nil, Allow},
		{Deny, []string{"allow example.com:443"}, TCP, public + ":443", nil, Deny},
		{Deny, []string{"allow example.com:443"}, TCP, public + ":443", []string{"example.com"}, Allow},
		{Deny, []string{"allow example.com:443"}, TCP, public + ":80", []string{"example.com"}, Deny},
		{Deny, []string{"allow *.example.com"}, TCP, public + ":80", []string{"a.b.example.com"}, Allow},
		{Deny, []string{"allow *.example.com"}, TCP, public + ":80", []string{"example.com", "badexample.com"}, Deny},
		{Allow, []string{"deny *.evil.com"}, TCP, public + ":80", []string{"x.evil.com"}, Deny},
		{Deny, []string{"deny 93.184.216.34", "allow example.com"}, TCP, public + ":80", []string{"example.com"}, Deny},
	} {
		to := netip.MustParseAddrPort(tt.to)
		s := &Stack{cfg: Config{Policy: policy(t, tt.def, tt.rules...)}}
		_ = s.host.init(testHost)
		s.dns.init(s)
		for _, n := range tt.names {
			s.dns.learned.add(to.Addr(), n, 0, now())
		}
		_, got, reason := s.decide(tt.proto, to)
		require.Equal(t, tt.want, got, "%v %q to %s %v as %q: %s", tt.def, tt.rules, tt.proto, tt.to, tt.names, reason)
		if got == Deny {
			require.NotEmpty(t, reason)
		}
	}
}

func TestResolves(t *testing.T) {
	for _, tt := range []struct {
		def   Action
		rules []string
		name  string
		want  bool
	}{
		{Allow, nil, "a.com", true},
		{Deny, nil, "a.com", false},
		{Deny, []string{"allow a.com"}, "a.com", true},
		{Deny, []string{"allow a.com"}, "b.a.com", false},
		{Deny, []string{"allow *.a.com"}, "b.a.com", true},
		{Deny, []string{"allow 10.0.0.0/8"}, "a.com", false},
		{Deny, []string{"allow *:443"}, "a.com", true},
		{Allow, []string{"deny a.com"}, "a.com", false},
		{Allow, []string{"deny a.com:25"}, "a.com", true},
		{Allow, []string{"deny a.com/udp"}, "a.com", true},
		{Allow, []string{"deny a.com:25", "deny *"}, "a.com", false},
		{Allow, []string{"allow good.com", "deny *"}, "good.com", true},
		{Allow, []string{"allow good.com", "deny *"}, "", false},
	} {
		p := policy(t, tt.def, tt.rules...)
		require.Equal(t, tt.want, p.resolves(tt.name), "%v %q: %q", tt.def, tt.rules, tt.name)
	}
}

func TestHostAddrs(t *testing.T) {
	var h hostAddrs
	list := testHost
	require.NoError(t, h.init(func() ([]net.Addr, error) { return list() }))
	a := netip.MustParseAddr("5.6.7.8")
	require.True(t, h.has(a))
	list = func() ([]net.Addr, error) { return nil, errors.New("no file descriptors") }
	h.at = time.Time{}
	require.True(t, h.has(a), "the last list that there was")
	list = func() ([]net.Addr, error) { return nil, nil }
	require.True(t, h.has(a), "not asked again at once")
	h.at = time.Time{}
	require.False(t, h.has(a))
	require.Error(t, h.init(func() ([]net.Addr, error) { return nil, errors.New("none") }))
}
