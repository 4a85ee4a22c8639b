// Package agent is the host's client of the agent in the guest: programs, files (contents, names, attributes, changes, trees as archives and as
// copies) and the guest's shutdown, over one multiplexed connection. The guest is hostile: whatever it sends harms at most its own connection.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
	"unicode"

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

// Info describes the guest.
type Info = wire.Info

// Reasons that StopReason returns.
const (
	StopPowerOff = wire.StopPowerOff
	StopReboot   = wire.StopReboot
)

// Client talks to one agent. Its methods may be called from any goroutine.
type Client struct {
	conn    net.Conn
	w       *wire.Writer
	opening chan struct{} // holds a token while a stream gets its number and its Open frame is queued, as numbers only rise

	use func() (end func()) // of TrackUse, may be nil

	mu      sync.Mutex
	last    uint32 // newest stream
	streams map[uint32]*stream
	stop    string
	err     error
	done    chan struct{}
}

// NewClient starts the protocol on conn, which the client owns from now on. It does not wait for the agent.
func NewClient(conn net.Conn) (*Client, error) {
	c := newClient(conn)
	if err := c.w.Send(nil, wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	go c.read(false)
	return c, nil
}

func newClient(conn net.Conn) *Client {
	c := &Client{conn: conn, opening: make(chan struct{}, 1), streams: map[uint32]*stream{}, done: make(chan struct{})}
	c.w = wire.NewWriter(conn, func(err error) { c.fail(fmt.Errorf("%w: %w", ErrClosed, err)) })
	return c
}

// TrackUse has begin called before each request and what it returns after it: a request that lasts, such as the workload's run or following a program, is
// over in this sense once it is answered. It must be called before any request is made.
func (c *Client) TrackUse(begin func() (end func())) { c.use = begin }

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

// read dispatches what the agent sends, until the connection ends. It never waits for anything else, so that no stream holds up another.
func (c *Client) read(greeted bool) {
	defer close(c.done)
	r := wire.NewReader(c.conn)
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
		return c.stopping(f)
	}
	c.mu.Lock()
	s, last := c.streams[f.Stream], c.last
	if f.Type == wire.TypeResult {
		delete(c.streams, f.Stream)
	}
	c.mu.Unlock()
	if s != nil {
		return s.dispatch(f)
	}
	if f.Stream == 0 || f.Stream > last {
		return fmt.Errorf("%w: a frame of type %d for stream %d, which was never opened", wire.ErrProtocol, f.Type, f.Stream)
	}
	return nil // abandoned by us, and the agent did not know yet
}

func (c *Client) stopping(f wire.Frame) error {
	var s wire.Stopping
	if err := wire.Decode(f, &s); err != nil {
		return err
	}
	if s.Reason != StopPowerOff && s.Reason != StopReboot {
		return fmt.Errorf("%w: the guest stops for the reason %q", wire.ErrProtocol, s.Reason)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop = s.Reason
	return nil
}

// call makes a request that has nothing but a result.
func (c *Client) call(ctx context.Context, req wire.Request) error {
	s, err := c.open(ctx, req)
	if err != nil {
		return err
	}
	_, err = s.finish(ctx)
	return err
}

// Ping waits for the agent's answer to an empty request. While the guest boots the answer comes when programs can be run.
func (c *Client) Ping(ctx context.Context) error {
	return c.call(ctx, wire.Request{Ping: &wire.Empty{}})
}

// Info asks the agent about the guest. What it says is the guest's claim.
func (c *Client) Info(ctx context.Context) (Info, error) {
	s, err := c.open(ctx, wire.Request{Info: &wire.Empty{}})
	if err != nil {
		return Info{}, err
	}
	r, err := s.started(ctx)
	if err != nil {
		return Info{}, err
	}
	if r.Info == nil {
		return Info{}, fmt.Errorf("%w: no information in the answer", wire.ErrProtocol)
	}
	r.Info.Kernel = printable(r.Info.Kernel)
	_, err = s.finish(ctx)
	return *r.Info, err
}

// Shutdown asks the guest to stop: the workload gets its stop signal, SIGKILL after grace, and then the guest powers off. It
// returns when the agent has done its part; the guest goes down right after that.
func (c *Client) Shutdown(ctx context.Context, grace time.Duration) error {
	return c.call(ctx, wire.Request{Shutdown: &wire.Shutdown{Grace: grace}})
}

// printable makes a text of the guest harmless for the host's terminals and logs.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}
