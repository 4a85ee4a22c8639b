package netstack

import (
	"bytes"
	"crypto/sha256"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// stream writes n pseudo-random bytes and returns their sum.
func stream(w io.Writer, seed uint64, n int64) ([32]byte, error) {
	h := sha256.New()
	_, err := io.CopyN(io.MultiWriter(w, h), rand.NewChaCha8([32]byte{byte(seed)}), n)
	return [32]byte(h.Sum(nil)), err
}

func sum(r io.Reader) (s [32]byte, n int64, err error) {
	h := sha256.New()
	n, err = io.Copy(h, r)
	return [32]byte(h.Sum(nil)), n, err
}

func TestTCPBothWays(t *testing.T) {
	const size = 64 << 20
	type end struct {
		sent, got [32]byte
		n         int64
		err       error
	}
	ends := make(chan end, 1)
	a := listen(t, func(c *net.TCPConn) {
		var e end
		var sending sync.WaitGroup
		sending.Go(func() {
			e.sent, _ = stream(c, 1, size)
			_ = c.CloseWrite()
		})
		e.got, e.n, e.err = sum(c)
		sending.Wait()
		ends <- e
	})
	g := newGuest(t, Config{Policy: allowing(t, a)})
	c := g.mustDial(onGateway(a))
	var sent [32]byte
	var sending sync.WaitGroup
	sending.Go(func() {
		sent, _ = stream(c, 2, size)
		_ = c.CloseWrite()
	})
	got, n, err := sum(c)
	require.NoError(t, err)
	sending.Wait()
	e := <-ends
	require.NoError(t, e.err)
	require.EqualValues(t, size, n)
	require.EqualValues(t, size, e.n)
	require.Equal(t, sent, e.got)
	require.Equal(t, e.sent, got)
	require.NoError(t, c.Close())
	require.Eventually(t, func() bool { return g.host.Stats().ConnsOpen == 0 }, testTimeout, time.Millisecond)
	s := g.host.Stats()
	require.EqualValues(t, 1, s.ConnsTotal)
	require.Zero(t, s.ConnsRefused+s.ConnsFailed+s.ConnsLimited)
	require.Greater(t, s.BytesFromGuest, uint64(size))
	require.Greater(t, s.BytesToGuest, uint64(size))
	require.Positive(t, s.PacketsFromGuest)
	require.Positive(t, s.PacketsToGuest)
}

func TestTCPHalfClose(t *testing.T) {
	a := listen(t, func(c *net.TCPConn) { // answers when it has heard all
		b, _ := io.ReadAll(c)
		_, _ = c.Write(bytes.ToUpper(b))
	})
	g := newGuest(t, Config{Policy: allowing(t, a)})
	c := g.mustDial(onGateway(a))
	_, err := c.Write([]byte("half closed"))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "HALF CLOSED", string(b))

	// The other way around.
	heard := make(chan string, 1)
	a = listen(t, func(c *net.TCPConn) {
		_ = c.CloseWrite()
		b, _ := io.ReadAll(c)
		heard <- string(b)
	})
	g.host.cfg.Policy = allowing(t, a)
	c = g.mustDial(onGateway(a))
	b, err = io.ReadAll(c)
	require.NoError(t, err)
	require.Empty(t, b)
	_, err = c.Write([]byte("still here"))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.Equal(t, "still here", <-heard)
}

