package netstack

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of what is remembered of answers. Programs use addresses for longer than they should, and a connection that is open is not asked again.
const (
	maxLearned        = 16 << 10 // pairs of an address and a name
	maxLearnedNames   = 64       // of one address
	maxLearnedAnswers = 128      // records looked at in one answer
	minTTL            = 5 * time.Minute
	maxTTL            = 24 * time.Hour
)

// learned knows the names that addresses were answers for.
type learned struct {
	on bool // fixed; whether anybody asks

	mu    sync.Mutex
	addrs map[netip.Addr][]learnedName
	count int
}

type learnedName struct {
	name  string
	until time.Time
}

func (l *learned) add(a netip.Addr, name string, ttl time.Duration, now time.Time) {
	until := now.Add(min(max(ttl, minTTL), maxTTL))
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.addrs == nil {
		l.addrs = map[netip.Addr][]learnedName{}
	}
	list := l.addrs[a]
	if i := slices.IndexFunc(list, func(n learnedName) bool { return n.name == name }); i >= 0 {
		list[i].until = until
		return
	}
	if len(list) >= maxLearnedNames {
		list = list[1:]
		l.addrs[a] = list
		l.count--
	}
	if l.count >= maxLearned {
		l.makeRoom(now)
		list = l.addrs[a]
	}
	l.addrs[a] = append(list, learnedName{name: name, until: until})
	l.count++
}

// makeRoom forgets what has expired, or else an eighth of everything.
func (l *learned) makeRoom(now time.Time) {
	for a, list := range l.addrs {
		kept := slices.DeleteFunc(list, func(n learnedName) bool { return n.until.Before(now) })
		l.count -= len(list) - len(kept)
		if l.addrs[a] = kept; len(kept) == 0 {
			delete(l.addrs, a)
		}
	}
	for a, list := range l.addrs {
		if l.count <= maxLearned*7/8 {
			return
		}
		l.count -= len(list)
		delete(l.addrs, a)
	}
}

func (l *learned) names(a netip.Addr, now time.Time) (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.addrs[a] {
		if n.until.After(now) {
			names = append(names, n.name)
		}
	}
	return names
}

func randomID() uint16 {
	var b [2]byte
	_, _ = rand.Read(b[:])
	return binary.BigEndian.Uint16(b[:])
}

const (
	resolvConf     = "/etc/resolv.conf"
	maxServers     = 3 // as many as the C library asks
	refreshServers = 5 * time.Second
)

// nameservers is the host's list of name servers.
type nameservers struct {
	fixed []netip.AddrPort // instead, if there are any

	mu   sync.Mutex
	at   time.Time
	list []netip.AddrPort
}

func (n *nameservers) get(now time.Time) []netip.AddrPort {
	if len(n.fixed) > 0 {
		return n.fixed
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.at.IsZero() || now.Sub(n.at) > refreshServers {
		if b, err := os.ReadFile(resolvConf); err == nil || n.at.IsZero() {
			n.list = parseResolvConf(string(b))
		}
		n.at = now
	}
	return n.list
}

// parseResolvConf returns the name servers that a resolv.conf lists.
func parseResolvConf(s string) (list []netip.AddrPort) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(list) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, netip.AddrPortFrom(a, 53))
		}
	}
	return list
}
