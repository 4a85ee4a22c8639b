package agent

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

func (s *Server) setMain(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.main = p
}

// shutdown ends the workload and then the guest. Only the first call does; it returns before the guest goes down.
func (s *Server) shutdown(grace time.Duration) error {
	s.mu.Lock()
	main, again := s.main, s.stopping
	s.stopping = true
	s.mu.Unlock()
	if again {
		return &wire.Error{Kind: wire.KindUnavailable, Message: "the guest is shutting down already"}
	}
	if main != nil {
		s.stopMain(main, grace)
	}
	s.goDown(wire.StopPowerOff)
	return nil
}

// stopMain sends the workload its stop signal and waits up to grace for its end.
func (s *Server) stopMain(main *process, grace time.Duration) {
	gone := s.reaper.notify(main.pid)
	s.reaper.signal(main.pid, parseSignal(s.cfg.Defaults.StopSignal))
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
		main.kill()
	}
}

// WorkloadEnded takes the guest down because PID 1 of the container ended: the workload powered its container off or rebooted it.
func (s *Server) WorkloadEnded(status syscall.WaitStatus) {
	s.mu.Lock()
	again := s.stopping
	s.stopping = true
	s.mu.Unlock()
	if again {
		return
	}
	reason := wire.StopPowerOff
	if status.Signaled() && status.Signal() == syscall.SIGHUP { // reboot(2): SIGHUP is a restart, SIGINT a power-off
		reason = wire.StopReboot
	}
	s.goDown(reason)
}

// goDown announces the end and powers off, after the result of the request that asked for it is on its way.
func (s *Server) goDown(reason string) {
	s.announce(reason)
	go s.cfg.PowerOff(reason)
}

// parseSignal reads a signal as images give it: SIGTERM, TERM or 15. Anything else is SIGTERM.
func parseSignal(name string) syscall.Signal {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n)
	}
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig
	}
	return syscall.SIGTERM
}

// Adopt waits for a child of this process that was not started through the server, and returns how it ended.
func (s *Server) Adopt(pid int) syscall.WaitStatus {
	_, exited, err := s.reaper.start(func() (int, error) { return pid, nil })
	if err != nil {
		return 0
	}
	return (<-exited).status
}
