package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// The tests here play the guest by hand; what the client does with a real agent is tested in guest/agent.

// fakeGuest is the guest's end of a connection.
type fakeGuest struct {
	t    *testing.T
	conn net.Conn
	r    *wire.Reader
}

// connect returns a client and its guest, which have greeted each other.
func connect(t *testing.T) (*Client, *fakeGuest) {
	host, guest := net.Pipe()
	g := &fakeGuest{t, guest, wire.NewReader(guest)}
	c, err := NewClient(host)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close(); guest.Close() })
	require.Equal(t, wire.TypeHello, g.next().Type)
	g.send(wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version})
	return c, g
}

func (g *fakeGuest) next() wire.Frame {
	g.t.Helper()
	f, err := g.r.Read()
	require.NoError(g.t, err)
	return f
}

// send writes a frame. A client that has cut the guest off does not take it.
func (g *fakeGuest) send(typ wire.Type, stream uint32, channel uint8, body any) {
	g.conn.Write(encode(g.t, typ, stream, channel, body))
}

// encode returns a frame. A []byte is the body itself, anything else is encoded.
func encode(t testing.TB, typ wire.Type, stream uint32, channel uint8, body any) []byte {
	raw, ok := body.([]byte)
	if !ok {
		var err error
		raw, err = msgpack.Marshal(body)
		require.NoError(t, err)
	}
	var b bytes.Buffer
	w := wire.NewWriter(&b, nil)
	require.NoError(t, w.Post(wire.Frame{Type: typ, Stream: stream, Channel: channel, Body: raw}))
	w.Flush(nil)
	return b.Bytes()
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// wait waits for a process and returns its error.
func wait(p *Process) error {
	_, err := p.Wait()
	return err
}

func TestAnExecIsOneRoundTrip(t *testing.T) {
	c, g := connect(t)
	done := make(chan Output)
	go func() {
		out, err := c.Run(testContext(t), ExecRequest{Args: []string{"x"}, Timeout: time.Second})
		require.NoError(t, err)
		done <- out
	}()
	f := g.next()
	require.Equal(t, wire.TypeOpen, f.Type)
	var req wire.Request
	require.NoError(t, wire.Decode(f, &req))
	require.Equal(t, wire.Exec{Args: []string{"x"}, Timeout: time.Second}, *req.Exec)
	g.send(wire.TypeReply, f.Stream, 0, wire.Reply{PID: 7})
	g.send(wire.TypeData, f.Stream, wire.ChannelOut, []byte("out"))
	g.send(wire.TypeData, f.Stream, wire.ChannelErr, []byte("err"))
	g.send(wire.TypeResult, f.Stream, 0, wire.Result{Signal: 9, TimedOut: true, Truncated: true, User: 1, System: 2, MaxRSS: 3})
	out := <-done
	require.Positive(t, out.Duration)
	out.Duration = 0
	require.Equal(t, Output{Stdout: []byte("out"), Stderr: []byte("err"), StdoutBytes: 3, StderrBytes: 3, ExitStatus: ExitStatus{
		Code: 137, Signal: syscall.SIGKILL, TimedOut: true, Truncated: true, User: 1, System: 2, MaxRSS: 3,
	}}, out)
}

func TestGuestsThatBreakTheProtocolAreCutOff(t *testing.T) {
	const id = 1
	chunk := make([]byte, wire.MaxData)
	flood := func(g *fakeGuest) {
		for range wire.InitialWindow/wire.MaxData + 1 {
			g.send(wire.TypeData, id, wire.ChannelOut, chunk)
		}
	}
	for name, misbehave := range map[string]func(g *fakeGuest){
		"garbage":             func(g *fakeGuest) { g.conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
		"huge frame":          func(g *fakeGuest) { g.conn.Write([]byte{0xff, 0xff, 0xff, 0xff}) },
		"flood":               flood,
		"empty data":          func(g *fakeGuest) { g.send(wire.TypeData, id, wire.ChannelOut, []byte{}) },
		"data for stdin":      func(g *fakeGuest) { g.send(wire.TypeData, id, wire.ChannelIn, []byte("x")) },
		"end of stdin":        func(g *fakeGuest) { g.send(wire.TypeEOF, id, wire.ChannelIn, []byte{}) },
		"absurd window":       func(g *fakeGuest) { g.send(wire.TypeWindow, id, wire.ChannelIn, wire.Window{Bytes: 1 << 30}) },
		"empty window":        func(g *fakeGuest) { g.send(wire.TypeWindow, id, wire.ChannelIn, wire.Window{}) },
		"unknown stream":      func(g *fakeGuest) { g.send(wire.TypeResult, 99, 0, wire.Result{}) },
		"stream zero":         func(g *fakeGuest) { g.send(wire.TypeResult, 0, 0, wire.Result{}) },
		"client's frame":      func(g *fakeGuest) { g.send(wire.TypeOpen, id, 0, wire.Request{}) },
		"two replies":         func(g *fakeGuest) { g.send(wire.TypeReply, id, 0, wire.Reply{}) },
		"two greetings":       func(g *fakeGuest) { g.send(wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version}) },
		"impossible status":   func(g *fakeGuest) { g.send(wire.TypeResult, id, 0, wire.Result{Code: 256}) },
		"impossible signal":   func(g *fakeGuest) { g.send(wire.TypeResult, id, 0, wire.Result{Signal: -1}) },
		"unreadable result":   func(g *fakeGuest) { g.send(wire.TypeResult, id, 0, []byte{0xc1}) },
		"result that nests":   func(g *fakeGuest) { g.send(wire.TypeResult, id, 0, bytes.Repeat([]byte{0x91}, 8<<10)) },
		"fat result":          func(g *fakeGuest) { g.send(wire.TypeResult, id, 0, make([]byte, 100<<10)) },
		"unknown reason":      func(g *fakeGuest) { g.send(wire.TypeStopping, 0, 0, wire.Stopping{Reason: "fun"}) },
		"result before reply": nil,
	} {
		t.Run(name, func(t *testing.T) {
			c, g := connect(t)
			go io.Copy(io.Discard, g.conn)
			failed := make(chan error)
			go func() {
				p, err := c.Exec(testContext(t), ExecRequest{Args: []string{"x"}, Pipes: true}) // the output is not read
				if err == nil {
					err = wait(p)
				}
				failed <- err
			}()
			for c.newest() != id {
				runtime.Gosched()
			}
			if misbehave == nil {
				g.send(wire.TypeResult, id, 0, wire.Result{})
				require.ErrorIs(t, <-failed, wire.ErrProtocol)
				return
			}
			g.send(wire.TypeReply, id, 0, wire.Reply{})
			misbehave(g)
			require.ErrorIs(t, <-failed, wire.ErrProtocol)
			<-c.Done()
			require.ErrorIs(t, c.Err(), ErrClosed)
			require.ErrorIs(t, c.Ping(testContext(t)), wire.ErrProtocol)
		})
	}
}

// newest returns the number of the newest stream.
func (c *Client) newest() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func TestOtherVersionsAreRefused(t *testing.T) {
	for name, greeting := range map[string][]byte{
		"newer":       encode(t, wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version + 1}),
		"no greeting": encode(t, wire.TypeStopping, 0, 0, wire.Stopping{Reason: wire.StopReboot}),
	} {
		host, guest := net.Pipe()
		c, err := NewClient(host)
		require.NoError(t, err)
		go io.Copy(io.Discard, guest)
		guest.Write(greeting)
		require.ErrorIs(t, c.Ping(testContext(t)), wire.ErrProtocol, name)
		require.NoError(t, c.Close())
	}
}

