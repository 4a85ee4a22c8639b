package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// limited makes an exec of a shell script with resource limits.
func limited(script string, limits ...agent.Rlimit) agent.ExecRequest {
	req := sh(script)
	req.Limits = limits
	return req
}

// children returns how many processes this one has started and not reaped, the container's PID 1 among them.
func children(t testing.TB) int {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	n := 0
	for _, name := range names {
		stat, _ := os.ReadFile(name)
		var state string
		var ppid int
		if i := strings.LastIndexByte(string(stat), ')'); i >= 0 {
			fmt.Sscan(string(stat[i+1:]), &state, &ppid)
		}
		if ppid == os.Getpid() {
			n++
		}
	}
	return n
}

// mayLimitOthers reports whether this process may limit those of other users: CAP_SYS_RESOURCE, which a guest's agent has.
func mayLimitOthers(t testing.TB) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	require.NoError(t, unix.Capget(&hdr, &caps[0]))
	return caps[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// alone waits until the guest's PID 1 is the only child: those of other tests end when they do, but not at once.
func alone(t testing.TB) {
	t.Helper()
	eventually(t, func() bool { return children(t) == 1 }, "nothing but the container may be left")
}

func TestLimitsHoldFromTheStart(t *testing.T) {
	c := newGuest(t).client(t)
	all := map[string]string{
		"as": "Max address space", "core": "Max core file size", "cpu": "Max cpu time", "data": "Max data size", "fsize": "Max file size",
		"locks": "Max file locks", "memlock": "Max locked memory", "msgqueue": "Max msgqueue size", "nice": "Max nice priority",
		"nofile": "Max open files", "nproc": "Max processes", "rss": "Max resident set", "rtprio": "Max realtime priority",
		"rttime": "Max realtime timeout", "sigpending": "Max pending signals", "stack": "Max stack size",
	}
	require.Len(t, all, len(resources))
	for name, label := range all {
		var own unix.Rlimit
		require.NoError(t, unix.Getrlimit(resources[name], &own))
		hard := min(own.Max, 1<<31)
		for _, user := range []string{"root", "app"} {
			if user == "app" && !mayLimitOthers(t) {
				continue
			}
			req := limited("cat /proc/self/limits", agent.Rlimit{Name: name, Soft: hard / 2, Hard: hard})
			req.User = user
			out, err := c.Run(testContext(t), req)
			require.NoError(t, err, name)
			require.Regexp(t, fmt.Sprintf(`(?m)^%s +%d +%d\b`, label, hard/2, hard), string(out.Stdout))
		}
	}
	out, err := c.Run(testContext(t), limited("ulimit -n; ulimit -c; ulimit -Hc; ulimit -t", agent.Rlimit{Name: "nofile", Soft: 100, Hard: 200},
		agent.Rlimit{Name: "core"}, agent.Rlimit{Name: "cpu", Soft: agent.Unlimited, Hard: agent.Unlimited}))
	require.NoError(t, err)
	require.Equal(t, "100\n0\n0\nunlimited\n", string(out.Stdout))
	parsed, err := parseLimits([]wire.Rlimit{{Name: "nofile", Soft: 1 << 21, Hard: agent.Unlimited}})
	require.NoError(t, err)
	require.Equal(t, unix.Rlimit{Cur: maxFiles, Max: maxFiles}, parsed[0].value, "the kernel allows no more")

	out, err = c.Run(testContext(t), limited("exec dd if=/dev/zero of=/tmp/big bs=1000 count=10", agent.Rlimit{Name: "fsize", Soft: 2000, Hard: 2000}))
	require.NoError(t, err)
	require.Equal(t, syscall.SIGXFSZ, out.Signal)
}

// But for its limits, such a program is like any other.
func TestAProgramWithLimitsIsNotTraced(t *testing.T) {
	c := newGuest(t).client(t)
	const look = "grep -E '^(TracerPid|Sig[A-P]|ShdPnd|Uid|Cap)' /proc/self/status"
	plain := run(t, c, look)
	require.Contains(t, string(plain.Stdout), "TracerPid:\t0\n")
	require.Contains(t, string(plain.Stdout), "SigBlk:\t0000000000000000\n")
	out, err := c.Run(testContext(t), limited(look, agent.Rlimit{Name: "nofile", Soft: 50, Hard: 50}))
	require.NoError(t, err)
	require.Equal(t, string(plain.Stdout), string(out.Stdout))

	out, err = c.Run(testContext(t), limited("kill -TRAP $$", agent.Rlimit{Name: "nofile", Soft: 50, Hard: 50}))
	require.NoError(t, err)
	require.Equal(t, syscall.SIGTRAP, out.Signal)
	p, err := c.Exec(testContext(t), limited("sleep 1000", agent.Rlimit{Name: "nofile", Soft: 50, Hard: 50}))
	require.NoError(t, err)
	require.NoError(t, p.Signal(syscall.SIGTERM))
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGTERM, st.Signal)
}

