package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// descriptors returns how many this process has open.
func descriptors(t testing.TB) int {
	names, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(names)
}

func Test500ProgramsAtOnce(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	require.NoError(t, c.Ping(testContext(t)))
	alone(t)
	open := descriptors(t)
	const n = 500
	running, failed := make([]*agent.Process, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			running[i], failed[i] = c.Exec(testContext(t), agent.ExecRequest{Args: []string{"cat"}, Pipes: true})
		})
	}
	wg.Wait()
	for _, err := range failed {
		require.NoError(t, err)
	}
	require.Equal(t, n, processes(t, c, "cat"), "all of them run")
	for i, p := range running {
		wg.Go(func() {
			fmt.Fprint(p.Stdin, i)
			p.Stdin.Close()
			out, err := io.ReadAll(p.Stdout)
			if st, werr := p.Wait(); err != nil || werr != nil || st.Code != 0 || string(out) != fmt.Sprint(i) {
				failed[i] = fmt.Errorf("program %d: %v, %v, %v, %q", i, err, werr, st, out)
			}
		})
	}
	wg.Wait()
	for _, err := range failed {
		require.NoError(t, err)
	}
	eventually(t, func() bool { return children(t) == 1 && descriptors(t) <= open && streamGoroutines() == 0 }, "nothing is left")
}

// heap counts what is written to it, and how large the heap gets meanwhile.
type heap struct {
	written, looked int64
	most            uint64
}

func (h *heap) Write(b []byte) (int, error) {
	if h.written += int64(len(b)); h.written-h.looked >= 32<<20 {
		h.looked = h.written
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		h.most = max(h.most, m.HeapAlloc)
	}
	return len(b), nil
}

func TestAGibibyteStreamsThroughAtConstantMemory(t *testing.T) {
	c := newGuest(t).client(t)
	const size = 1 << 30
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	h := &heap{}
	out := execute(t, c, agent.ExecRequest{Args: []string{"dd", "if=/dev/zero", "bs=65536", fmt.Sprint("count=", size>>16)}, Stdout: h})
	require.Zero(t, out.Code)
	require.EqualValues(t, size, h.written)
	require.Less(t, h.most, before.HeapAlloc+32<<20)
}

// counter counts what is read from it, without an end.
type counter struct{ n atomic.Int64 }

func (c *counter) Read(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

func TestAProgramThatDoesNotReadStopsTheWriter(t *testing.T) {
	c := newGuest(t).client(t)
	in := &counter{}
	p, err := c.Exec(testContext(t), agent.ExecRequest{Args: []string{"sleep", "1000"}, Stdin: in})
	require.NoError(t, err)
	const most = wire.InitialWindow + 2<<20 // what lies in the window, in a pipe as large as it may be, and in between
	for last := int64(-1); last != in.n.Load() || last == 0; {
		last = in.n.Load()
		for range 20 { // others go on
			require.Equal(t, "x\n", string(run(t, c, "echo x").Stdout))
		}
		require.LessOrEqual(t, last, int64(most))
	}
	require.NoError(t, p.Kill())
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGKILL, st.Signal)
	require.LessOrEqual(t, in.n.Load(), int64(most))
	eventually(t, func() bool { return streamGoroutines() == 0 }, "goroutines")
}

func TestARawTerminalPassesEveryByte(t *testing.T) {
	c := newGuest(t).client(t)
	term := newTerminal(t, c, agent.ExecRequest{Args: []string{"sh", "-c", "stty raw -echo; echo ready; exec cat"}})
	term.shows(t, "ready\n")
	var all []byte
	for i := range 64 {
		for b := range 256 {
			all = append(all, byte(b+i))
		}
	}
	head := len(term.screen.String())
	go term.keys.Write(all)
	eventually(t, func() bool { return len(term.screen.String()) >= head+len(all) }, "all bytes")
	require.True(t, bytes.Equal(all, []byte(term.screen.String()[head:])))
	require.NoError(t, term.Kill())
	_, err := term.Wait()
	require.NoError(t, err)
}