func TestTCPRefusals(t *testing.T) {
	accepted := make(chan struct{}, 10)
	a := listen(t, func(*net.TCPConn) { accepted <- struct{}{} })
	var log bytes.Buffer
	g := newGuest(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	_, err := g.dial(onGateway(a))
	require.ErrorContains(t, err, "refused")
	require.EqualValues(t, 1, g.host.Stats().ConnsRefused)
	require.Contains(t, log.String(), "192.168.127.1")
	require.Contains(t, log.String(), "which no rule allows by address")
	for _, to := range []string{"169.254.169.254:80", "10.0.0.1:80", "192.168.127.9:80", "100.100.100.200:80"} {
		_, err := g.dial(netip.MustParseAddrPort(to))
		if strings.HasPrefix(to, "192.168.127.") {
			require.Error(t, err, to) // nobody has that address
			continue
		}
		require.ErrorContains(t, err, "refused", to)
	}
	require.EqualValues(t, 4, g.host.Stats().ConnsRefused)
	require.Empty(t, accepted)

	// Allowed, but nobody listens.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	g.host.cfg.Policy = policy(t, Deny, "allow 192.168.127.1")
	_, err = g.dial(onGateway(l.Addr()))
	require.ErrorContains(t, err, "refused")
	require.EqualValues(t, 1, g.host.Stats().ConnsFailed)
	require.Eventually(t, func() bool { return g.host.Stats().ConnsOpen == 0 }, testTimeout, time.Millisecond)
}

func TestTCPResets(t *testing.T) {
	ended := make(chan error, 1)
	a := listen(t, func(c *net.TCPConn) {
		_, err := io.ReadAll(c)
		ended <- err
	})
	g := newGuest(t, Config{Policy: policy(t, Allow, "allow 127.0.0.1")})
	c := g.mustDial(onGateway(a))
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(g.host.snapshot()) == 1 }, testTimeout, time.Millisecond)
	// The guest's kernel resets: its program ended with data unread.
	g.abort(c)
	require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	require.Eventually(t, func() bool { return g.host.Stats().ConnsOpen == 0 }, testTimeout, time.Millisecond)

	a = listen(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
	})
	c = g.mustDial(onGateway(a))
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	require.Eventually(t, func() bool { return g.host.Stats().ConnsOpen == 0 }, testTimeout, time.Millisecond)
}

// TestTCPResetWhileHostIsStuck has a server that neither reads nor writes: the guest's reset must still end the connection.
func TestTCPResetWhileHostIsStuck(t *testing.T) {
	release := make(chan struct{})
	a := listen(t, func(c *net.TCPConn) { <-release })
	defer close(release)
	g := newGuest(t, Config{Policy: allowing(t, a)})
	c := g.mustDial(onGateway(a))
	var sending sync.WaitGroup
	sending.Go(func() { _, _ = stream(c, 1, 64<<20) })
	stuck := g.host.link.bytesFrom.Load()
	require.Eventually(t, func() bool { // nothing more gets through
		last := stuck
		stuck = g.host.link.bytesFrom.Load()
		return stuck > 1<<20 && stuck == last
	}, testTimeout, 100*time.Millisecond)
	g.abort(c)
	sending.Wait()
	require.Eventually(t, func() bool { return g.host.Stats().ConnsOpen == 0 }, testTimeout, time.Millisecond)
}