func TestLimitsThatMakeNoSense(t *testing.T) {
	c := newGuest(t).client(t)
	alone(t)
	many := make([]agent.Rlimit, len(resources)+1)
	for i := range many {
		many[i] = agent.Rlimit{Name: fmt.Sprint(i)}
	}
	for name, test := range map[string]struct {
		limits []agent.Rlimit
		kind   string
		says   string
	}{
		"unknown":         {[]agent.Rlimit{{Name: "RLIMIT_NOFILE"}}, wire.KindInvalid, `no resource "RLIMIT_NOFILE"`},
		"without name":    {[]agent.Rlimit{{}}, wire.KindInvalid, `no resource ""`},
		"soft above hard": {[]agent.Rlimit{{Name: "cpu", Soft: 2, Hard: 1}}, wire.KindInvalid, "the soft limit 2 of cpu is above the hard limit 1"},
		"unlimited soft":  {[]agent.Rlimit{{Name: "nofile", Soft: agent.Unlimited, Hard: 1}}, wire.KindInvalid, "above the hard limit 1"},
		"twice":           {[]agent.Rlimit{{Name: "cpu", Hard: 1}, {Name: "cpu", Hard: 2}}, wire.KindInvalid, "cpu is limited twice"},
		"too many":        {many, wire.KindInvalid, "17 limits"},
		"refused":         {[]agent.Rlimit{{Name: "nofile", Soft: 1, Hard: 1 << 40}}, wire.KindPermission, "limit nofile to 1:1099511627776"},
	} {
		_, err := c.Run(testContext(t), limited("sleep 6662", test.limits...))
		var e *agent.Error
		require.ErrorAs(t, err, &e, name)
		require.Equal(t, test.kind, e.Kind, name)
		require.Contains(t, e.Message, test.says, name)
	}
	require.Zero(t, processes(t, c, "sleep 6662"))
	alone(t)
}

func TestProgramsWithLimitsThatCannotRun(t *testing.T) {
	c := newGuest(t).client(t)
	alone(t)
	for program, kind := range map[string]string{
		"nope": wire.KindCommandNotFound, "nointerpreter": wire.KindCommandNotFound, "notexec": wire.KindNotExecutable, "empty": wire.KindNotExecutable,
	} {
		if program == "empty" {
			run(t, c, "touch /bin/empty; chmod 755 /bin/empty")
		}
		_, err := c.Run(testContext(t), agent.ExecRequest{Args: []string{program}, Limits: []agent.Rlimit{{Name: "core"}}})
		var e *agent.Error
		require.ErrorAs(t, err, &e, program)
		require.Equal(t, kind, e.Kind, program)
	}
	alone(t)
}

// setUID is an ELF executable for amd64 that exits with its effective user ID.
func setUID() []byte {
	code := []byte{
		0xb8, 107, 0, 0, 0, 0x0f, 0x05, // mov eax, geteuid; syscall
		0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05, // mov edi, eax; mov eax, exit; syscall
	}
	const base, headers = 0x400000, 64 + 56
	le := binary.LittleEndian
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint16(b, 2)  // executable
	b = le.AppendUint16(b, 62) // amd64
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+headers) // entry
	b = le.AppendUint64(b, 64)           // program headers
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // load
	b = le.AppendUint32(b, 5) // read, execute
	for _, v := range []uint64{0, base, base, headers + uint64(len(code)), headers + uint64(len(code)), 4096} {
		b = le.AppendUint64(b, v)
	}
	return append(b, code...)
}