// A guest that neither reads nor answers holds up nobody who can be canceled.
func TestASilentGuestHoldsUpNobody(t *testing.T) {
	host, guest := net.Pipe() // nobody reads the other end
	defer guest.Close()
	c, err := NewClient(host)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	canceled := func(err error) { require.ErrorIs(t, err, context.Canceled) }
	for range 100 {
		short, stop := context.WithTimeout(testContext(t), time.Millisecond)
		_, err := c.Exec(short, ExecRequest{Args: []string{strings.Repeat("x", 100<<10)}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		stop()
		canceled(c.Ping(ctx))
		canceled(c.WriteFile(ctx, "/x", strings.NewReader("x"), 0o600))
		_, err = c.ReadFile(ctx, "/x")
		canceled(err)
		_, err = c.Stat(ctx, "/x", true)
		canceled(err)
		_, err = c.Watch(ctx, "/x", true)
		canceled(err)
		canceled(c.Remove(ctx, "/x", true))
		canceled(c.CopyOut(ctx, "/x", t.TempDir(), CopyOutOptions{}))
	}
	blocked := make(chan error)
	go func() { blocked <- c.Ping(context.Background()) }()
	require.NoError(t, c.Close())
	require.ErrorIs(t, <-blocked, ErrClosed)
}

func TestTheGuestSaysWhyItStops(t *testing.T) {
	c, g := connect(t)
	require.Empty(t, c.StopReason())
	g.send(wire.TypeStopping, 0, 0, wire.Stopping{Reason: wire.StopReboot})
	g.conn.Close()
	<-c.Done()
	require.Equal(t, StopReboot, c.StopReason())
}

func TestTextsOfTheGuestAreHarmless(t *testing.T) {
	c, g := connect(t)
	failed := make(chan error)
	go func() { failed <- c.Ping(testContext(t)) }()
	f := g.next()
	g.send(wire.TypeResult, f.Stream, 0, wire.Result{Error: &wire.Error{Kind: wire.KindIO, Message: "\x1b]0;title\x07\xff"}})
	err := <-failed
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "\uFFFD]0;title\uFFFD\uFFFD", e.Message)
}

func TestPortsOfBrokenGuests(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing":     nil,
		"garbage":     []byte("hello, world"),
		"long frame":  {0, 1, 0, 0},
		"wrong frame": encode(t, wire.TypeStopping, 0, 0, wire.Stopping{}),
		"no result":   encode(t, wire.TypeResult, 1, 0, []byte{0xc1}),
	} {
		host, guest := net.Pipe()
		go func() {
			wire.ReadUnbuffered(guest)
			guest.Write(answer)
			guest.Close()
		}()
		err := DialPort(testContext(t), host, 80)
		require.Error(t, err, name)
		require.True(t, errors.Is(err, wire.ErrProtocol) || errors.Is(err, ErrClosed), name)
	}
	host, guest := net.Pipe()
	defer guest.Close()
	ctx, cancel := context.WithTimeout(testContext(t), time.Millisecond)
	defer cancel()
	require.ErrorIs(t, DialPort(ctx, host, 80), context.DeadlineExceeded)
}

