// Package agent is the server in the guest: it runs programs in the workload's namespaces, works on files there (reads and writes them, lists, walks,
// changes and watches them, packs and unpacks trees), connects to its ports and takes the guest down, for any number of host connections (package wire
// is the protocol).
package agent

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

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
	// PowerOff takes the guest down, after everything in the container has ended and the host was told. It does not return in a guest.
	PowerOff func()
	// Settle, if set, brings the guest's disks to rest before a freeze is answered; lean says to give up caches too.
	Settle func(lean bool)
	// Adopt, if set, gives the kernel a new identity: entropy and clock.
	Adopt func(wire.Identity) error
	// DialHost connects to a vsock port of the host, for Reverse requests.
	DialHost func(port uint32) (net.Conn, error)
	// PublicDir is the container's directory in which the workload finds its generation; empty for none.
	PublicDir string
}

// Server serves host connections. Requests wait until Ready is called.
type Server struct {
	cfg     Config
	ready   chan struct{}
	threads *nsThreads
	pidns   int           // the container's PID namespace, -1 for the agent's own
	init    *child        // PID 1 of the container, nil without one
	emptied chan struct{} // closed when nothing of the container runs any more
	public  int           // Config.PublicDir, -1 without one

	sessions sessionKiller
	freezer  freezer
	mounted  mounted
	programs programs

	mu       sync.Mutex
	conns    map[*conn]struct{}
	main     *process       // the workload, once it runs
	hasMain  bool           // it runs or is being started
	streams  sync.WaitGroup // requests under way; none is added once stopping
	execs    int
	stopping bool
	down     chan struct{} // closed when everything in the container has been killed
}

// NewServer returns a server that accepts connections at once and keeps their requests waiting until Ready.
func NewServer() *Server {
	return &Server{
		ready: make(chan struct{}), down: make(chan struct{}), emptied: make(chan struct{}), pidns: -1, public: -1, conns: map[*conn]struct{}{},
		programs: newPrograms(),
	}
}

// Ready gives the server what it needs to handle requests. From then on the end of the container's PID 1 takes the guest down.
func (s *Server) Ready(cfg Config) error {
	var err error
	if s.threads, err = newNSThreads(cfg.Container); err != nil {
		return err
	}
	if cfg.PID != 0 {
		if s.pidns, err = cfg.open("pid"); err != nil {
			return err
		}
		pidfd, err := unix.PidfdOpen(cfg.PID, 0)
		if err != nil {
			return fmt.Errorf("follow the container's PID 1: %w", err)
		}
		s.init = newChild(cfg.PID, pidfd, &s.sessions)
	}
	s.cfg = cfg
	if err := s.openPublic(); err != nil {
		return err
	}
	if s.init != nil {
		go s.followContainer()
	}
	close(s.ready)
	return nil
}

// Serve accepts control connections until the listener is closed.
func (s *Server) Serve(l net.Listener) error { return accept(l, s.ServeConn) }

// accept hands every connection to serve, in a goroutine of its own. It outlives a shortage of memory or file descriptors.
func accept(l net.Listener, serve func(net.Conn)) error {
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			go serve(c)
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS),
			errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EINTR):
			time.Sleep(10 * time.Millisecond)
		default:
			return err
		}
	}
}

// conn is one host connection.
type conn struct {
	s     *Server
	nc    net.Conn
	w     *wire.Writer
	ended chan struct{}

	mu       sync.Mutex
	streams  map[uint32]*stream
	last     uint32
	detached bool // its programs run on when it ends
}