// Who is root gets what a file's set-user-ID says although it is traced; others would not, silently.
func TestSetUserIDProgramsWithLimits(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the program is for amd64")
	}
	g := newGuest(t)
	c := g.client(t)
	path := filepath.Join(g.root, "bin/euid")
	require.NoError(t, os.WriteFile(path, setUID(), 0o755))
	require.NoError(t, os.Chown(path, 1000, 1000))
	for mode, want := range map[os.FileMode]int{0o755: 0, 0o755 | os.ModeSetuid: 1000 & 255} {
		require.NoError(t, os.Chmod(path, mode))
		ended := make(chan exit, 1)
		go func() {
			defer close(ended)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread() // else the thread would end, and with it what it has started: the container
			pidfd := -1
			attr := &syscall.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &pidfd, Setsid: true}}
			pid, err := limits{}.forkExec(path, []string{"euid"}, attr)
			if err != nil {
				t.Error(err)
				return
			}
			ended <- newChild(pid, pidfd, &sessionKiller{}).wait()
		}()
		e := <-ended
		require.True(t, e.status.Exited())
		require.Equal(t, want, e.status.ExitStatus(), mode)
	}
	for _, mode := range []os.FileMode{os.ModeSetuid, os.ModeSetgid} {
		require.NoError(t, os.Chown(path, 0, 0))
		require.NoError(t, os.Chmod(path, 0o755|mode))
		_, err := c.Run(testContext(t), agent.ExecRequest{Args: []string{"euid"}, User: "app", Limits: []agent.Rlimit{{Name: "core"}}})
		invalid(t, err, "set-user-ID")
		out, err := c.Run(testContext(t), agent.ExecRequest{Args: []string{"euid"}, User: "app"})
		require.NoError(t, err)
		require.Equal(t, mode == os.ModeSetuid, out.Code == 0)
	}
	require.NoError(t, os.Chmod(path, 0o755))
	capability := []byte{1, 0, 0, 2, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // CAP_SYS_PTRACE, capability.h: vfs_cap_data
	if err := unix.Setxattr(path, "security.capability", capability, 0); err == nil {
		_, err := c.Run(testContext(t), agent.ExecRequest{Args: []string{"euid"}, User: "app", Limits: []agent.Rlimit{{Name: "core"}}})
		invalid(t, err, "capabilities")
	}
}

// Who is killed before its limits are set is a program that was killed.
func TestAKillBeforeTheLimitsAreSet(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the tracer; it ends with the goroutine
		for _, reached := range []bool{false, true} {
			pidfd := -1
			pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Ptrace: true, Setsid: true, PidFD: &pidfd}})
			if err != nil {
				t.Error(err)
				return
			}
			if reached {
				if sig, err := awaitStop(pid); sig != syscall.SIGTRAP || err != nil {
					t.Error(sig, err)
				}
			}
			syscall.Kill(pid, syscall.SIGKILL)
			if reached {
				unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			}
			var mask unix.Sigset_t
			if err := (limits{{"core", unix.RLIMIT_CORE, unix.Rlimit{}}}).set(pid, &mask); err != nil && !errors.Is(err, unix.ESRCH) {
				t.Error(err)
			}
			if e := newChild(pid, pidfd, &sessionKiller{}).wait(); e.status.Signal() != syscall.SIGKILL {
				t.Error("ended otherwise:", e.status)
			}
		}
	}()
	<-done
}

// Programs are started while another sends all of them signals as fast as it can: each runs or is ended by them, and the agent goes on.
func TestSignalsWhileProgramsWithLimitsStart(t *testing.T) {
	c := newGuest(t).client(t)
	storm, err := c.Exec(testContext(t), sh("trap '' TERM USR1; while :; do kill -TERM -1; kill -USR1 -1; done"))
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				out, err := c.Run(testContext(t), agent.ExecRequest{Args: []string{"true"}, Limits: []agent.Rlimit{{Name: "core"}, {Name: "nofile", Soft: 50, Hard: 50}}})
				if err != nil || out.Code != 0 && out.Signal != syscall.SIGTERM && out.Signal != syscall.SIGUSR1 {
					t.Error(out, err)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, storm.Kill())
	_, err = storm.Wait()
	require.NoError(t, err)
}

// Programs with limits are started, given up at any moment and frozen, all at once.
func TestProgramsWithLimitsComeAndGo(t *testing.T) {
	g := freezable(t)
	holder, c := g.client(t), g.client(t)
	alone(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 30 {
				ctx, cancel := context.WithCancel(testContext(t))
				if (i+j)%3 == 0 {
					go cancel()
				}
				out, err := c.Run(ctx, limited("echo x; sleep 0.001", agent.Rlimit{Name: "core"}))
				cancel()
				if err != nil && !errors.Is(err, context.Canceled) || err == nil && string(out.Stdout) != "x\n" {
					t.Error(out, err)
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	for {
		require.NoError(t, holder.Freeze(testContext(t), false))
		require.NoError(t, holder.Thaw(testContext(t), nil, agent.Mount{}))
		select {
		case <-ended:
			eventually(t, func() bool { return children(t) == 1 && streamGoroutines() == 0 }, "all must have ended")
			return
		default:
		}
	}
}
