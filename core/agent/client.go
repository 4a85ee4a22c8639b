// Package agent is the host's client of the agent in the guest: programs, files and the guest's shutdown, over one multiplexed
// connection. The guest is hostile: whatever it sends harms at most its own connection.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// The guest's vsock ports.
const (
	ControlPort = wire.ControlPort // for NewClient
	ProxyPort   = wire.ProxyPort   // for DialPort
)

// ErrClosed means that the connection to the agent has ended.
var ErrClosed = errors.New("the connection to the guest's agent has ended")

// Error is a failure that the guest reports.
type Error = wire.Error

// Reasons that StopReason returns.
const (
	StopPowerOff = wire.StopPowerOff
	StopReboot   = wire.StopReboot
)

// Client talks to one agent. Its methods may be called from any goroutine.
type Client struct {
	conn net.Conn
	w    *wire.Writer

	mu      sync.Mutex
	next    uint32
	streams map[uint32]*stream
	stop    string
	err     error
	done    chan struct{}
}

// NewClient starts the protocol on conn, which the client owns from now on. It does not wait for the agent.
func NewClient(conn net.Conn) (*Client, error) {
	c := &Client{conn: conn, w: wire.NewWriter(conn), streams: map[uint32]*stream{}, done: make(chan struct{})}
	if err := c.w.Send(wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	go c.read()
	return c, nil
}

// Close ends the connection; everything under way on it fails, and what it runs in the guest is killed.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	<-c.done
	return nil
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the connection has ended, nil as long as it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// StopReason returns why the guest announced that it goes down, or an empty string if it did not.
func (c *Client) StopReason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stop
}

// fail ends the connection with the first error.
func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	c.conn.Close()
	for id, s := range c.streams {
		s.end(wire.Result{}, err)
		delete(c.streams, id)
	}
}

