package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// ExecRequest says what to run in the guest, and where its streams go.
type ExecRequest struct {
	Args    []string      // the program and its arguments; the program is looked up in the guest's PATH unless it has a slash
	Env     []string      // NAME=value, over the image's environment
	Dir     string        // working directory; default: the image's
	User    string        // NAME|UID[:GROUP|GID]; default: the image's
	TTY     bool          // run it on a terminal: Stdout gets everything
	Rows    uint16        // size of the terminal; default 24 by 80
	Cols    uint16        //
	Timeout time.Duration // kill the process group after this; 0 = never. The guest keeps it, so it fires whatever the host does.
	Main    bool          // this is the workload, which gets the stop signal when the guest is shut down

	Stdin  io.Reader // nil: empty. It is read until its end or the process's exit; a blocked Read delays nothing
	Stdout io.Writer // nil: discarded. A slow Writer slows the process down
	Stderr io.Writer // nil: discarded

	// Limits are resource limits that hold from the program's first instruction on, for it and what it starts; others are as the guest has them. For
	// others than root a file with set-user-ID or capabilities is refused: limits set for a shell that executes it hold as well.
	Limits []Rlimit

	// Detach lets the program run on by itself, whatever becomes of this connection: its Process is done with at once, but for ID and PID. The guest
	// keeps the end of its output, at most 256 KiB (less with more than 16 of them), and how it ended, for Client.Attach, until somebody has got
	// that or 64 others have ended later. Stdin, Stdout and Stderr must be nil, Pipes false.
	Detach bool
	// OpenStdin, with Detach, leaves the program's stdin open for attachments to write to, until one of them ends it. Else it is empty.
	OpenStdin bool

	// MaxOutput, for Run alone, is how many bytes are collected of each of stdout and stderr; the program runs on and the rest is dropped. 0 is
	// the constant MaxOutput, and more than that ends the program and Run with ErrOutputTooLarge.
	MaxOutput int64

	Pipes bool // Process.Stdin, Stdout and Stderr are used instead of the three above, which must be nil
}

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code      int            // exit status, 0 to 255; 128 + Signal if a signal ended the process
	Signal    syscall.Signal // the signal that ended the process, 0 if it exited
	TimedOut  bool           // ExecRequest.Timeout passed and the process group was killed
	Truncated bool           // a background child still held the output when the process exited; what it wrote later is lost
	Duration  time.Duration  // from the request to the result, on the host's clock
	User      time.Duration  // CPU time in user mode
	System    time.Duration  // CPU time in the guest's kernel
	MaxRSS    int64          // most memory resident at once, in bytes
	Lost      int64          // of an attachment: bytes of output that the guest had dropped before they could be sent
}

// Process is a running program in the guest.
type Process struct {
	// With ExecRequest.Pipes, the program's streams; else nil. Stdin must be closed for the program to see its end; after the program's exit its
	// Write returns io.ErrClosedPipe. Stdout and Stderr must be read, each by one goroutine at a time, or the program stops when 256 KiB are waiting;
	// what is unread when the program exits can still be read. Closing them discards the rest.
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser

	s      *stream
	pid    int
	id     uint64
	joined bool // it is an attachment
	start  time.Time
	stop   func() bool
	copies sync.WaitGroup

	mu    sync.Mutex
	ioErr error // the first failure of ExecRequest's Stdin, Stdout or Stderr
}

// Exec starts a program. It returns once the program runs, or an *Error if the guest cannot run it. When ctx is done the whole
// process group is killed, unless it is detached, and Wait returns ctx's error without waiting for that.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (*Process, error) {
	if req.Detach && (req.Stdin != nil || req.Stdout != nil || req.Stderr != nil || req.Pipes) {
		return nil, &Error{Kind: wire.KindInvalid, Message: "a detached program has no streams here"}
	}
	p, err := c.start(ctx, wire.Request{Exec: &wire.Exec{
		Args: req.Args, Env: req.Env, Dir: req.Dir, User: req.User, TTY: req.TTY, Rows: req.Rows, Cols: req.Cols,
		Timeout: req.Timeout, Main: req.Main, Stdin: req.Stdin != nil || req.Pipes || req.Detach && req.OpenStdin,
		Detach: req.Detach, Limits: req.Limits,
	}}, req)
	if err != nil {
		return nil, err
	}
	if req.Detach {
		_, err = p.s.finish(ctx)
		p.stop()
	}
	return p, err
}

