package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// freezable returns a guest whose programs are in a cgroup, with a public directory.
func freezable(t testing.TB) *testGuest {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a cgroup")
	}
	root := t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Skip("needs cgroup v2, which cannot be mounted:", err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	cgroup, err := os.MkdirTemp(root, "supermachine-test-")
	if err != nil {
		t.Skip("needs a cgroup v2 of its own, which cannot be made:", err)
	}
	t.Cleanup(func() {
		eventually(t, func() bool { err := os.Remove(cgroup); return err == nil || os.IsNotExist(err) }, "its programs must end")
	})
	if _, err := os.Stat(filepath.Join(cgroup, "cgroup.freeze")); err != nil {
		t.Skip("needs a cgroup v2 that can be frozen:", err)
	}
	fd, err := unix.Open(cgroup, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() {
		writeAt(fd, "cgroup.freeze", "0")
		unix.Close(fd)
	})
	g := newGuest(t)
	require.NoError(t, os.MkdirAll(filepath.Join(g.root, "run/public"), 0o755))
	g.server.cfg.Cgroup, g.server.cfg.PublicDir = fd, "/run/public"
	require.NoError(t, g.server.openPublic())
	return g
}

// size returns the size of a file in the guest, 0 without one.
func (g *testGuest) size(name string) int64 {
	info, err := os.Stat(filepath.Join(g.root, name))
	if err != nil {
		return 0
	}
	return info.Size()
}

func (g *testGuest) grows(t testing.TB, name string) {
	t.Helper()
	then := g.size(name)
	eventually(t, func() bool { return g.size(name) > then+10 }, name+" must grow")
}

// stands checks that a file does not grow while the agent answers a number of requests.
func (g *testGuest) stands(t testing.TB, c *agent.Client, name string) {
	t.Helper()
	then := g.size(name)
	for range 500 {
		require.NoError(t, c.Ping(testContext(t)))
	}
	require.Equal(t, then, g.size(name))
}

// noted waits until the server has seen the end of a connection, and what it does about it can only be to wait.
func (g *testGuest) noted(t testing.TB, n int) {
	t.Helper()
	eventually(t, func() bool {
		g.server.mu.Lock()
		defer g.server.mu.Unlock()
		ended := 0
		for c := range g.server.conns {
			if c.hasEnded() {
				ended++
			}
		}
		return ended == n
	}, "end of connections")
}

func identity(id string) *agent.Identity {
	return &agent.Identity{ID: id, Entropy: make([]byte, agent.EntropySize), Time: time.Now()}
}

func invalid(t testing.TB, err error, says string) {
	t.Helper()
	var e *agent.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.KindInvalid, e.Kind)
	require.Contains(t, e.Message, says)
}

const busy = "while true; do echo x >>/tmp/log; done"

func TestAFreezeStopsTheWorkloadUntilTheThaw(t *testing.T) {
	g := freezable(t)
	c, holder := g.client(t), g.client(t)
	var lean []bool
	g.server.cfg.Settle = func(l bool) { lean = append(lean, l) }
	_, err := c.Exec(testContext(t), sh(busy))
	require.NoError(t, err)
	for range 3 {
		g.grows(t, "tmp/log")
		require.NoError(t, holder.Freeze(testContext(t), true))
		g.stands(t, c, "tmp/log")
		require.NoError(t, holder.Thaw(testContext(t), nil, agent.Mount{}))
	}
	g.grows(t, "tmp/log")
	require.Equal(t, []bool{true, true, true}, lean)
}

func TestAFreezeNeedsACgroup(t *testing.T) {
	c := newGuest(t).client(t)
	for range 2 { // the first has left nothing behind
		invalid(t, c.Freeze(testContext(t), false), "no cgroup")
	}
	invalid(t, c.Thaw(testContext(t), nil, agent.Mount{}), "not frozen by this connection")
	require.Equal(t, "on\n", string(run(t, c, "echo on").Stdout))
}

// More of them than there are threads in the container, one of which the thaw needs. None may have forked: Go's runtime could not collect
// garbage before the child has got to its exec.
func TestExecsDuringAFreezeWaitForTheThaw(t *testing.T) {
	g := freezable(t)
	holder, c := g.client(t), g.client(t)
	require.NoError(t, holder.Freeze(testContext(t), false))
	const count = 2 * maxThreads
	outputs := make(chan string, count)
	for range count {
		go func() {
			out, err := holder.Run(testContext(t), sh("echo ran >>/tmp/log; echo ran"))
			outputs <- fmt.Sprint(string(out.Stdout), err)
		}()
	}
	eventually(t, func() bool {
		info, err := c.Info(testContext(t))
		require.NoError(t, err)
		return info.Execs == count
	}, "requests")
	runtime.GC()
	g.stands(t, c, "tmp/log")
	require.Empty(t, outputs)
	id := identity("copy")
	id.Hostname = "copy"
	require.NoError(t, holder.Thaw(testContext(t), id, agent.Mount{}))
	for range count {
		require.Equal(t, "ran\n<nil>", <-outputs)
	}
}

