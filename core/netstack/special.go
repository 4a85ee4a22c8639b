package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// special is a network whose addresses are out of reach unless a rule is for them.
type special struct {
	prefix netip.Prefix // not valid for a public address
	what   string
}

// coveredBy reports whether a rule for p is explicit enough for the special address: for it or a network within the special one.
func (s special) coveredBy(p netip.Prefix) bool {
	return !s.prefix.IsValid() || p.Bits() >= s.prefix.Bits() && s.prefix.Contains(p.Addr())
}

// specials are the networks that are not public (IANA's special-purpose registries) or serve the host's cloud. The first that has an address counts.
var specials = func() (list []special) {
	for _, s := range []struct{ what, prefixes string }{
		{"a loopback address of the host", "127.0.0.0/8 ::1/128"},
		{"a cloud's metadata service", "169.254.169.254/32 fd00:ec2::254/128 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32"},
		{"a link-local address", "169.254.0.0/16 fe80::/10"},
		{"an unspecified address", "0.0.0.0/8 ::/128"},
		{"a multicast address", "224.0.0.0/4 ff00::/8"},
		{"a broadcast or reserved address", "240.0.0.0/4"},
		{"a private address", "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7 fec0::/10"},
		{"an address that is not public", "192.0.0.0/24 192.0.2.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 100::/64 2001:db8::/32"},
		{"an IPv6 address that stands for an IPv4 one", "::/96 64:ff9b::/96 64:ff9b:1::/48 2001::/32 2002::/16"},
	} {
		for _, p := range strings.Fields(s.prefixes) {
			list = append(list, special{prefix: netip.MustParsePrefix(p), what: s.what})
		}
	}
	return list
}()

// hostAddrs knows the addresses of the host's interfaces, as of refreshHost ago at most.
type hostAddrs struct {
	mu    sync.Mutex
	at    time.Time
	addrs map[netip.Addr]bool
	list  func() ([]net.Addr, error) // net.InterfaceAddrs but in tests
}

const refreshHost = 5 * time.Second

// init reads the addresses. From then on there is a list, so that a host which cannot read them again, for lack of file descriptors, knows the last.
func (h *hostAddrs) init(list func() ([]net.Addr, error)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = list
	return h.read(time.Now())
}

// read reads the addresses anew. Caller holds the lock.
func (h *hostAddrs) read(now time.Time) error {
	h.at = now
	list, err := h.list()
	if err != nil {
		return fmt.Errorf("addresses of the host: %w", err)
	}
	h.addrs = make(map[netip.Addr]bool, len(list))
	for _, l := range list {
		if n, ok := l.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(n.IP); ok {
				h.addrs[a.Unmap()] = true
			}
		}
	}
	return nil
}

func (h *hostAddrs) has(a netip.Addr) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); now.Sub(h.at) > refreshHost {
		_ = h.read(now)
	}
	return h.addrs[a]
}

// classify finds out what an address is.
func (h *hostAddrs) classify(a netip.Addr) target {
	a = a.Unmap().WithZone("")
	t := target{addr: a}
	for _, s := range specials {
		if s.prefix.Contains(a) {
			t.special = s
			break
		}
	}
	// Loopback addresses are the interface's own anyway.
	if !a.IsLoopback() && h.has(a) {
		t.special = special{prefix: netip.PrefixFrom(a, a.BitLen()), what: "an address of the host"}
	}
	return t
}
