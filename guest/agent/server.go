// Package agent is the server in the guest: it runs programs in the workload's namespaces, reads and writes files there, connects to
// its ports and takes the guest down, for any number of host connections (package wire is the protocol).
package agent

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// Defaults are what an exec gets where its request says nothing: the image's configuration.
type Defaults struct {
	Env        []string
	Dir        string
	User       string
	StopSignal string
}

// Config is what a Server needs.
type Config struct {
	Defaults Defaults
	Container
	// PowerOff takes the guest down, after everything in it has ended. reason is one of wire's Stop reasons.
	PowerOff func(reason string)
}

// Server serves host connections. Requests wait until Ready is called.
type Server struct {
	cfg     Config
	ready   chan struct{}
	reaper  *reaper
	spawner *nsThread
	files   *nsThread

	mu       sync.Mutex
	conns    map[*conn]struct{}
	main     *process // the workload, once it runs
	stopping bool
}

// NewServer returns a server that accepts connections at once and keeps their requests waiting until Ready.
func NewServer() *Server {
	return &Server{ready: make(chan struct{}), conns: map[*conn]struct{}{}}
}

// Ready gives the server what it needs to handle requests.
func (s *Server) Ready(cfg Config) error {
	var err error
	if s.spawner, err = newNSThread(cfg.Container); err != nil {
		return err
	}
	if s.files, err = newNSThread(cfg.Container); err != nil {
		return err
	}
	s.cfg = cfg
	s.reaper = startReaper()
	close(s.ready)
	return nil
}

// Serve accepts control connections until the listener fails.
func (s *Server) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go s.ServeConn(c)
	}
}

// conn is one host connection.
type conn struct {
	s *Server
	w *wire.Writer

	mu      sync.Mutex
	streams map[uint32]*stream
	last    uint32
}

// ServeConn serves one control connection until it ends.
func (s *Server) ServeConn(nc net.Conn) {
	defer nc.Close()
	c := &conn{s: s, w: wire.NewWriter(nc), streams: map[uint32]*stream{}}
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		c.abandonAll()
	}()
	if err := c.w.Send(wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version}); err != nil {
		return
	}
	c.loop(wire.NewReader(nc))
}

// loop reads frames until the connection ends or the host breaks the protocol, which ends it too.
func (c *conn) loop(r *wire.Reader) error {
	f, err := r.Read()
	if err != nil {
		return err
	}
	var hello wire.Hello
	if f.Type != wire.TypeHello || wire.Decode(f, &hello) != nil || hello.Version != wire.Version {
		return fmt.Errorf("%w: no greeting of version %d", wire.ErrProtocol, wire.Version)
	}
	<-c.s.ready
	for {
		f, err := r.Read()
		if err != nil {
			return err
		}
		if err := c.dispatch(f); err != nil {
			return err
		}
	}
}

func (c *conn) dispatch(f wire.Frame) error {
	if f.Type == wire.TypeOpen {
		return c.open(f)
	}
	c.mu.Lock()
	st := c.streams[f.Stream]
	known := f.Stream != 0 && f.Stream <= c.last
	c.mu.Unlock()
	if st == nil {
		if !known {
			return fmt.Errorf("%w: frame for stream %d, which was never opened", wire.ErrProtocol, f.Stream)
		}
		return nil // it has just ended
	}
	switch f.Type {
	case wire.TypeData:
		return st.in.Put(f.Body)
	case wire.TypeEOF:
		st.in.Close(nil)
	case wire.TypeWindow:
		var win wire.Window
		if err := wire.Decode(f, &win); err != nil {
			return err
		}
		return st.outbox(f.Channel).Grant(win.Bytes)
	case wire.TypeSignal:
		var sig wire.Signal
		if err := wire.Decode(f, &sig); err != nil {
			return err
		}
		st.signal(sig.Number)
	case wire.TypeResize:
		var size wire.Resize
		if err := wire.Decode(f, &size); err != nil {
			return err
		}
		st.resize(size.Rows, size.Cols)
	case wire.TypeAbandon:
		c.remove(st)
		st.abandon()
	default:
		return fmt.Errorf("%w: a client sent a frame of type %d", wire.ErrProtocol, f.Type)
	}
	return nil
}

// stream is one request under way.
type stream struct {
	c        *conn
	id       uint32
	in       *wire.Inbox
	out, err *wire.Outbox

	mu        sync.Mutex
	proc      *process
	abandoned bool
}

func (c *conn) open(f wire.Frame) error {
	var req wire.Request
	if err := wire.Decode(f, &req); err != nil {
		return err
	}
	st := &stream{c: c, id: f.Stream}
	st.in = wire.NewInbox(func(n uint32) error { return c.w.Send(wire.TypeWindow, st.id, wire.ChannelIn, wire.Window{Bytes: n}) })
	st.out, st.err = wire.NewOutbox(c.w, st.id, wire.ChannelOut), wire.NewOutbox(c.w, st.id, wire.ChannelErr)
	c.mu.Lock()
	if f.Stream <= c.last {
		c.mu.Unlock()
		return fmt.Errorf("%w: stream %d opened after %d", wire.ErrProtocol, f.Stream, c.last)
	}
	c.last = f.Stream
	c.streams[st.id] = st
	c.mu.Unlock()
	go func() {
		result := st.handle(req)
		c.remove(st)
		c.w.Send(wire.TypeResult, st.id, 0, result) // a connection that is gone needs no result
		st.in.Discard()
	}()
	return nil
}

func (c *conn) remove(st *stream) {
	c.mu.Lock()
	delete(c.streams, st.id)
	c.mu.Unlock()
}

func (c *conn) abandonAll() {
	c.mu.Lock()
	all := c.streams
	c.streams = map[uint32]*stream{}
	c.mu.Unlock()
	for _, st := range all {
		st.abandon()
	}
}

func (st *stream) outbox(channel uint8) *wire.Outbox {
	if channel == wire.ChannelErr {
		return st.err
	}
	return st.out
}

// abandon ends the request: nobody waits for it any more.
func (st *stream) abandon() {
	st.mu.Lock()
	st.abandoned = true
	proc := st.proc
	st.mu.Unlock()
	if proc != nil {
		proc.kill()
	}
	st.in.Discard()
	st.out.Close()
	st.err.Close()
}

// handle does what a request asks and returns its result.
func (st *stream) handle(req wire.Request) wire.Result {
	s := st.c.s
	var result wire.Result
	var err error
	switch {
	case req.Exec != nil:
		result, err = st.exec(req.Exec)
	case req.Read != nil:
		err = st.readFile(req.Read)
	case req.Write != nil:
		err = st.writeFile(req.Write)
	case req.Shutdown != nil:
		err = s.shutdown(req.Shutdown.Grace)
	case req.Ping != nil:
	default:
		err = &wire.Error{Kind: wire.KindInvalid, Message: "the request is empty or of a kind this agent does not know"}
	}
	if err != nil {
		return wire.Result{Error: toWire(err)}
	}
	return result
}

// reply tells the client that its request is under way.
func (st *stream) reply(r wire.Reply) { st.c.w.Send(wire.TypeReply, st.id, 0, r) }

// toWire turns any error into one that the host understands.
func toWire(err error) *wire.Error {
	var own *wire.Error
	if errors.As(err, &own) {
		return own
	}
	return &wire.Error{Kind: kindOf(err), Message: err.Error()}
}

// announce tells every host connection that the guest goes down.
func (s *Server) announce(reason string) {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.w.Send(wire.TypeStopping, 0, 0, wire.Stopping{Reason: reason})
	}
}