// A program that was not started before is not started in a copy: nobody waits for it there.
func TestExecsThatWaitForTheThawAreForgottenInACopy(t *testing.T) {
	g := freezable(t)
	holder, other := g.client(t), g.client(t)
	require.NoError(t, holder.Freeze(testContext(t), false))
	failed := make(chan error)
	go func() {
		_, err := other.Exec(testContext(t), agent.ExecRequest{Args: []string{"sleep", "7771"}, Main: true})
		failed <- err
	}()
	eventually(t, func() bool {
		info, err := holder.Info(testContext(t))
		require.NoError(t, err)
		return info.Execs == 1
	}, "request")
	require.NoError(t, holder.Thaw(testContext(t), identity("copy"), agent.Mount{}))
	require.ErrorIs(t, <-failed, agent.ErrClosed)
	eventually(t, func() bool {
		info, err := holder.Info(testContext(t))
		require.NoError(t, err)
		return info.Execs == 0 && !info.Running
	}, "end of the request")
	require.Zero(t, processes(t, holder, "sleep 7771"))
}

// Execs and freezes at the same time neither block each other nor leave anything behind.
func TestExecsAndFreezesCrossEachOther(t *testing.T) {
	g := freezable(t)
	holder, c := g.client(t), g.client(t)
	errs := make(chan error)
	for range 4 {
		go func() {
			var err error
			for i := 0; i < 20 && err == nil; i++ {
				var out agent.Output
				if out, err = c.Run(testContext(t), sh("echo x")); err == nil && string(out.Stdout) != "x\n" {
					err = errors.New("wrong output")
				}
			}
			errs <- err
		}()
	}
	for done := 0; done < 4; {
		require.NoError(t, holder.Freeze(testContext(t), false))
		require.NoError(t, holder.Thaw(testContext(t), nil, agent.Mount{}))
		select {
		case err := <-errs:
			require.NoError(t, err)
			done++
		default:
		}
	}
}

func TestOneConnectionHoldsTheFreeze(t *testing.T) {
	g := freezable(t)
	holder, other := g.client(t), g.client(t)
	_, err := other.Exec(testContext(t), sh(busy))
	require.NoError(t, err)
	require.NoError(t, holder.Freeze(testContext(t), false))
	invalid(t, other.Freeze(testContext(t), false), "frozen already")
	invalid(t, holder.Freeze(testContext(t), false), "frozen already")
	invalid(t, other.Thaw(testContext(t), nil, agent.Mount{}), "not frozen by this connection")
	invalid(t, other.Thaw(testContext(t), identity("x"), agent.Mount{}), "not frozen by this connection")
	g.stands(t, other, "tmp/log")
	require.NoError(t, holder.Close())
	g.grows(t, "tmp/log") // its end is a thaw
	eventually(t, func() bool { return other.Freeze(testContext(t), false) == nil }, "another's turn")
	require.NoError(t, other.Thaw(testContext(t), nil, agent.Mount{}))
	invalid(t, other.Thaw(testContext(t), nil, agent.Mount{}), "not frozen by this connection")
}

// A request may be taken up only after its connection has ended: there would be nobody to end the freeze.
func TestAConnectionThatHasEndedFreezesNothing(t *testing.T) {
	g := freezable(t)
	nc, far := net.Pipe()
	defer far.Close()
	c := &conn{s: g.server, nc: nc, ended: make(chan struct{})}
	close(c.ended)
	g.server.outlast(c)
	require.Error(t, g.server.freeze(c, &wire.Freeze{}))
	require.Equal(t, "on\n", string(run(t, g.client(t), "echo on").Stdout))
}

func TestConnectionsThatEndInTheMiddleOfAFreezeLeaveNothingFrozen(t *testing.T) {
	g := freezable(t)
	for range 50 {
		nc := g.dial(t)
		_, err := nc.Write(join(hello(t), open(t, 1, wire.Request{Freeze: &wire.Freeze{}})))
		require.NoError(t, err)
		nc.Close()
	}
	c := g.client(t)
	require.Equal(t, "on\n", string(run(t, c, "echo on").Stdout))
	eventually(t, func() bool { return c.Freeze(testContext(t), false) == nil }, "a freeze of its own")
	require.NoError(t, c.Thaw(testContext(t), nil, agent.Mount{}))
}

