package netstack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Action is what a rule does with what it matches.
type Action uint8

// The actions.
const (
	Allow Action = iota
	Deny
)

// String returns the action as rules spell it.
func (a Action) String() string {
	if a == Deny {
		return "deny"
	}
	return "allow"
}

// Protocol is the transport that a rule is for.
type Protocol uint8

// The protocols.
const (
	AnyProtocol Protocol = iota
	TCP
	UDP
)

// String returns the protocol as rules spell it.
func (p Protocol) String() string { return [...]string{"any", "tcp", "udp"}[p%3] }

// PortRange is the ports from First to Last.
type PortRange struct{ First, Last uint16 }

// Policy says where a guest may connect to. The zero value allows every public address.
//
// The rules are tried in order and the first that matches decides; if none does, Default. Some addresses are out of the reach of Default, of rules
// for "*" and of rules for names: those of the host itself (loopback, its interfaces, the gateway, which is the host's 127.0.0.1 to the guest),
// link-local addresses and the clouds' metadata services, private networks (10/8, 172.16/12, 192.168/16, 100.64/10, fc00::/7 and others that are
// not routed publicly), multicast and broadcast. Only a rule that names such an address, or a network that lies wholly within its special
// one, allows it: "allow 10.0.0.0/8" does, "allow 0.0.0.0/0" does not. An address of the host's interfaces must be named itself.
//
// Rules for names work by the guest's name queries, which the gateway answers: a name whose connections are denied is not resolved, and an address
// that was an answer for an allowed name may be connected to as if by that name. Names are resolved if the first rule for the name or "*", else
// Default, allows any port; rules for addresses do not count. A guest that knows an address needs no name, so denying a name under Default Allow
// denies no address.
type Policy struct {
	Default Action
	Rules   []Rule
}

// Rule is one line of a policy. It is for an address or network if Prefix is valid, otherwise for Domain.
type Rule struct {
	Action   Action
	Prefix   netip.Prefix // masked
	Domain   string       // lower case: a name, "*." and a suffix for all names below it (not itself), or "*" for everything
	Ports    []PortRange  // none means all
	Protocol Protocol
}

// ErrRule is matched (errors.Is) by every error of ParseRule and ParsePolicy.
var ErrRule = errors.New("netstack: invalid rule")

const (
	maxRuleBytes = 1024
	maxName      = 253 // RFC 1035, without the root's dot
	everything   = "*"
)

// ParsePolicy parses rules into a policy.
func ParsePolicy(def Action, rules ...string) (Policy, error) {
	p := Policy{Default: def}
	for _, s := range rules {
		r, err := ParseRule(s)
		if err != nil {
			return Policy{}, err
		}
		p.Rules = append(p.Rules, r)
	}
	return p, nil
}

// ParseRule parses a rule: "allow" or "deny", a target, and if wanted ":" with ports and "/" with tcp or udp. Targets are addresses, networks, names,
// names that begin with "*.", or "*". An IPv6 address is in brackets if ports follow.
//
//	allow 10.0.0.0/8
//	allow example.com:443
//	allow *.npmjs.org:80,443/tcp
//	deny 1.2.3.4:1-1024
//	allow [fd00::/8]:22
//	deny *
func ParseRule(s string) (Rule, error) {
	r, err := parseRule(s)
	if err != nil {
		if len(s) > 100 {
			s = s[:100] + "…"
		}
		return Rule{}, fmt.Errorf("%w %q: %w", ErrRule, s, err)
	}
	return r, nil
}

