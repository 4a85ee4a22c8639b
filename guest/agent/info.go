package agent

import (
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// info describes the guest.
func (s *Server) info() *wire.Info {
	var name unix.Utsname
	unix.Uname(&name)
	var up unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &up)
	cpu := s.cpuTime()
	s.mu.Lock()
	defer s.mu.Unlock()
	return &wire.Info{
		Kernel: unix.ByteSliceToString(name.Release[:]), Uptime: time.Duration(up.Nano()), Running: s.hasMain, Execs: s.execs, CPU: cpu,
	}
}

// cpuTime returns what the container's processes have used, dead ones included (cgroup v2, "cpu.stat"); 0 without a cgroup.
func (s *Server) cpuTime() time.Duration {
	fd, err := unix.Openat(s.cfg.Cgroup, "cpu.stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, _ := unix.Pread(fd, buf, 0)
	for line := range strings.Lines(string(buf[:max(n, 0)])) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(us) * time.Microsecond
		}
	}
	return 0
}
