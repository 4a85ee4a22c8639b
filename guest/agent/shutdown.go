package agent

import (
	"sync"
	"syscall"
	"time"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// claimMain reserves the place of the workload, unless there is one.
func (s *Server) claimMain() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	claimed := !s.hasMain
	s.hasMain = true
	return claimed
}

func (s *Server) setMain(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.main = p
}

func (s *Server) releaseMain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.main, s.hasMain = nil, false
}

func (s *Server) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// beginStop reports whether this is the first to take the guest down.
func (s *Server) beginStop() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.stopping
	s.stopping = true
	return first
}

// shutdown ends the workload; the guest goes down once the result is sent. Only the first call does anything.
func (s *Server) shutdown(grace time.Duration) error {
	s.mu.Lock()
	main := s.main
	s.mu.Unlock()
	if !s.beginStop() {
		return &wire.Error{Kind: wire.KindUnavailable, Message: "the guest is shutting down already"}
	}
	if main != nil {
		s.stopMain(main, grace)
	}
	return nil
}

// stopMain sends the workload its stop signal, waits up to grace for its end, and then for its result to be sent.
func (s *Server) stopMain(main *process, grace time.Duration) {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	main.signal(parseSignal(s.cfg.Defaults.StopSignal))
	select {
	case <-main.finished:
	case <-timer.C:
		main.kill()
	}
}

// followContainer takes the guest down when PID 1 of the container ends: something in there powered it off or rebooted it.
func (s *Server) followContainer() {
	status := s.init.wait().status // which comes after the end of all others in its PID namespace (pid_namespaces(7))
	close(s.emptied)
	if !s.beginStop() {
		return
	}
	reason := wire.StopPowerOff
	if status.Signaled() && status.Signal() == syscall.SIGHUP { // reboot(2): SIGHUP is a restart, SIGINT a power-off
		reason = wire.StopReboot
	}
	s.goDown(reason)
}

// Bounds on the last steps, for hosts that do not read.
const (
	resultsTime  = 500 * time.Millisecond
	announceTime = 500 * time.Millisecond
)

// goDown ends everything in the container, delivers the results of what ran, tells every host connection that the guest goes down and
// powers off when the hosts have heard it.
func (s *Server) goDown(reason string) {
	if s.init != nil {
		s.init.kill() // and with PID 1 all of its namespace
	} else {
		s.killAll()
	}
	close(s.down)
	results := make(chan struct{})
	go func() { s.streams.Wait(); close(results) }()
	select {
	case <-results:
	case <-time.After(resultsTime):
	}
	s.unmountAll()
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	late := make(chan struct{})
	timer := time.AfterFunc(announceTime, func() { close(late) })
	defer timer.Stop()
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { c.announce(reason, late) })
	}
	wg.Wait()
	s.cfg.PowerOff()
}

// announce tells the host and waits until it has taken note, which it shows by closing the connection.
func (c *conn) announce(reason string, late <-chan struct{}) {
	if c.w.Send(late, wire.TypeStopping, 0, 0, wire.Stopping{Reason: reason}) != nil || !c.w.Flush(late) {
		return
	}
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	select {
	case <-c.ended:
	case <-late:
	}
}

// killAll kills every exec.
func (s *Server) killAll() {
	for _, p := range s.programs.all() {
		p.kill()
	}
}

// parseSignal reads a signal as images give it: SIGTERM, TERM, 15 or SIGRTMIN+3. Anything else is SIGTERM.
func parseSignal(name string) syscall.Signal {
	if n, ok := wire.ParseSignal(name); ok {
		return syscall.Signal(n)
	}
	return syscall.SIGTERM
}