// read dispatches what the agent sends, until the connection ends.
func (c *Client) read() {
	defer close(c.done)
	r := wire.NewReader(c.conn)
	greeted := false
	for {
		f, err := r.Read()
		if err == nil {
			if !greeted {
				greeted = true
				err = checkHello(f)
			} else {
				err = c.dispatch(f)
			}
		}
		if err != nil {
			c.fail(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
	}
}

func checkHello(f wire.Frame) error {
	var hello wire.Hello
	if f.Type != wire.TypeHello {
		return fmt.Errorf("%w: no greeting", wire.ErrProtocol)
	}
	if err := wire.Decode(f, &hello); err != nil {
		return err
	}
	if hello.Version != wire.Version {
		return fmt.Errorf("%w: the guest speaks version %d, this host %d", wire.ErrProtocol, hello.Version, wire.Version)
	}
	return nil
}

func (c *Client) dispatch(f wire.Frame) error {
	if f.Type == wire.TypeStopping {
		var s wire.Stopping
		if err := wire.Decode(f, &s); err != nil {
			return err
		}
		c.mu.Lock()
		c.stop = s.Reason
		c.mu.Unlock()
		return nil
	}
	c.mu.Lock()
	s := c.streams[f.Stream]
	if f.Type == wire.TypeResult {
		delete(c.streams, f.Stream)
	}
	next := c.next
	c.mu.Unlock()
	if s == nil {
		if f.Stream == 0 || f.Stream > next {
			return fmt.Errorf("%w: a frame of type %d for stream %d, which was never opened", wire.ErrProtocol, f.Type, f.Stream)
		}
		return nil // abandoned by us, and the agent does not know yet
	}
	switch f.Type {
	case wire.TypeReply:
		var r wire.Reply
		if err := wire.Decode(f, &r); err != nil {
			return err
		}
		s.reply(r)
	case wire.TypeData:
		return s.inbox(f.Channel).Put(f.Body)
	case wire.TypeEOF:
		s.inbox(f.Channel).Close(nil)
	case wire.TypeWindow:
		var win wire.Window
		if err := wire.Decode(f, &win); err != nil {
			return err
		}
		return s.in.Grant(win.Bytes)
	case wire.TypeResult:
		var r wire.Result
		if err := wire.Decode(f, &r); err != nil {
			return err
		}
		s.end(r, nil)
	default:
		return fmt.Errorf("%w: a server sent a frame of type %d", wire.ErrProtocol, f.Type)
	}
	return nil
}

// stream is one request under way.
type stream struct {
	c        *Client
	id       uint32
	in       *wire.Outbox
	out, err *wire.Inbox

	replied chan wire.Reply // at most one
	ended   chan struct{}
	result  wire.Result
	failure error
	once    sync.Once
}

// open starts a request.
func (c *Client) open(req wire.Request) (*stream, error) {
	s := &stream{c: c, replied: make(chan wire.Reply, 1), ended: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.next++
	s.id = c.next
	s.in = wire.NewOutbox(c.w, s.id, wire.ChannelIn)
	s.out, s.err = s.newInbox(wire.ChannelOut), s.newInbox(wire.ChannelErr)
	c.streams[s.id] = s
	c.mu.Unlock()
	if err := c.w.Send(wire.TypeOpen, s.id, 0, req); err != nil {
		if !errors.Is(err, wire.ErrTooLarge) {
			err = fmt.Errorf("%w: %w", ErrClosed, err)
			c.fail(err)
		}
		c.forget(s)
		return nil, err
	}
	return s, nil
}

func (s *stream) newInbox(channel uint8) *wire.Inbox {
	return wire.NewInbox(func(n uint32) error { return s.c.w.Send(wire.TypeWindow, s.id, channel, wire.Window{Bytes: n}) })
}

func (s *stream) inbox(channel uint8) *wire.Inbox {
	if channel == wire.ChannelErr {
		return s.err
	}
	return s.out
}

func (c *Client) forget(s *stream) {
	c.mu.Lock()
	delete(c.streams, s.id)
	c.mu.Unlock()
}

// abandon gives the request up: the agent kills what it runs.
func (s *stream) abandon(err error) {
	s.c.mu.Lock()
	_, live := s.c.streams[s.id]
	delete(s.c.streams, s.id)
	s.c.mu.Unlock()
	if live {
		s.c.w.Write(wire.Frame{Type: wire.TypeAbandon, Stream: s.id})
	}
	s.end(wire.Result{}, err)
}

func (s *stream) reply(r wire.Reply) {
	select {
	case s.replied <- r:
	default: // a second one: the guest's mistake, which changes nothing
	}
}

// end records the stream's outcome; the first call counts.
func (s *stream) end(r wire.Result, err error) {
	s.once.Do(func() {
		s.result, s.failure = r, err
		if err == nil && r.Error != nil {
			s.failure = r.Error
		}
		s.in.Close()
		s.out.Close(err)
		s.err.Close(err)
		close(s.ended)
	})
}

// started waits for the reply. If the stream ends without one, it returns why.
func (s *stream) started(ctx context.Context) (wire.Reply, error) {
	select {
	case r := <-s.replied:
		return r, nil
	case <-s.ended:
		select {
		case r := <-s.replied: // both were there
			return r, nil
		default:
		}
		if s.failure != nil {
			return wire.Reply{}, s.failure
		}
		return wire.Reply{}, nil
	case <-ctx.Done():
		s.abandon(ctx.Err())
		return wire.Reply{}, ctx.Err()
	}
}

// finish waits for the result.
func (s *stream) finish(ctx context.Context) (wire.Result, error) {
	select {
	case <-s.ended:
		return s.result, s.failure
	case <-ctx.Done():
		s.abandon(ctx.Err())
		return wire.Result{}, ctx.Err()
	}
}

// call makes a request that has nothing but a result.
func (c *Client) call(ctx context.Context, req wire.Request) error {
	s, err := c.open(req)
	if err != nil {
		return err
	}
	_, err = s.finish(ctx)
	return err
}

// Ping waits for the agent's answer to an empty request.
func (c *Client) Ping(ctx context.Context) error {
	return c.call(ctx, wire.Request{Ping: &struct{}{}})
}

// Shutdown asks the guest to stop: the workload gets its stop signal, SIGKILL after grace, and then the guest powers off. It
// returns when the agent has done its part; the guest goes down right after that.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	return c.call(ctx, wire.Request{Shutdown: &wire.Shutdown{Grace: grace}})
}

// DialPort turns conn, freshly connected to ProxyPort, into a connection to a TCP port on the guest's loopback address.
func DialPort(ctx context.Context, conn net.Conn, port uint16) error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := wire.NewWriter(conn).Send(wire.TypeOpen, 1, 0, wire.ProxyRequest{Port: port})
	var f wire.Frame
	if err == nil {
		f, err = wire.ReadUnbuffered(conn)
	}
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	var r wire.Result
	if f.Type != wire.TypeResult {
		return fmt.Errorf("%w: no answer to the request for port %d", wire.ErrProtocol, port)
	}
	if err := wire.Decode(f, &r); err != nil {
		return err
	}
	if r.Error != nil {
		return r.Error
	}
	return nil
}

// ReadFile opens a file in the guest. The reader must be closed; it fails when ctx is done.
func (c *Client) ReadFile(ctx context.Context, path string) (io.ReadCloser, error) {
	s, err := c.open(wire.Request{Read: &wire.ReadFile{Path: path}})
	if err != nil {
		return nil, err
	}
	if _, err := s.started(ctx); err != nil {
		return nil, err
	}
	return &fileReader{s: s, stop: context.AfterFunc(ctx, func() { s.abandon(ctx.Err()) })}, nil
}

type fileReader struct {
	s     *stream
	chunk []byte
	stop  func() bool
}

func (r *fileReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		var err error
		if r.chunk, err = r.s.out.Next(); err != nil {
			if err == io.EOF { // all of it, or as much as could be read
				<-r.s.ended
				if r.s.failure != nil {
					return 0, r.s.failure
				}
			}
			return 0, err
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

func (r *fileReader) Close() error {
	r.stop()
	r.s.abandon(io.ErrClosedPipe)
	return nil
}

// WriteFile creates or replaces a file in the guest with what r yields. It is atomic: the name shows the old or the new file.
func (c *Client) WriteFile(ctx context.Context, path string, r io.Reader, mode uint32) error {
	s, err := c.open(wire.Request{Write: &wire.WriteFile{Path: path, Mode: mode}})
	if err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{s.in}, r, make([]byte, wire.MaxData)); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		s.abandon(err)
		return err
	}
	s.in.CloseWrite() // a failure shows in the result
	_, err = s.finish(ctx)
	return err
}