func parseRule(s string) (r Rule, err error) {
	if len(s) > maxRuleBytes {
		return r, fmt.Errorf("longer than %d bytes", maxRuleBytes)
	}
	words := strings.Fields(s)
	if len(words) != 2 {
		return r, errors.New(`expected "allow TARGET" or "deny TARGET"`)
	}
	switch words[0] {
	case "allow":
	case "deny":
		r.Action = Deny
	default:
		return r, fmt.Errorf("action %q is neither allow nor deny", words[0])
	}
	target := words[1]
	if i := strings.LastIndexByte(target, '/'); i >= 0 && !isNumber(target[i+1:]) && !strings.ContainsAny(target[i+1:], ":]") {
		switch target[i+1:] {
		case "tcp":
			r.Protocol = TCP
		case "udp":
			r.Protocol = UDP
		case "any":
		default:
			return r, fmt.Errorf("protocol %q is none of tcp, udp and any", target[i+1:])
		}
		target = target[:i]
	}
	host, ports, hasPorts, err := splitPorts(target)
	if err != nil {
		return r, err
	}
	if hasPorts {
		if r.Ports, err = parsePorts(ports); err != nil {
			return r, err
		}
	}
	return r, r.parseHost(host)
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// splitPorts splits a target at the colon before its ports.
func splitPorts(s string) (host, ports string, ok bool, err error) {
	if rest, bracket := strings.CutPrefix(s, "["); bracket {
		host, rest, ok = strings.Cut(rest, "]")
		switch {
		case !ok:
			return "", "", false, errors.New(`"[" without "]"`)
		case !strings.Contains(host, ":"):
			return "", "", false, errors.New("brackets are for IPv6 addresses")
		case rest == "":
			return host, "", false, nil
		case rest[0] != ':':
			return "", "", false, fmt.Errorf(`%q after "]"`, rest)
		}
		return host, rest[1:], true, nil
	}
	if strings.Count(s, ":") > 1 { // an IPv6 address
		return s, "", false, nil
	}
	host, ports, ok = strings.Cut(s, ":")
	return host, ports, ok, nil
}

func parsePorts(s string) (ports []PortRange, err error) {
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		var r PortRange
		if r.First, err = parsePort(first); err != nil {
			return nil, err
		}
		r.Last = r.First
		if isRange {
			if r.Last, err = parsePort(last); err != nil {
				return nil, err
			}
		}
		if r.Last < r.First {
			return nil, fmt.Errorf("ports %d-%d run backwards", r.First, r.Last)
		}
		ports = append(ports, r)
	}
	return ports, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

// parseHost sets the rule's target.
func (r *Rule) parseHost(s string) error {
	if s == everything {
		r.Domain = s
		return nil
	}
	if strings.ContainsAny(s, ":/") || strings.Trim(s, "0123456789.") == "" {
		return r.parsePrefix(s)
	}
	name := strings.TrimSuffix(strings.ToLower(s), ".")
	if err := checkName(strings.TrimPrefix(name, "*.")); err != nil {
		return err
	}
	r.Domain = name
	return nil
}

func (r *Rule) parsePrefix(s string) error {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return fmt.Errorf("%q is not an IP address", s)
		}
		a = a.Unmap()
		r.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a network such as 10.0.0.0/8", s)
	case p.Addr().Is4In6() && p.Bits() < 96:
		return fmt.Errorf("%q is neither an IPv4 nor an IPv6 network", s)
	case p.Addr().Is4In6():
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p.Masked() != p {
		return fmt.Errorf("network %v has bits after its first %d; did you mean %v", p, p.Bits(), p.Masked())
	}
	r.Prefix = p
	return nil
}

// checkName returns what is wrong with a domain name without "*." and final dot.
func checkName(s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("name of %d bytes, not of 1 to %d", len(s), maxName)
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("name %q has a part of %d bytes, not of 1 to 63", s, len(label))
		}
		for _, c := range []byte(label) {
			switch {
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			case c == '*':
				return fmt.Errorf(`name %q: "*" can only stand for everything, or begin a name as "*."`, s)
			case c >= 0x80:
				return fmt.Errorf("name %q is not ASCII; use its punycode form (xn--…)", s)
			default:
				return fmt.Errorf("name %q contains %q", s, c)
			}
		}
	}
	return nil
}

