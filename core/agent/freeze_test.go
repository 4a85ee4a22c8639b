package agent

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// request reads the opening of a stream.
func (g *fakeGuest) request() (uint32, wire.Request) {
	g.t.Helper()
	f := g.next()
	require.Equal(g.t, wire.TypeOpen, f.Type)
	var req wire.Request
	require.NoError(g.t, wire.Decode(f, &req))
	return f.Stream, req
}

// answer ends a stream well.
func (g *fakeGuest) answer(stream uint32) { g.send(wire.TypeResult, stream, 0, wire.Result{}) }

// later runs a call and returns its error when it has ended.
func later(call func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- call() }()
	return done
}

// The device of a saved machine keeps its end of a connection: bytes that the client of the guest that was copied did not live to read do
// not exist, and in the copy another client goes on with the same stream numbers and no greeting.
func TestAFrozenConnectionGoesOnInACopy(t *testing.T) {
	c, g := connect(t)
	frozen := later(func() error { return c.Freeze(testContext(t), true) })
	id, req := g.request()
	require.EqualValues(t, frozenStreams, id)
	require.Equal(t, wire.Request{Freeze: &wire.Freeze{Lean: true}}, req)
	g.answer(id)
	require.NoError(t, <-frozen)

	for range 2 { // any number of copies
		host, guest := net.Pipe()
		copied := &fakeGuest{t, guest, wire.NewReader(guest)}
		r := Resume(host)
		want := &Identity{ID: "copy", Entropy: bytes.Repeat([]byte{7}, EntropySize), Time: time.Unix(1, 0), Hostname: "host"}
		thawed := later(func() error { return r.Thaw(testContext(t), want, Mount{}) })
		id, req := copied.request()
		require.EqualValues(t, frozenStreams+1, id, "numbers only rise")
		require.True(t, want.Time.Equal(req.Thaw.Identity.Time))
		req.Thaw.Identity.Time = want.Time
		require.Equal(t, want, req.Thaw.Identity)
		copied.answer(id)
		require.NoError(t, <-thawed)
		pinged := later(func() error { return r.Ping(testContext(t)) })
		id, _ = copied.request()
		require.EqualValues(t, frozenStreams+2, id)
		copied.answer(id)
		require.NoError(t, <-pinged)
		require.NoError(t, r.Close())
	}
	thawed := later(func() error { return c.Thaw(testContext(t), nil, Mount{}) })
	id, req = g.request()
	require.EqualValues(t, frozenStreams+1, id)
	require.Equal(t, wire.Request{Thaw: &wire.Thaw{}}, req)
	g.answer(id)
	require.NoError(t, <-thawed, "and in the guest itself")
}

// The guest's end of one and the same connection serves first one client and then another.
func TestResumeTakesOverTheConnectionOfAClientThatStopped(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	ends := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		ends[i], err = net.FileConn(f)
		require.NoError(t, err)
		f.Close()
	}
	host := &stopping{Conn: ends[0]}
	g := &fakeGuest{t, ends[1], wire.NewReader(ends[1])}
	defer ends[1].Close()
	first, err := NewClient(host)
	require.NoError(t, err)
	require.Equal(t, wire.TypeHello, g.next().Type)
	g.send(wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version})
	frozen := later(func() error { return first.Freeze(testContext(t), false) })
	id, _ := g.request()
	g.answer(id)
	require.NoError(t, <-frozen)
	require.NoError(t, first.Close())

	require.NoError(t, ends[0].SetReadDeadline(time.Time{}))
	second := Resume(ends[0])
	defer second.Close()
	thawed := later(func() error { return second.Thaw(testContext(t), nil, Mount{}) })
	id, _ = g.request()
	require.EqualValues(t, 2, id)
	g.send(wire.TypeData, 1, wire.ChannelOut, []byte("of a stream that the first had")) // is nobody's
	g.answer(id)
	require.NoError(t, <-thawed)
}

// stopping is a connection whose owner stops without closing it.
type stopping struct{ net.Conn }

func (s *stopping) Close() error { return s.SetReadDeadline(time.Unix(1, 0)) }

func TestResumedConnectionsAreNotGreetedAgain(t *testing.T) {
	for name, b := range map[string][]byte{
		"greeting":         encode(t, wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version}),
		"garbage":          []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"stream to come":   encode(t, wire.TypeResult, frozenStreams+1, 0, wire.Result{}),
		"unknown stopping": encode(t, wire.TypeStopping, 0, 0, wire.Stopping{Reason: "fun"}),
	} {
		host, guest := net.Pipe()
		c := Resume(host)
		_, err := guest.Write(b)
		require.NoError(t, err, name)
		<-c.Done()
		require.ErrorIs(t, c.Err(), wire.ErrProtocol, name)
		require.ErrorIs(t, c.Thaw(testContext(t), nil, Mount{}), ErrClosed, name)
		guest.Close()
	}
}