// start makes a request that has the streams of a program.
func (c *Client) start(ctx context.Context, wr wire.Request, req ExecRequest) (*Process, error) {
	p := &Process{start: time.Now()}
	s, err := c.open(ctx, wr)
	if err != nil {
		return nil, err
	}
	p.s = s
	reply, err := s.started(ctx)
	if err != nil {
		return nil, err
	}
	p.pid, p.id = reply.PID, reply.ID
	p.stop = context.AfterFunc(ctx, func() { s.abandon(ctx.Err()) })
	if req.Pipes {
		p.Stdin, p.Stdout, p.Stderr = stdinPipe{s.in}, outputPipe{s.out}, outputPipe{s.err}
		return p, nil
	}
	p.copies.Add(2)
	go p.copyOut(s.out, req.Stdout)
	go p.copyOut(s.err, req.Stderr)
	if req.Stdin != nil {
		go p.copyIn(req.Stdin) // not waited for: its Read may block for ever
	}
	return p, nil
}

func (p *Process) copyIn(r io.Reader) {
	src := &readErrors{r: r}
	io.CopyBuffer(struct{ io.Writer }{p.s.in}, src, make([]byte, wire.MaxData))
	p.s.in.CloseWrite() // does nothing after the exit
	p.note(src.err)
}

// copyOut hands a channel's data to w until the channel ends. If w fails the rest is read and dropped, so that the process can end.
func (p *Process) copyOut(from *wire.Inbox, w io.Writer) {
	defer p.copies.Done()
	if w != nil {
		failed := &writeErrors{w: w}
		from.WriteTo(failed)
		p.note(failed.err)
	}
	from.WriteTo(io.Discard)
}

// writeErrors tells failures of writing from those of reading.
type writeErrors struct {
	w   io.Writer
	err error
}

func (w *writeErrors) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.err = err
	return n, err
}

// note keeps the first error.
func (p *Process) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ioErr == nil {
		p.ioErr = err
	}
}

type stdinPipe struct{ out *wire.Outbox }

func (s stdinPipe) Write(p []byte) (int, error) { return s.out.Write(p) }
func (s stdinPipe) Close() error                { return s.out.CloseWrite() }

type outputPipe struct{ in *wire.Inbox }

func (o outputPipe) Read(p []byte) (int, error) { return o.in.Read(p) }

// Close keeps the program from waiting for a reader that is gone.
func (o outputPipe) Close() error {
	go o.in.WriteTo(io.Discard)
	return nil
}

// PID returns the process's ID in the workload's PID namespace, 0 if the guest did not tell.
func (p *Process) PID() int { return p.pid }

// Wait blocks until the process has ended and all its output is written to Stdout and Stderr. The error is about running it, about the
// connection, ctx, or ExecRequest's streams, or ErrDetached; a process that fails on its own account is told by the ExitStatus alone.
func (p *Process) Wait() (ExitStatus, error) {
	<-p.s.ended
	p.copies.Wait()
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	r, err := p.s.result, p.s.failure
	if err != nil {
		return ExitStatus{}, err
	}
	if r.Detached {
		return ExitStatus{}, ErrDetached
	}
	st := ExitStatus{
		Code: r.Code, Signal: syscall.Signal(r.Signal), TimedOut: r.TimedOut, Truncated: r.Truncated,
		Duration: p.s.when.Sub(p.start), User: r.User, System: r.System, MaxRSS: r.MaxRSS, Lost: max(r.Lost, 0),
	}
	if r.Signal != 0 {
		st.Code = 128 + r.Signal
	}
	return st, p.ioErr
}

// Signal sends a signal to the process's group. After the process has ended it does nothing; after the end of the connection it returns
// an error that matches ErrClosed, and ErrDetached once it is detached.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.send(wire.TypeSignal, wire.Signal{Number: int(sig)})
}

// Kill ends the whole session of the process, its background children included, at once; Wait tells how it ended.
func (p *Process) Kill() error { return p.Signal(syscall.SIGKILL) }

// Resize changes the size of the process's terminal. Without a terminal it does nothing.
func (p *Process) Resize(rows, cols uint16) error {
	return p.send(wire.TypeResize, wire.Resize{Rows: rows, Cols: cols})
}

func (p *Process) send(t wire.Type, body any) error {
	select {
	case <-p.s.ended:
		return p.lost()
	default:
	}
	err := p.s.c.w.Send(p.s.ended, t, p.s.id, 0, body)
	if errors.Is(err, wire.ErrCanceled) {
		return p.lost()
	}
	return err
}

// lost returns the connection's error if that is why the process is known to have ended.
func (p *Process) lost() error {
	if errors.Is(p.s.failure, ErrClosed) {
		return p.s.failure
	}
	if p.s.result.Detached {
		return ErrDetached
	}
	return nil
}