// String returns the rule as ParseRule reads it.
func (r Rule) String() string {
	target := r.Domain
	if r.Prefix.IsValid() {
		if target = r.Prefix.String(); r.Prefix.IsSingleIP() {
			target = r.Prefix.Addr().String()
		}
		if r.Prefix.Addr().Is6() && len(r.Ports) > 0 {
			target = "[" + target + "]"
		}
	}
	for i, p := range r.Ports {
		sep := ","
		if i == 0 {
			sep = ":"
		}
		target += sep + strconv.Itoa(int(p.First))
		if p.Last != p.First {
			target += "-" + strconv.Itoa(int(p.Last))
		}
	}
	if r.Protocol != AnyProtocol {
		target += "/" + r.Protocol.String()
	}
	return r.Action.String() + " " + target
}

// check returns what makes the rule unusable, for rules that were not parsed.
func (r *Rule) check() error {
	if r.Action > Deny || r.Protocol > UDP {
		return fmt.Errorf("%w: action %d, protocol %d", ErrRule, r.Action, r.Protocol)
	}
	back, err := ParseRule(r.String())
	if err != nil {
		return err
	}
	if back.Prefix != r.Prefix || back.Domain != r.Domain && !r.Prefix.IsValid() || !slices.Equal(back.Ports, r.Ports) {
		return fmt.Errorf("%w %q: not in its normal form", ErrRule, r.String())
	}
	return nil
}

// matchesPort reports whether the rule is for a port and protocol.
func (r *Rule) matchesPort(proto Protocol, port uint16) bool {
	if r.Protocol != AnyProtocol && r.Protocol != proto {
		return false
	}
	return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.First <= port && port <= p.Last })
}

// matchesName reports whether the rule is for a name, in lower case without final dot.
func (r *Rule) matchesName(name string) bool {
	if r.Prefix.IsValid() {
		return false
	}
	if suffix, ok := strings.CutPrefix(r.Domain, "*"); ok {
		return suffix == "" || len(name) > len(suffix) && strings.HasSuffix(name, suffix)
	}
	return r.Domain == name
}

// hasNames reports whether names matter for connections.
func (p *Policy) hasNames() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return !r.Prefix.IsValid() && r.Domain != everything })
}

// resolves reports whether a name may be resolved: whether a connection to it could be allowed.
func (p *Policy) resolves(name string) bool {
	for i := range p.Rules {
		switch r := &p.Rules[i]; {
		case !r.matchesName(name):
		case r.Action == Allow:
			return true
		case len(r.Ports) == 0 && r.Protocol == AnyProtocol:
			return false
		}
	}
	return p.Default == Allow
}

// target is an address that a guest wants to reach.
type target struct {
	addr    netip.Addr
	special special // what kind of special address it is, if any
}

// decide returns what the rules say of a connection to a port of targets, which are spellings of one address, and which the guest may know by names.
// The reason is for people.
func (p *Policy) decide(proto Protocol, port uint16, targets []target, names []string) (Action, string) {
	isSpecial := slices.ContainsFunc(targets, func(t target) bool { return t.special.prefix.IsValid() })
	for i := range p.Rules {
		r := &p.Rules[i]
		if !r.matchesPort(proto, port) {
			continue
		}
		matches := false
		switch {
		case r.Prefix.IsValid():
			matches = slices.ContainsFunc(targets, func(t target) bool {
				return r.Prefix.Contains(t.addr) && (r.Action == Deny || t.special.coveredBy(r.Prefix))
			})
		case isSpecial && r.Action == Allow:
		case r.Domain == everything:
			matches = true
		default:
			matches = slices.ContainsFunc(names, r.matchesName)
		}
		if matches {
			return r.Action, "rule " + strconv.Quote(r.String())
		}
	}
	if isSpecial {
		return Deny, targets[0].special.what + ", which no rule allows by address"
	}
	return p.Default, "no rule allows it"
}