// Whatever a guest sends, every call ends when the connection does.
func FuzzClient(f *testing.F) {
	greeting := encode(f, wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version})
	add := func(frames ...[]byte) { f.Add(append(bytes.Clone(greeting), bytes.Join(frames, nil)...)) }
	add(encode(f, wire.TypeReply, 1, 0, wire.Reply{PID: 1, Info: &wire.Info{Kernel: "x"}}), encode(f, wire.TypeResult, 1, 0, wire.Result{Code: 1}))
	add(encode(f, wire.TypeReply, 2, 0, wire.Reply{Size: 9}), encode(f, wire.TypeData, 2, 1, []byte("data")),
		encode(f, wire.TypeResult, 2, 0, wire.Result{Error: &wire.Error{Kind: "io", Message: "x"}}))
	add(encode(f, wire.TypeWindow, 3, 0, wire.Window{Bytes: 5}), encode(f, wire.TypeEOF, 1, 2, []byte{}))
	add(encode(f, wire.TypeStopping, 0, 0, wire.Stopping{Reason: wire.StopPowerOff}))
	add(encode(f, wire.TypeReply, 5, 0, wire.Reply{}), encode(f, wire.TypeResult, 5, 0, wire.Result{}), encode(f, wire.TypeData, 6, 1, []byte("x")),
		encode(f, wire.TypeResult, 6, 0, wire.Result{Error: &wire.Error{Kind: "invalid"}}))
	add(encode(f, wire.TypeReply, 7, 0, wire.Reply{PID: 1}), encode(f, wire.TypeResult, 7, 0, wire.Result{}), encode(f, wire.TypeReply, 8, 0, wire.Reply{PID: 1}),
		encode(f, wire.TypeData, 8, 2, []byte("data")), encode(f, wire.TypeResult, 8, 0, wire.Result{Signal: 9}))
	add(encode(f, wire.TypeReply, 1, 0, wire.Reply{File: &wire.FileInfo{Path: "x"}}), encode(f, wire.TypeReply, 2, 0, wire.Reply{}),
		encode(f, wire.TypeData, 2, 1, []byte{0, 0, 0, 8, 0x81, 0xa4, 'p', 'a', 't', 'h', 0xa1, 'x'}), encode(f, wire.TypeResult, 2, 0, wire.Result{}))
	add(encode(f, wire.TypeReply, 9, 0, wire.Reply{PID: 1, ID: 2}), encode(f, wire.TypeData, 9, 1, []byte("x")), encode(f, wire.TypeResult, 9, 0, wire.Result{Lost: 1}),
		encode(f, wire.TypeData, 10, 1, encodeProgram(f, &wire.Program{ID: 1, Args: []string{"x"}})), encode(f, wire.TypeEOF, 10, 1, []byte{}),
		encode(f, wire.TypeResult, 10, 0, wire.Result{Truncated: true}), encode(f, wire.TypeReply, 11, 0, wire.Reply{ID: 3}),
		encode(f, wire.TypeResult, 11, 0, wire.Result{Detached: true}))
	f.Fuzz(func(t *testing.T, in []byte) {
		host, guest := net.Pipe()
		c, err := NewClient(host)
		require.NoError(t, err)
		go io.Copy(io.Discard, guest)
		ctx := context.Background()
		calls := []func(){
			func() { c.Run(ctx, ExecRequest{Args: []string{"x"}, Stdin: strings.NewReader("in")}) },
			func() {
				if r, err := c.ReadFile(ctx, "/x"); err == nil {
					io.Copy(io.Discard, r)
					r.Close()
				}
			},
			func() { c.WriteFile(ctx, "/x", strings.NewReader("x"), 0o600) },
			func() { c.Info(ctx) },
			func() { c.Stat(ctx, "/x", true) },
			func() {
				if r, err := c.Walk(ctx, "/x"); err == nil {
					for range r.All() {
					}
				}
			},
			func() { c.CopyOut(ctx, "/x", t.TempDir(), CopyOutOptions{MaxBytes: 1 << 20, MaxEntries: 10}) },
			func() { c.Freeze(ctx, true) },
			func() { c.Thaw(ctx, &Identity{ID: "x"}, Mount{}) },
			func() { c.StartWorkload(ctx, ExecRequest{Args: []string{"x"}}) },
			func() {
				if p, err := c.Follow(ctx, AttachRequest{Stdout: io.Discard}); err == nil {
					p.Wait()
				}
			},
			func() {
				if p, err := c.Attach(ctx, 2, AttachRequest{Stdin: strings.NewReader("in")}); err == nil {
					p.Wait()
				}
			},
			func() { c.Programs(ctx) },
			func() {
				if p, err := c.Exec(ctx, ExecRequest{Args: []string{"x"}, Limits: []Rlimit{{Name: "cpu"}}}); err == nil {
					p.Detach(ctx)
					p.Wait()
				}
			},
		}
		ended := make(chan struct{})
		for _, call := range calls {
			go func() { call(); ended <- struct{}{} }()
		}
		for c.newest() < uint32(len(calls)) && c.Err() == nil {
			runtime.Gosched()
		}
		guest.Write(in)
		guest.Close()
		for range calls {
			<-ended
		}
		require.NoError(t, c.Close())
	})
}
