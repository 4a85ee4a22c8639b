package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	maxQueries    = 128              // at once; more are dropped, and repeated by the guest
	maxQueryBytes = 1024             // more than a name and options need
	maxUDPAnswer  = 4096             // what a guest can ask for by EDNS
	queryTimeout  = 3 * time.Second  // for one name server
	lookupTimeout = 12 * time.Second // for all of them
	streamIdle    = 10 * time.Second // between queries over TCP
	localTTL      = 60               // seconds, of the answers that are ours
)

var (
	dnsAddr = netip.AddrPortFrom(gatewayAddr, 53)

	errForeign = errors.New("the answer belongs to another question")
)

// resolver answers the guest's name queries by the host's name servers.
type resolver struct {
	s       *Stack
	running chan struct{} // has a token for each query
	servers nameservers
	learned learned // addresses that were answers, if the policy has rules for names
}

func (r *resolver) init(s *Stack) {
	r.s, r.running = s, make(chan struct{}, maxQueries)
	r.servers.fixed = s.cfg.Nameservers
	r.learned.on = s.cfg.Policy.hasNames()
}

// names returns the names that an address was an answer for.
func (r *resolver) names(a netip.Addr) []string { return r.learned.names(a, time.Now()) }

// queryUDP answers a query from a port of the guest's. It does not block and does not keep data.
func (r *resolver) queryUDP(guest uint16, data []byte) {
	if len(data) > maxQueryBytes {
		return
	}
	select {
	case r.running <- struct{}{}:
	default:
		return
	}
	if !r.s.begin() {
		<-r.running
		return
	}
	data = slices.Clone(data)
	go func() {
		defer r.s.tasks.Done()
		defer func() { <-r.running }()
		if answer := r.answer(data, "udp"); answer != nil {
			r.s.sendUDP(dnsAddr, guest, answer)
		}
	}()
}

// serveTCP answers the queries of a connection until it is idle.
func (r *resolver) serveTCP(c *conn) {
	defer c.forget()
	defer c.finish()
	stream := gonet.NewTCPConn(c.wq, c.ep)
	buf := make([]byte, maxQueryBytes)
	for {
		_ = stream.SetDeadline(time.Now().Add(streamIdle))
		if _, err := io.ReadFull(stream, buf[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n > len(buf) {
			return
		}
		if _, err := io.ReadFull(stream, buf[:n]); err != nil {
			return
		}
		select {
		case r.running <- struct{}{}:
		case <-r.s.ctx.Done():
			return
		}
		answer := r.answer(buf[:n], "tcp")
		<-r.running
		if answer == nil {
			return
		}
		_ = stream.SetDeadline(time.Now().Add(streamIdle))
		if _, err := stream.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// query is what is taken over from a guest's query.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	name     string // lower case, without the final dot
	edns     bool
	udpSize  int
	dnssec   bool
}

// parseQuery takes a query apart. It returns false for what deserves no answer, and otherwise, in code, how a query is at fault.
func parseQuery(b []byte) (q query, code dnsmessage.RCode, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response {
		return q, 0, false
	}
	q.header = h
	if h.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	list, err := p.AllQuestions()
	if err != nil || len(list) != 1 {
		return q, dnsmessage.RCodeFormatError, true
	}
	q.question = list[0]
	q.name = strings.TrimSuffix(strings.ToLower(q.question.Name.String()), ".")
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	for range 4 {
		rh, err := p.AdditionalHeader()
		if err != nil {
			break
		}
		if rh.Type == dnsmessage.TypeOPT {
			q.edns, q.udpSize, q.dnssec = true, min(max(512, int(rh.Class)), maxUDPAnswer), rh.DNSSECAllowed()
		}
		if p.SkipAdditional() != nil {
			return q, dnsmessage.RCodeFormatError, true
		}
	}
	return q, 0, true
}

// answer returns the answer to a query, or nil for none.
func (r *resolver) answer(b []byte, network string) []byte {
	r.s.queries.Add(1)
	q, code, ok := parseQuery(b)
	switch {
	case !ok:
		return nil
	case code != 0:
		return q.reply(code)
	case q.question.Class != dnsmessage.ClassINET:
		return q.reply(dnsmessage.RCodeRefused)
	case slices.Contains(r.s.cfg.HostNames, q.name):
		if q.question.Type == dnsmessage.TypeA {
			return q.reply(dnsmessage.RCodeSuccess, gatewayAddr)
		}
		return q.reply(dnsmessage.RCodeSuccess)
	case !r.s.cfg.Policy.resolves(q.name):
		r.s.namesRefused.Add(1)
		r.s.log.report("dns", q.name, "the policy denies connections to this name")
		return q.reply(dnsmessage.RCodeRefused)
	case q.question.Type == dnsmessage.TypeAAAA:
		return q.reply(dnsmessage.RCodeSuccess) // which the guest could not reach
	}
	answer, err := r.resolve(&q, network)
	if err != nil {
		return q.reply(dnsmessage.RCodeServerFailure)
	}
	r.learn(q.name, answer)
	binary.BigEndian.PutUint16(answer, q.header.ID)
	return answer
}

// reply makes an answer of our own.
func (q *query) reply(code dnsmessage.RCode, addrs ...netip.Addr) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, RCode: code,
	})
	if q.question.Name.Length > 0 {
		if b.StartQuestions() != nil || b.Question(q.question) != nil || b.StartAnswers() != nil {
			return nil
		}
		for _, a := range addrs {
			h := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: localTTL}
			if b.AResource(h, dnsmessage.AResource{A: a.As4()}) != nil {
				return nil
			}
		}
	}
	msg, err := b.Finish()
	if err != nil {
		return nil
	}
	return msg
}