func TestAnswersToAFreezeThatBreakTheProtocol(t *testing.T) {
	for name, misbehave := range map[string]func(g *fakeGuest, id uint32){
		"result that is a list": func(g *fakeGuest, id uint32) { g.send(wire.TypeResult, id, 0, []int{1, 2}) },
		"error that is a text":  func(g *fakeGuest, id uint32) { g.send(wire.TypeResult, id, 0, map[string]any{"error": "no"}) },
		"impossible status":     func(g *fakeGuest, id uint32) { g.send(wire.TypeResult, id, 0, wire.Result{Code: -1}) },
		"reply that is a text":  func(g *fakeGuest, id uint32) { g.send(wire.TypeReply, id, 0, "frozen") },
		"two replies": func(g *fakeGuest, id uint32) {
			g.send(wire.TypeReply, id, 0, wire.Reply{})
			g.send(wire.TypeReply, id, 0, wire.Reply{})
		},
		"data without end": func(g *fakeGuest, id uint32) {
			for range wire.InitialWindow/wire.MaxData + 1 {
				g.send(wire.TypeData, id, wire.ChannelErr, make([]byte, wire.MaxData))
			}
		},
		"data for stdin":  func(g *fakeGuest, id uint32) { g.send(wire.TypeData, id, wire.ChannelIn, []byte("x")) },
		"window":          func(g *fakeGuest, id uint32) { g.send(wire.TypeWindow, id, 0, wire.Window{Bytes: 1}) },
		"request of ours": func(g *fakeGuest, id uint32) { g.send(wire.TypeOpen, id, 0, wire.Request{Freeze: &wire.Freeze{}}) },
		"other stream":    func(g *fakeGuest, id uint32) { g.answer(id + 1) },
	} {
		t.Run(name, func(t *testing.T) {
			c, g := connect(t)
			frozen := later(func() error { return c.Freeze(testContext(t), false) })
			id, _ := g.request()
			misbehave(g, id)
			require.ErrorIs(t, <-frozen, wire.ErrProtocol)
			<-c.Done()
			require.ErrorIs(t, c.Thaw(testContext(t), nil, Mount{}), ErrClosed)
		})
	}
}

// What may be said on any stream, but means nothing on this one, is ignored.
func TestNeedlessAnswersToAFreezeAreIgnored(t *testing.T) {
	c, g := connect(t)
	frozen := later(func() error { return c.Freeze(testContext(t), false) })
	id, _ := g.request()
	g.send(wire.TypeReply, id, 0, wire.Reply{PID: -1, Size: -1, Info: &wire.Info{}})
	g.send(wire.TypeData, id, wire.ChannelOut, make([]byte, wire.MaxData))
	g.send(wire.TypeEOF, id, wire.ChannelErr, []byte{})
	g.send(wire.TypeEOF, id, wire.ChannelErr, []byte{})
	g.send(wire.TypeResult, id, 0, map[string]any{"code": 3, "teleport": "mars"})
	g.send(wire.TypeData, id, wire.ChannelOut, []byte("late"))
	require.NoError(t, <-frozen)
	require.NoError(t, c.Err())
}

func TestACanceledFreezeIsAbandoned(t *testing.T) {
	c, g := connect(t)
	ctx, cancel := context.WithCancel(testContext(t))
	frozen := later(func() error { return c.Freeze(ctx, false) })
	id, _ := g.request()
	cancel()
	require.ErrorIs(t, <-frozen, context.Canceled)
	f := g.next()
	require.Equal(t, wire.TypeAbandon, f.Type)
	require.Equal(t, id, f.Stream)
}

func TestAWorkloadIsStartedDetached(t *testing.T) {
	c, g := connect(t)
	started := later(func() error {
		return c.StartWorkload(testContext(t), ExecRequest{Args: []string{"x"}, Env: []string{"A=b"}, Dir: "/d", User: "u", Timeout: time.Second})
	})
	id, req := g.request()
	require.Equal(t, wire.Request{Exec: &wire.Exec{
		Args: []string{"x"}, Env: []string{"A=b"}, Dir: "/d", User: "u", Timeout: time.Second, Main: true, Detach: true,
	}}, req)
	g.send(wire.TypeReply, id, 0, wire.Reply{PID: 7})
	g.answer(id)
	require.NoError(t, <-started)

	var out, errs bytes.Buffer
	followed := later(func() error {
		p, err := c.Follow(testContext(t), AttachRequest{Stdout: &out, Stderr: &errs})
		if err != nil {
			return err
		}
		return wait(p)
	})
	id, req = g.request()
	require.Equal(t, wire.Request{Follow: &wire.Empty{}}, req)
	g.send(wire.TypeReply, id, 0, wire.Reply{PID: 7})
	g.send(wire.TypeData, id, wire.ChannelErr, []byte("err"))
	g.send(wire.TypeData, id, wire.ChannelOut, []byte("out"))
	g.answer(id)
	require.NoError(t, <-followed)
	require.Equal(t, "out err", out.String()+" "+errs.String())
}

// Nobody who has stopped to listen to a guest is held up by it.
func TestASilentGuestHoldsUpNoFreeze(t *testing.T) {
	host, guest := net.Pipe()
	defer guest.Close()
	go io.Copy(io.Discard, guest)
	c := Resume(host)
	ctx, cancel := context.WithTimeout(testContext(t), 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Thaw(ctx, nil, Mount{}), context.DeadlineExceeded)
	require.ErrorIs(t, c.Freeze(ctx, false), context.DeadlineExceeded)
	require.ErrorIs(t, c.StartWorkload(ctx, ExecRequest{Args: []string{"x"}}), context.DeadlineExceeded)
	_, err := c.Follow(ctx, AttachRequest{})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, c.Close())
}