func TestProgramsOfAConnectionThatEndsDuringAFreeze(t *testing.T) {
	for name, test := range map[string]struct {
		id   *agent.Identity
		left int
	}{
		"are killed in the same guest": {nil, 0},
		"run on in a copy":             {identity("copy"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			g := freezable(t)
			holder, other := g.client(t), g.client(t)
			_, err := other.Exec(testContext(t), sh("sleep 8881 & "+busy))
			require.NoError(t, err)
			g.grows(t, "tmp/log")
			require.NoError(t, holder.Freeze(testContext(t), false))
			require.NoError(t, other.Close())
			g.noted(t, 1)
			require.NoError(t, holder.Thaw(testContext(t), test.id, agent.Mount{}))
			if test.left == 0 {
				eventually(t, func() bool { return processes(t, holder, "sleep 8881") == 0 }, "end")
				eventually(t, func() bool { return streamGoroutines() == 0 }, "goroutines")
				return
			}
			g.noted(t, 0)
			g.grows(t, "tmp/log")
			require.Equal(t, 1, processes(t, holder, "sleep 8881"))
		})
	}
}

// The connections of the guest that was copied lead nowhere: what their programs write is dropped, and their stdin ends.
func TestProgramsOfOtherConnectionsRunOnInACopy(t *testing.T) {
	g := freezable(t)
	holder, other := g.client(t), g.client(t)
	slow := blocking{make(chan struct{})}
	defer close(slow.release)
	_, err := other.Exec(testContext(t), agent.ExecRequest{Args: sh("head -c 8000000 /dev/zero; echo end >>/tmp/done").Args, Stdout: slow})
	require.NoError(t, err)
	stdin, w := io.Pipe()
	defer w.Close()
	_, err = other.Exec(testContext(t), agent.ExecRequest{Args: sh("cat; echo end >>/tmp/done").Args, Stdin: stdin})
	require.NoError(t, err)
	require.NoError(t, holder.Freeze(testContext(t), false))
	require.NoError(t, holder.Thaw(testContext(t), identity("copy"), agent.Mount{}))
	<-other.Done()
	eventually(t, func() bool { return g.size("tmp/done") == 8 }, "their ends")
	eventually(t, func() bool {
		info, err := holder.Info(testContext(t))
		require.NoError(t, err)
		return info.Execs == 0
	}, "everything is forgotten")
}

// In a copy the connections may fail before the thaw, while output is on its way.
func TestOutputOfAConnectionThatFailsBeforeTheThawIsDropped(t *testing.T) {
	g := freezable(t)
	holder := g.client(t)
	stalled := g.dial(t)
	defer stalled.Close()
	_, err := stalled.Write(hello(t))
	require.NoError(t, err)
	const count = 6 // more than the connection's queue holds of their windows
	for id := range uint32(count) {
		exec := &wire.Exec{Args: sh("echo x >>/tmp/started; head -c 8000000 /dev/zero; echo x >>/tmp/done").Args}
		_, err := stalled.Write(open(t, id+1, wire.Request{Exec: exec}))
		require.NoError(t, err)
	}
	eventually(t, func() bool { return g.size("tmp/started") == 2*count }, "start")
	eventually(t, func() bool { return streamsBlockedInTheWriter() > 0 }, "a full queue")
	require.NoError(t, holder.Freeze(testContext(t), false))
	require.NoError(t, stalled.Close())
	g.noted(t, 1)
	eventually(t, func() bool { return streamsBlockedInTheWriter() == 0 }, "the failure")
	require.NoError(t, holder.Thaw(testContext(t), identity("copy"), agent.Mount{}))
	eventually(t, func() bool { return g.size("tmp/done") == 2*count }, "all of them end")
}

func streamsBlockedInTheWriter() int {
	b := make([]byte, 4<<20)
	return strings.Count(string(b[:runtime.Stack(b, true)]), "wire.(*Writer).wait(")
}