// forwarded makes the query that goes to the name servers: nothing of the guest's bytes but its question.
func (q *query) forwarded(id uint16) ([]byte, error) {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: id, RecursionDesired: true, AuthenticData: q.header.AuthenticData, CheckingDisabled: q.header.CheckingDisabled,
	})
	if err := errors.Join(b.StartQuestions(), b.Question(q.question)); err != nil {
		return nil, err
	}
	if q.edns {
		var h dnsmessage.ResourceHeader
		err := errors.Join(h.SetEDNS0(q.udpSize, dnsmessage.RCodeSuccess, q.dnssec), b.StartAdditionals(), b.OPTResource(h, dnsmessage.OPTResource{}))
		if err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// resolve gets the answer from the first name server that has one.
func (r *resolver) resolve(q *query, network string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(r.s.ctx, lookupTimeout)
	defer cancel()
	servers := r.servers.get(time.Now())
	if len(servers) == 0 {
		return r.lookup(ctx, q)
	}
	var last error
	for range 2 {
		for _, server := range servers {
			answer, err := exchange(ctx, q, network, server)
			if err == nil {
				return answer, nil
			}
			if last = err; ctx.Err() != nil {
				return nil, err
			}
		}
	}
	return nil, last
}

// lookup asks the host's own resolver, on hosts without a list of name servers. It knows addresses only.
func (r *resolver) lookup(ctx context.Context, q *query) ([]byte, error) {
	if q.question.Type != dnsmessage.TypeA {
		return q.reply(dnsmessage.RCodeNotImplemented), nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", q.name+".")
	var dnsErr *net.DNSError
	if errors.As(err, &dnsErr) && dnsErr.IsNotFound {
		return q.reply(dnsmessage.RCodeNameError), nil
	}
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return q.reply(dnsmessage.RCodeSuccess, addrs[:min(len(addrs), 32)]...), nil
}

// exchange asks one name server.
func exchange(ctx context.Context, q *query, network string, server netip.AddrPort) ([]byte, error) {
	id := randomID()
	msg, err := q.forwarded(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	d := net.Dialer{Control: prepareSocket}
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		return exchangeTCP(c, q, id, msg)
	}
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, maxUDPAnswer)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if q.answeredBy(buf[:n], id) {
			return buf[:n], nil
		}
	}
}

func exchangeTCP(c net.Conn, q *query, id uint16, msg []byte) ([]byte, error) {
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return nil, err
	}
	if !q.answeredBy(buf, id) {
		return nil, errForeign
	}
	return buf, nil
}

// answeredBy reports whether a message is the answer to this query.
func (q *query) answeredBy(b []byte, id uint16) bool {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.ID != id {
		return false
	}
	got, err := p.Question()
	return err == nil && got.Type == q.question.Type && got.Class == q.question.Class &&
		strings.EqualFold(got.Name.String(), q.question.Name.String())
}

// learn remembers the addresses in an answer for a name.
func (r *resolver) learn(name string, answer []byte) {
	if !r.learned.on {
		return
	}
	var p dnsmessage.Parser
	if _, err := p.Start(answer); err != nil || p.SkipAllQuestions() != nil {
		return
	}
	for range maxLearnedAnswers {
		h, err := p.AnswerHeader()
		if err != nil {
			return
		}
		if h.Type != dnsmessage.TypeA || h.Class != dnsmessage.ClassINET {
			if p.SkipAnswer() != nil {
				return
			}
			continue
		}
		a, err := p.AResource()
		if err != nil {
			return
		}
		// A name may lead to what is public, whatever it says.
		if addr := netip.AddrFrom4(a.A); !r.s.host.classify(addr).special.prefix.IsValid() {
			r.learned.add(addr, name, time.Duration(h.TTL)*time.Second, time.Now())
		}
	}
}