// ServeConn serves one control connection until it ends.
func (s *Server) ServeConn(nc net.Conn) {
	defer nc.Close()
	c := &conn{s: s, nc: nc, ended: make(chan struct{}), streams: map[uint32]*stream{}}
	c.w = wire.NewWriter(nc, func(error) { nc.Close() })
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		close(c.ended)
		nc.Close() // a freeze may last
		s.outlast(c)
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		c.abandonAll()
	}()
	if err := c.w.Send(nil, wire.TypeHello, 0, 0, wire.Hello{Version: wire.Version}); err != nil {
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
	case wire.TypeData, wire.TypeEOF:
		if f.Channel != wire.ChannelIn {
			return fmt.Errorf("%w: data for the wrong end of stream %d", wire.ErrProtocol, f.Stream)
		}
		if f.Type == wire.TypeData {
			return st.in.Put(f)
		}
		st.in.Close(nil)
	case wire.TypeWindow:
		var win wire.Window
		if err := wire.Decode(f, &win); err != nil {
			return err
		}
		if f.Channel == wire.ChannelIn {
			return fmt.Errorf("%w: a window for the wrong end of stream %d", wire.ErrProtocol, f.Stream)
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
	gone     chan struct{} // closed when nobody waits for the result any more
	finished chan struct{} // closed when the result is queued
	sending  [2]sync.Mutex // held while a program's output is sent, by channel

	mu        sync.Mutex
	proc      *process
	followed  *process // what this stream is attached to
	collected *record  // whose result this stream ends with, if that is to be given out once
	abandoned bool
	detached  bool // abandoned, but what it runs runs on
	settled   bool // the result is, or is about to be, queued
}

func (c *conn) open(f wire.Frame) error {
	var req wire.Request
	if err := wire.Decode(f, &req); err != nil {
		return err
	}
	st := &stream{c: c, id: f.Stream, gone: make(chan struct{}), finished: make(chan struct{})}
	st.in = wire.NewInbox(func(n uint32) { c.w.Send(st.gone, wire.TypeWindow, st.id, wire.ChannelIn, wire.Window{Bytes: n}) })
	st.out, st.err = wire.NewOutbox(c.w, st.id, wire.ChannelOut), wire.NewOutbox(c.w, st.id, wire.ChannelErr)
	c.mu.Lock()
	if f.Stream <= c.last {
		c.mu.Unlock()
		return fmt.Errorf("%w: stream %d opened after %d", wire.ErrProtocol, f.Stream, c.last)
	}
	c.last = f.Stream
	c.streams[st.id] = st
	c.mu.Unlock()
	go st.serve(req)
	return nil
}

// serve handles a request and sends its result.
func (st *stream) serve(req wire.Request) {
	s, c := st.c.s, st.c
	accepted := s.enter(req.Exec != nil)
	result := wire.Result{Error: &wire.Error{Kind: wire.KindUnavailable, Message: "the guest is shutting down"}}
	if accepted {
		result = st.handle(req)
	}
	c.remove(st)
	if st.settle() && c.w.Send(st.gone, wire.TypeResult, st.id, 0, result) == nil { // a connection that is gone needs no result
		s.programs.collect(st.collected)
	}
	close(st.finished)
	st.in.Discard()
	if !accepted {
		return
	}
	s.leave(req.Exec != nil)
	if req.Shutdown != nil && result.Error == nil {
		s.goDown(wire.StopPowerOff)
	}
}

// enter counts a request in, unless the guest is going down.
func (s *Server) enter(exec bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.streams.Add(1)
	if exec {
		s.execs++
	}
	return true
}

func (s *Server) leave(exec bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams.Done()
	if exec {
		s.execs--
	}
}

func (c *conn) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
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
	detached := c.isDetached()
	for _, st := range all {
		if detached {
			st.detach()
		} else {
			st.abandon()
		}
	}
}

func (c *conn) isDetached() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.detached
}

// detach ends the request but not what it runs, whose output is kept from now on.
func (st *stream) detach() {
	st.mu.Lock()
	st.detached = true
	p := st.proc
	st.mu.Unlock()
	if p != nil {
		st.c.s.programs.keep(p)
	}
	st.abandon()
}

// settle reports whether this is the first to end the stream with a result.
func (st *stream) settle() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	first := !st.settled
	st.settled = true
	return first
}

func (st *stream) isDetached() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.detached
}

func (st *stream) outbox(channel uint8) *wire.Outbox {
	if channel == wire.ChannelErr {
		return st.err
	}
	return st.out
}

// send sends output of the program that the stream runs.
func (st *stream) send(channel uint8, b []byte) (int, error) {
	sending := &st.sending[channel-wire.ChannelOut]
	sending.Lock()
	defer sending.Unlock()
	return st.outbox(channel).Write(b)
}

// abandon ends the request: nobody waits for it any more.
func (st *stream) abandon() {
	st.mu.Lock()
	again := st.abandoned
	st.abandoned = true
	proc := st.proc
	if st.detached {
		proc = nil
	}
	st.mu.Unlock()
	if again {
		return
	}
	close(st.gone)
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
	case req.Files != nil:
		err = st.files(req.Files)
	case req.Shutdown != nil:
		err = s.shutdown(req.Shutdown.Grace)
	case req.Follow != nil:
		result, err = st.followMain()
	case req.Attach != nil:
		result, err = st.attach(req.Attach)
	case req.Detach != nil:
		err = s.detachRunning(req.Detach.ID)
	case req.List != nil:
		result, err = st.list()
	case req.Freeze != nil:
		err = s.freeze(st.c, req.Freeze)
	case req.Thaw != nil:
		err = s.thaw(st.c, req.Thaw)
	case req.Mount != nil:
		err = s.setUp(req.Mount)
	case req.Ports != nil:
		err = st.ports()
	case req.Reverse != nil:
		err = st.reverse(req.Reverse)
	case req.Info != nil:
		st.reply(wire.Reply{Info: s.info()})
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
func (st *stream) reply(r wire.Reply) { st.c.w.Send(st.gone, wire.TypeReply, st.id, 0, r) }

// maxMessage is how much of an error's text is sent; a path or a program's name may be as long as the host likes.
const maxMessage = 1 << 10

// toWire turns any error into one that the host understands.
func toWire(err error) *wire.Error {
	e := &wire.Error{Kind: kindOf(err), Message: err.Error()}
	var own *wire.Error
	if errors.As(err, &own) {
		e.Kind = own.Kind
	}
	if len(e.Message) > maxMessage {
		e.Message = e.Message[:maxMessage] + "…"
	}
	return e
}