func TestIdentitiesThatAreRefusedLeaveTheWorkloadFrozen(t *testing.T) {
	g := freezable(t)
	var adopted []string
	refuse := errors.New("no entropy today")
	g.server.cfg.Adopt = func(id wire.Identity) error {
		adopted = append(adopted, id.ID)
		if id.ID == "refused" {
			return refuse
		}
		return nil
	}
	holder, c := g.client(t), g.client(t)
	_, err := holder.Exec(testContext(t), sh(busy))
	require.NoError(t, err)
	require.NoError(t, holder.Freeze(testContext(t), false))
	long := strings.Repeat("x", maxIdentityField+1)
	for name, change := range map[string]func(id *agent.Identity){
		"no entropy":         func(id *agent.Identity) { id.Entropy = nil },
		"too little entropy": func(id *agent.Identity) { id.Entropy = id.Entropy[1:] },
		"too much entropy":   func(id *agent.Identity) { id.Entropy = make([]byte, 100<<10) },
		"no ID":              func(id *agent.Identity) { id.ID = "" },
		"long ID":            func(id *agent.Identity) { id.ID = long },
		"long host name":     func(id *agent.Identity) { id.Hostname = long },
	} {
		id := identity("x")
		change(id)
		err := holder.Thaw(testContext(t), id, agent.Mount{})
		require.Error(t, err, name)
		invalid(t, err, "incomplete")
	}
	require.Empty(t, adopted)
	var e *agent.Error
	require.ErrorAs(t, holder.Thaw(testContext(t), identity("refused"), agent.Mount{}), &e)
	require.Equal(t, wire.KindIO, e.Kind)
	require.Contains(t, e.Message, refuse.Error())
	g.stands(t, c, "tmp/log")
	require.NoError(t, c.Err(), "other connections are kept until it succeeds")

	id := identity("right")
	id.Hostname = strings.Repeat("h", maxIdentityField)
	require.NoError(t, holder.Thaw(testContext(t), id, agent.Mount{}))
	require.Equal(t, []string{"refused", "right"}, adopted)
	g.grows(t, "tmp/log")
	require.Equal(t, id.Hostname+" 1 right\n", string(run(t, holder,
		"echo $(cat /proc/sys/kernel/hostname /run/public/generation /run/public/restore-id)").Stdout))
}

func TestTheWorkloadLearnsInWhichCopyItIs(t *testing.T) {
	g := freezable(t)
	c := g.client(t)
	public := func() string {
		return string(run(t, c, "cd /run/public && cat generation restore-id && stat -c %a generation && ls -A").Stdout)
	}
	require.Equal(t, "0\n\n644\ngeneration\nrestore-id\n", public())
	for i := range 3 {
		require.NoError(t, c.Freeze(testContext(t), false))
		require.NoError(t, c.Thaw(testContext(t), identity(fmt.Sprint("copy", i)), agent.Mount{}))
		require.Equal(t, fmt.Sprintf("%d\ncopy%d\n644\ngeneration\nrestore-id\n", i+1, i), public())
	}
	require.NoError(t, c.Freeze(testContext(t), false))
	require.NoError(t, c.Thaw(testContext(t), nil, agent.Mount{}))
	require.Equal(t, "3\ncopy2\n644\ngeneration\nrestore-id\n", public(), "a thaw in the same guest changes nothing")
}

// The workload can do anything to its public directory, and neither reaches anything else nor keeps the thaw from succeeding.
func TestWhatTheWorkloadPutsIntoThePublicDirectoryIsReplaced(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		reads  string // what is in the files after that
	}{
		"links":            {"ln -s /tmp/victim restore-id; ln -s /tmp/victim generation; ln -s /tmp/victim .generation", "1 copy"},
		"links to nowhere": {"ln -s /no/such restore-id; ln -s generation generation", "1 copy"},
		"FIFOs":            {"mkfifo restore-id generation .restore-id .generation", "1 copy"},
		"directories":      {"mkdir restore-id generation .restore-id .generation", "1 copy"},
		"full directories": {"mkdir -p restore-id/a/b generation/c .restore-id/d .generation/e", "1 copy"},
		"mounts":           {"mkdir generation; echo >restore-id; mount -t tmpfs x generation; mount -o bind /tmp/victim restore-id", ""},
		"mount over it":    {"mount -t tmpfs x /run/public", ""},
		"nothing":          {"rm -rf /run/public; mkdir /run/public", ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := freezable(t)
			c := g.client(t)
			out := run(t, c, "set -e; cd /run/public; echo precious >/tmp/victim; rm *; "+test.script)
			require.Zero(t, out.Code, string(out.Stderr))
			require.NoError(t, c.Freeze(testContext(t), false))
			require.NoError(t, c.Thaw(testContext(t), identity("copy"), agent.Mount{}))
			victim, err := os.ReadFile(filepath.Join(g.root, "tmp/victim"))
			require.NoError(t, err)
			require.Equal(t, "precious\n", string(victim))
			if test.reads != "" {
				require.Equal(t, test.reads+"\n", string(run(t, c, "cd /run/public; echo $(cat generation restore-id)").Stdout))
			}
		})
	}
}

// A shutdown does not wait for a thaw.
func TestAFrozenGuestCanBeShutDown(t *testing.T) {
	g := freezable(t)
	holder, c := g.client(t), g.client(t)
	p, err := c.Exec(testContext(t), agent.ExecRequest{Args: sh("trap '' USR1; " + busy).Args, Main: true})
	require.NoError(t, err)
	g.grows(t, "tmp/log")
	require.NoError(t, holder.Freeze(testContext(t), false))
	require.NoError(t, c.Shutdown(testContext(t), 10*time.Millisecond))
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, unix.SIGKILL, st.Signal)
	<-g.off
}
