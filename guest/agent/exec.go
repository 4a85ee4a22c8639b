package agent

import (
	"errors"
	"fmt"
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
	finished chan struct{} // closed when its result is queued for the client
}

func (st *stream) signal(number int) {
	if p := st.running(); p != nil && number > 0 && number <= 64 {
		p.signal(syscall.Signal(number))
	}
}

func (st *stream) resize(rows, cols uint16) {
	if p := st.running(); p != nil {
		p.resize(rows, cols)
	}
}

func (st *stream) running() *process {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.proc
}

// exec runs a program to its end.
func (st *stream) exec(req *wire.Exec) (wire.Result, error) {
	s := st.c.s
	p := &process{finished: st.finished}
	if req.Main {
		if !s.claimMain() {
			return wire.Result{}, &wire.Error{Kind: wire.KindInvalid, Message: "the workload runs already"}
		}
		defer s.releaseMain()
	}
	if err := s.start(p, req); err != nil {
		return wire.Result{}, err
	}
	defer p.close()
	if req.Main {
		s.setMain(p)
	}
	var timedOut atomic.Bool
	if req.Timeout > 0 {
		defer time.AfterFunc(req.Timeout, func() { timedOut.Store(p.kill()) }).Stop()
	}
	st.mu.Lock()
	st.proc = p
	abandoned := st.abandoned
	st.mu.Unlock()
	if abandoned {
		p.kill()
	}
	st.reply(wire.Reply{PID: pidIn(s.pidns, p.pid)})

	var copying sync.WaitGroup
	for _, o := range p.outputs {
		copying.Go(func() { o.copy(st.outbox(o.channel)) })
	}
	if p.stdin != nil {
		go p.feed(st.in)
	}
	e := p.wait()
	st.in.Discard()
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
		result.TimedOut = timedOut.Load()
	} else {
		result.Code = e.status.ExitStatus()
	}
	return result, nil
}

// start looks everything up and forks, on a thread in the container.
func (s *Server) start(p *process, req *wire.Exec) (err error) {
	s.threads.do(func() {
		var cmd *command
		if cmd, err = s.prepare(req); err != nil {
			return
		}
		if p.stdio, err = newStdio(req, cmd.cred); err != nil {
			return
		}
		if p.child, err = s.fork(cmd, p.stdio); err != nil {
			p.close()
		}
		p.closeEnds()
	})
	return err
}

// fork starts the program.
func (s *Server) fork(cmd *command, io *stdio) (*child, error) {
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: cmd.dir, Env: cmd.env, Files: []uintptr{uintptr(io.ends[0]), uintptr(io.ends[1]), uintptr(io.ends[2])},
		Sys: &syscall.SysProcAttr{
			Credential: cmd.cred, Setsid: true, Setctty: io.term != nil, PidFD: &pidfd,
			UseCgroupFD: s.cfg.Cgroup >= 0, CgroupFD: s.cfg.Cgroup,
		},
	}
	pid, err := syscall.ForkExec(cmd.path, cmd.args, attr)
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
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP):
		return wire.KindInvalid
	}
	return wire.KindIO
}
