package agent

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// process is a running exec.
type process struct {
	*child
	*stdio
	about    wire.Program  // what does not change once it runs
	stream   *stream       // that runs it, nil for one that was started detached, and once it has ended; guarded by programs.mu
	finished chan struct{} // closed when its result is queued for the client
	timer    *time.Timer   // kills it, nil without a timeout
	timedOut atomic.Bool
}

// limit kills the process after a time, whatever the client does meanwhile; 0 is never.
func (p *process) limit(timeout time.Duration) {
	if timeout > 0 {
		p.timer = time.AfterFunc(timeout, func() { p.signalAfter(syscall.SIGKILL, func() { p.timedOut.Store(true) }) })
	}
}

func (st *stream) signal(number int) {
	if p := st.running(); p != nil && number > 0 && number <= wire.MaxSignal {
		p.signal(syscall.Signal(number))
	}
}

func (st *stream) resize(rows, cols uint16) {
	if p := st.running(); p != nil {
		p.resize(rows, cols)
	}
}

// running returns the program that the stream runs or is attached to, nil if there is none.
func (st *stream) running() *process {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.proc == nil {
		return st.followed
	}
	return st.proc
}

// exec runs a program to its end, or a detached one until it runs.
func (st *stream) exec(req *wire.Exec) (wire.Result, error) {
	s := st.c.s
	p := &process{finished: st.finished, stream: st}
	if req.Detach {
		p.finished, p.stream = make(chan struct{}), nil
		if !s.programs.claim() {
			return wire.Result{}, errTooManyDetached
		}
		defer s.programs.unclaim()
	}
	if req.Main && !s.claimMain() {
		return wire.Result{}, &wire.Error{Kind: wire.KindInvalid, Message: "the workload runs already"}
	}
	if err := s.start(p, req, st.gone); err != nil {
		if req.Main {
			s.releaseMain()
		}
		return wire.Result{}, err
	}
	p.limit(req.Timeout)
	if req.Main {
		s.setMain(p)
	}
	p.about.PID = pidIn(s.pidns, p.pid) // while it is sure to be there
	s.programs.add(p)
	st.mu.Lock()
	if !req.Detach {
		st.proc = p
	}
	kill, keep := st.abandoned && !st.detached, st.detached
	st.mu.Unlock()
	if kill {
		p.kill() // of one that is to be detached nobody would know
	}
	if req.Detach {
		s.detach(p)
		st.reply(p.reply())
		return wire.Result{Detached: true}, nil
	}
	if keep {
		s.programs.keep(p)
	}
	st.reply(p.reply())
	if p.stdin != nil {
		go p.feed(st.in)
	}
	result := p.run(st.writer, st.in.Discard)
	s.ended(p, result)
	return result, nil
}

// reply is the answer to an exec that runs.
func (p *process) reply() wire.Reply { return wire.Reply{PID: p.about.PID, ID: p.about.ID} }

// writer returns where an output goes: to the client, or into a record once the stream is detached.
func (st *stream) writer(channel uint8) io.Writer { return streamWriter{st, channel} }

type streamWriter struct {
	st      *stream
	channel uint8
}

func (w streamWriter) Write(b []byte) (int, error) {
	n, err := w.st.send(w.channel, b)
	if err == nil {
		return n, nil
	}
	<-w.st.gone // in a copy of the guest the connection fails before the thaw decides what becomes of the program
	if w.st.isDetached() {
		w.st.c.s.programs.keep(w.st.running()).writer(w.channel).Write(b[n:])
		return len(b), nil
	}
	return n, err
}

// run copies the outputs until the process has ended, and returns its result. exited is called in between.
func (p *process) run(writer func(channel uint8) io.Writer, exited func()) wire.Result {
	defer p.close()
	if p.timer != nil {
		defer p.timer.Stop()
	}
	var copying sync.WaitGroup
	for _, o := range p.outputs {
		copying.Go(func() { o.copy(writer(o.channel)) })
	}
	e := p.wait()
	exited()
	for _, o := range p.outputs {
		o.drain()
	}
	copying.Wait()
	result := wire.Result{
		Truncated: p.truncated(),
		User:      time.Duration(e.usage.Utime.Nano()),
		System:    time.Duration(e.usage.Stime.Nano()),
		MaxRSS:    e.usage.Maxrss << 10,
	}
	if e.status.Signaled() {
		result.Signal = int(e.status.Signal())
		result.TimedOut = p.timedOut.Load()
	} else {
		result.Code = e.status.ExitStatus()
	}
	return result
}

// start looks everything up and forks, on a thread in the container. During a freeze it waits, without a thread: thaw needs one.
func (s *Server) start(p *process, req *wire.Exec, gone <-chan struct{}) error {
	for {
		if !s.freezer.awaitThaw(gone) {
			return errCanceled
		}
		if frozen, err := s.tryStart(p, req); !frozen {
			return err
		}
	}
}

// tryStart reports whether it did not fork because of a freeze.
func (s *Server) tryStart(p *process, req *wire.Exec) (frozen bool, err error) {
	s.threads.do(func() {
		var cmd *command
		if cmd, err = s.prepare(req); err != nil {
			return
		}
		p.about = wire.Program{UID: cmd.cred.Uid, Main: req.Main, TTY: req.TTY, Started: time.Now().UnixNano()}
		p.about.Args, p.about.ArgsCut = listedArgs(req.Args)
		if p.stdio, err = newStdio(req, cmd.cred); err != nil {
			return
		}
		if frozen = !s.freezer.beginFork(); !frozen {
			p.child, err = s.fork(cmd, p.stdio)
			s.freezer.endFork()
		}
		if frozen || err != nil {
			p.close()
		}
		p.closeEnds()
	})
	return frozen, err
}

// fork starts the program.
func (s *Server) fork(cmd *command, std *stdio) (*child, error) {
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: cmd.dir, Env: cmd.env, Files: []uintptr{uintptr(std.ends[0]), uintptr(std.ends[1]), uintptr(std.ends[2])},
		Sys: &syscall.SysProcAttr{
			Credential: cmd.cred, Setsid: true, Setctty: std.term != nil, PidFD: &pidfd,
			UseCgroupFD: s.cfg.Cgroup >= 0, CgroupFD: s.cfg.Cgroup,
		},
	}
	fork := syscall.ForkExec
	if len(cmd.limits) > 0 {
		fork = cmd.limits.forkExec
	}
	pid, err := fork(cmd.path, cmd.args, attr)
	var own *wire.Error
	if errors.As(err, &own) {
		return nil, own
	}
	if err != nil {
		return nil, &wire.Error{Kind: s.execKind(err), Message: fmt.Sprintf("%s: %v", cmd.args[0], err)}
	}
	return newChild(pid, pidfd, &s.sessions), nil
}

func (s *Server) execKind(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT): // of the interpreter in #! or of the dynamic loader
		return wire.KindCommandNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EPERM):
		return wire.KindNotExecutable
	case errors.Is(err, unix.E2BIG):
		return wire.KindInvalid
	case errors.Is(err, unix.ENOMEM) && s.isStopping(): // no forks into a PID namespace that is ending (clone(2))
		return wire.KindUnavailable
	}
	return kindOf(err)
}

func kindOf(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return wire.KindNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return wire.KindPermission
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return wire.KindNoSpace
	case errors.Is(err, unix.ECONNREFUSED):
		return wire.KindRefused
	case errors.Is(err, unix.EADDRINUSE):
		return wire.KindInUse
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP):
		return wire.KindInvalid
	}
	return wire.KindIO
}