// Execs of every kind are started and given up at any moment, with their connection or without.
func TestAStormOfAbandonedProgramsLeavesNothing(t *testing.T) {
	g := newGuest(t)
	watch := g.client(t)
	require.NoError(t, watch.Ping(testContext(t)))
	alone(t)
	open := descriptors(t)
	var wg sync.WaitGroup
	for i := range 8 {
		random := rand.New(rand.NewSource(int64(i)))
		wg.Go(func() {
			var c *agent.Client
			var err error
			for j := range 60 {
				if j%20 == 0 {
					if c != nil {
						c.Close()
					}
					if c, err = agent.NewClient(g.dial(t)); err != nil {
						t.Error(err)
						return
					}
				}
				ctx, cancel := context.WithTimeout(testContext(t), time.Duration(random.Intn(20))*time.Millisecond)
				req := agent.ExecRequest{Args: []string{"sh", "-c", "sleep 8881 & cat; sleep 8882"}, TTY: random.Intn(3) == 0}
				if random.Intn(2) == 0 {
					req.Stdin = &counter{}
				}
				if random.Intn(3) == 0 {
					req.Limits = []agent.Rlimit{{Name: "core"}}
				}
				if p, err := c.Exec(ctx, req); err == nil {
					if random.Intn(2) == 0 {
						p.Wait()
					}
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				if random.Intn(2) == 0 {
					cancel()
				}
				defer cancel()
			}
			c.Close()
		})
	}
	wg.Wait()
	eventually(t, func() bool { return processes(t, watch, "sleep 888") == 0 }, "programs and their children")
	eventually(t, func() bool { return children(t) == 1 && descriptors(t) <= open && streamGoroutines() == 0 }, "what served them")
	all, _, err := watch.Programs(testContext(t))
	require.NoError(t, err)
	require.Empty(t, all)
}

// A kill reaches all of the session, however deep, in whatever process groups.
func TestATimeoutKillsGrandchildrenInGroupsOfTheirOwn(t *testing.T) {
	c := newGuest(t).client(t)
	req := sh(`set -m; sh -c 'set -m; trap "" TERM INT HUP; sh -c "set -m; sleep 9991 & sleep 9992 & wait" & sleep 9993 & wait' & sleep 9994 & touch /tmp/started; wait`)
	req.Timeout = 500 * time.Millisecond
	out, err := c.Run(testContext(t), req)
	require.NoError(t, err)
	require.True(t, out.TimedOut)
	eventually(t, func() bool { return processes(t, c, "sleep 999") == 0 }, "grandchildren")
}

// The programs of one benchmark are as many as of the other: what the agent adds is the difference.
const benchmarked = 100

func BenchmarkExecs(b *testing.B) {
	c := newGuest(b).client(b)
	compare(b, func() error {
		out, err := c.Run(context.Background(), agent.ExecRequest{Args: []string{"/bin/true"}})
		if err == nil && out.Code != 0 {
			err = fmt.Errorf("exit status %d", out.Code)
		}
		return err
	})
}

func BenchmarkLimitedExecs(b *testing.B) {
	c := newGuest(b).client(b)
	compare(b, func() error {
		_, err := c.Run(context.Background(), agent.ExecRequest{Args: []string{"/bin/true"}, Limits: []agent.Rlimit{{Name: "core"}}})
		return err
	})
}

func BenchmarkLocalCommands(b *testing.B) {
	path := filepath.Join(testRoot(b, true), "bin/true")
	compare(b, func() error {
		_, err := exec.Command(path).CombinedOutput()
		return err
	})
}

func BenchmarkLocalForks(b *testing.B) {
	path := filepath.Join(testRoot(b, true), "bin/true")
	compare(b, func() error {
		pid, err := syscall.ForkExec(path, []string{path}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Setsid: true}})
		if err == nil {
			_, err = syscall.Wait4(pid, nil, 0, nil)
		}
		return err
	})
}

// spawn runs one a number of times at once.
func spawn(b *testing.B, one func() error) {
	var wg sync.WaitGroup
	for range benchmarked {
		wg.Go(func() {
			if err := one(); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
}

// cpuTime returns the CPU time of this process and its children.
func cpuTime() (total int64) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		syscall.Getrusage(who, &u)
		total += u.Utime.Nano() + u.Stime.Nano()
	}
	return total
}

// compare measures f by the clock and by the CPU time, which tells more on a machine that others use too.
func compare(b *testing.B, f func() error) {
	before := cpuTime()
	for b.Loop() {
		spawn(b, f)
	}
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}