func TestTCPOfAnotherLife(t *testing.T) {
	a := listen(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	g := newGuest(t, Config{Policy: allowing(t, a)})
	c := g.mustDial(onGateway(a))
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	// The guest goes on at a fresh stack, as after a restore.
	s, err := New(Config{MAC: testMAC, Policy: allowing(t, a)})
	require.NoError(t, err)
	defer s.Close()
	s.Attach(*g.host.link.deliver.Load())
	out := func(parts [][]byte) bool {
		go s.Send([][]byte{bytes.Join(parts, nil)})
		return true
	}
	g.link.deliver.Store(&out)
	_, err = c.Write([]byte("y"))
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.ErrorContains(t, err, "reset")
	c = g.mustDial(onGateway(a))
	_, err = c.Write([]byte("z"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
}

func TestTCPMany(t *testing.T) {
	const many = 2000
	a := listen(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	g := newGuest(t, Config{Policy: allowing(t, a), MaxConns: many})
	conns := make([]net.Conn, many)
	var all sync.WaitGroup
	at := make(chan struct{}, 64)
	for i := range conns {
		all.Go(func() {
			at <- struct{}{}
			defer func() { <-at }()
			c, err := g.dial(onGateway(a))
			if err != nil {
				t.Error(err)
				return
			}
			conns[i] = c
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	require.Equal(t, many, g.host.Stats().ConnsOpen)
	_, err := g.dial(onGateway(a))
	require.ErrorContains(t, err, "refused", "one too many")
	require.EqualValues(t, 1, g.host.Stats().ConnsLimited)
	for _, c := range conns {
		_, err := c.Write([]byte("ping"))
		require.NoError(t, err)
	}
	b := make([]byte, 4)
	for _, c := range conns {
		require.NoError(t, c.SetDeadline(time.Now().Add(testTimeout)))
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
		require.Equal(t, "ping", string(b))
		require.NoError(t, c.Close())
	}
	require.Eventually(t, func() bool { return g.host.Stats().ConnsOpen == 0 }, testTimeout, time.Millisecond)
}

func TestCloseWhileBusy(t *testing.T) {
	a := listen(t, func(c *net.TCPConn) {
		go func() { _, _ = io.Copy(io.Discard, c) }()
		_, _ = stream(c, 1, 1<<40)
	})
	u := listenUDP(t, func(b []byte) []byte { return b })
	g := newGuest(t, Config{Policy: policy(t, Allow, "allow 127.0.0.1")})
	var all sync.WaitGroup
	moved := make(chan struct{}, 1000)
	for range 20 {
		c := g.mustDial(onGateway(a))
		all.Go(func() { _, _ = stream(c, 2, 1<<40) })
		all.Go(func() {
			_, _ = io.ReadFull(c, make([]byte, 1<<20))
			moved <- struct{}{}
			_, _ = io.Copy(io.Discard, c)
		})
	}
	for range 20 {
		c := g.dialUDP(onGateway(u))
		_, err := c.Write([]byte("x"))
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		require.NoError(t, err)
	}
	// Connections that nobody answers, and queries.
	g.host.cfg.Nameservers = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}
	for range 20 {
		<-moved
	}
	require.Equal(t, 20, g.host.Stats().FlowsOpen)
	require.NoError(t, g.host.Close())
	require.Zero(t, g.host.Stats().ConnsOpen)
	require.Zero(t, g.host.Stats().FlowsOpen)
	require.NoError(t, g.host.Close(), "again")
	g.host.Send([][]byte{make([]byte, 100)})
	g.stack.Close() // the guest never hears of it
	all.Wait()
}

// TestCloseDuringHandshake has a guest that begins connections and never answers.
func TestCloseDuringHandshake(t *testing.T) {
	a := listen(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	to := onGateway(a)
	for round := range 20 {
		before := runtime.NumGoroutine()
		s, err := New(Config{MAC: testMAC, Policy: allowing(t, a)})
		require.NoError(t, err)
		answered := make(chan struct{}, 100)
		s.Attach(func([][]byte) bool { answered <- struct{}{}; return true })
		for i := range 20 {
			syn := make([]byte, header.TCPMinimumSize)
			header.TCP(syn).Encode(&header.TCPFields{
				SrcPort: uint16(1000 + i), DstPort: to.Port(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1000,
			})
			s.Send([][]byte{packet(header.TCPProtocolNumber, guestAddr, gatewayAddr, syn)})
		}
		for range round {
			<-answered
		}
		require.NoError(t, s.Close())
		require.Zero(t, s.Stats().ConnsOpen)
		noneLeft(t, before+20) // the server's may take longer
	}
}

func benchmarkTCP(b *testing.B, fromGuest bool) {
	const block = 64 << 10
	start := make(chan struct{})
	done := make(chan struct{})
	a := listen(b, func(c *net.TCPConn) {
		defer close(done)
		if fromGuest {
			_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
			return
		}
		<-start
		p := make([]byte, 256<<10)
		for left := int64(b.N) * block; left > 0; {
			k, err := c.Write(p[:min(left, int64(len(p)))])
			if err != nil {
				return
			}
			left -= int64(k)
		}
	})
	g := newGuest(b, Config{Policy: allowing(b, a)})
	c := g.mustDial(onGateway(a))
	_ = c.SetDeadline(time.Time{})
	b.SetBytes(block)
	b.ReportAllocs()
	b.ResetTimer()
	close(start)
	if fromGuest {
		p := make([]byte, block)
		for range b.N {
			if _, err := c.Write(p); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.CloseWrite()
		<-done
	} else {
		if k, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10)); err != nil || k != int64(b.N)*block {
			b.Fatal(k, err)
		}
	}
	b.StopTimer()
	_ = c.Close()
}

func BenchmarkFromGuest(b *testing.B) { benchmarkTCP(b, true) }
func BenchmarkToGuest(b *testing.B)   { benchmarkTCP(b, false) }

func BenchmarkConnect(b *testing.B) {
	a := listen(b, func(c *net.TCPConn) {})
	g := newGuest(b, Config{Policy: allowing(b, a)})
	for b.Loop() {
		c := g.mustDial(onGateway(a))
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	}
}

func BenchmarkNew(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		s, err := New(Config{MAC: testMAC})
		if err != nil {
			b.Fatal(err)
		}
		_ = s.Close()
	}
}
