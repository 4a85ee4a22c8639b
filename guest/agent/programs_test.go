package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// launch starts a detached program and returns its ID.
func launch(t testing.TB, c *agent.Client, req agent.ExecRequest) uint64 {
	t.Helper()
	req.Detach = true
	p, err := c.Exec(testContext(t), req)
	require.NoError(t, err)
	require.Positive(t, p.ID())
	require.Positive(t, p.PID())
	_, err = p.Wait()
	require.ErrorIs(t, err, agent.ErrDetached)
	require.ErrorIs(t, p.Signal(syscall.SIGKILL), agent.ErrDetached)
	return p.ID()
}

// attach attaches to a program with buffers.
func attach(t testing.TB, c *agent.Client, id uint64, stdin io.Reader) *follower {
	t.Helper()
	f := &follower{}
	var err error
	f.Process, err = c.Attach(testContext(t), id, agent.AttachRequest{Stdin: stdin, Stdout: &f.out, Stderr: &f.err})
	require.NoError(t, err)
	require.Equal(t, id, f.ID())
	return f
}

// ended waits until a program has ended and not been collected.
func (g *testGuest) ended(t testing.TB, c *agent.Client, id uint64) {
	t.Helper()
	eventually(t, func() bool { p := listed(t, c, id); return p != nil && p.Ended }, "end of the program")
}

// listed returns what the list says about a program.
func listed(t testing.TB, c *agent.Client, id uint64) *agent.Program {
	all, more, err := c.Programs(testContext(t))
	require.NoError(t, err)
	require.False(t, more)
	for _, p := range all {
		if p.ID == id {
			return &p
		}
	}
	return nil
}

func gone(t testing.TB, c *agent.Client, id uint64) {
	t.Helper()
	_, err := c.Attach(testContext(t), id, agent.AttachRequest{})
	var e *agent.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.KindNotFound, e.Kind)
}

func TestADetachedProgramIsAttachedTo(t *testing.T) {
	g := newGuest(t)
	starter := g.client(t)
	id := launch(t, starter, sh("echo out1; echo err1 >&2; trap 'echo out2; exit 5' USR1; while true; do :; done"))
	other := launch(t, starter, sh("sleep 1000"))
	require.NotEqual(t, id, other)
	require.NoError(t, starter.Close(), "they do not need the connection that started them")
	var all []*follower
	for range 4 {
		f := attach(t, g.client(t), id, nil)
		eventually(t, func() bool { return f.out.String() == "out1\n" && f.err.String() == "err1\n" }, "what it wrote before")
		all = append(all, f)
	}
	c := g.client(t)
	ctx, cancel := context.WithCancel(testContext(t))
	given, err := c.Attach(ctx, id, agent.AttachRequest{})
	require.NoError(t, err)
	cancel()
	_, err = given.Wait()
	require.ErrorIs(t, err, context.Canceled)
	left := attach(t, c, id, nil)
	require.NoError(t, left.Detach(testContext(t)))
	_, err = left.Wait()
	require.ErrorIs(t, err, agent.ErrDetached)

	require.NoError(t, all[0].Signal(syscall.SIGUSR1))
	for _, f := range all {
		st := f.wait(t)
		require.Equal(t, 5, st.Code)
		require.Zero(t, st.Lost)
		require.Positive(t, st.MaxRSS)
		require.Equal(t, "out1\nout2\n", f.out.String())
		require.Equal(t, "err1\n", f.err.String())
	}
	eventually(t, func() bool { return listed(t, c, id) == nil }, "its result is collected")
	gone(t, c, id)
	last := attach(t, c, other, nil)
	require.NoError(t, last.Kill())
	require.Equal(t, syscall.SIGKILL, last.wait(t).Signal)
}

func TestAResultIsKeptUntilItIsCollected(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	id := launch(t, c, sh("echo done; exit 7"))
	g.ended(t, c, id)
	p := listed(t, c, id)
	require.Equal(t, 7, p.Code)
	require.True(t, p.Detached)
	f := attach(t, c, id, nil)
	require.Equal(t, 7, f.wait(t).Code)
	require.Equal(t, "done\n", f.out.String())
	eventually(t, func() bool { return listed(t, c, id) == nil }, "collected")
	gone(t, c, id)
	gone(t, c, 0)
	gone(t, c, 1<<63)

	var ids []uint64
	for range maxEnded + 3 {
		id := launch(t, c, agent.ExecRequest{Args: []string{"true"}})
		eventually(t, func() bool { p := listed(t, c, id); return p != nil && p.Ended }, "end")
		ids = append(ids, id)
	}
	all, _, err := c.Programs(testContext(t))
	require.NoError(t, err)
	require.Len(t, all, maxEnded)
	require.Equal(t, ids[3], all[0].ID, "the oldest are dropped")
	gone(t, c, ids[2])
	require.Zero(t, attach(t, c, ids[3], nil).wait(t).Code)
	eventually(t, func() bool { return streamGoroutines() == 0 }, "goroutines")
}

func TestRequestsForWhatIsNotDetached(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	p, err := c.Exec(testContext(t), sh("sleep 1000"))
	require.NoError(t, err)
	_, err = g.client(t).Attach(testContext(t), p.ID(), agent.AttachRequest{})
	invalid(t, err, "is not detached")
	_, err = c.Exec(testContext(t), agent.ExecRequest{Args: []string{"true"}, Detach: true, Stdout: io.Discard})
	invalid(t, err, "no streams")
	_, err = c.Run(testContext(t), agent.ExecRequest{Args: []string{"true"}, Detach: true})
	invalid(t, err, "cannot be collected")
	_, err = c.Exec(testContext(t), agent.ExecRequest{Args: []string{"nope"}, Detach: true})
	var e *agent.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.KindCommandNotFound, e.Kind)
	all, _, err := c.Programs(testContext(t))
	require.NoError(t, err)
	require.Len(t, all, 1)
}

func TestTheWorkloadIsAttachedToByItsID(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	start(t, c, "echo main; sleep 1000")
	all, _, err := c.Programs(testContext(t))
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.True(t, all[0].Main)
	f, byID := follow(t, c), attach(t, c, all[0].ID, nil)
	require.Equal(t, byID.ID(), f.ID())
	eventually(t, func() bool { return f.out.String() == "main\n" && byID.out.String() == "main\n" }, "output")
	require.NoError(t, byID.Kill())
	require.Equal(t, syscall.SIGKILL, f.wait(t).Signal)
	require.Equal(t, syscall.SIGKILL, byID.wait(t).Signal)
	require.Equal(t, syscall.SIGKILL, follow(t, c).wait(t).Signal, "whoever follows the workload still gets it")
}

// The program never waits for an attachment, which learns what it has missed.
func TestASlowAttachmentLosesOutput(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	id := launch(t, c, sh("until [ -e /tmp/go ]; do sleep 0.01; done; yes | head -c 20000000; echo end; exit 3"))
	slow, got := blocking{make(chan struct{})}, &bytes.Buffer{}
	held, err := g.client(t).Attach(testContext(t), id, agent.AttachRequest{Stdout: io.MultiWriter(slow, got)})
	require.NoError(t, err)
	run(t, c, "touch /tmp/go")
	g.ended(t, c, id)
	close(slow.release)
	st, err := held.Wait()
	require.NoError(t, err)
	require.Equal(t, 3, st.Code)
	require.Positive(t, st.Lost)
	require.EqualValues(t, 20000000+len("end\n"), st.Lost+int64(got.Len()))
	require.True(t, strings.HasSuffix(got.String(), "y\nend\n"))
}

func TestAttachmentsFeedAProgram(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	req := agent.ExecRequest{Args: []string{"cat"}, OpenStdin: true}
	id := launch(t, c, req)
	watch := attach(t, c, id, nil)
	for i := range 3 { // the end of an attachment is not that of the input
		conn := g.client(t)
		p, err := conn.Attach(testContext(t), id, agent.AttachRequest{Pipes: true})
		require.NoError(t, err)
		_, err = fmt.Fprintln(p.Stdin, "line", i)
		require.NoError(t, err)
		eventually(t, func() bool { return strings.HasSuffix(watch.out.String(), fmt.Sprintln("line", i)) }, "line")
		if i == 1 {
			require.NoError(t, p.Detach(testContext(t)))
		} else {
			require.NoError(t, conn.Close())
		}
	}
	last := attach(t, c, id, strings.NewReader("last\n")) // ends it
	require.Zero(t, last.wait(t).Code)
	require.Equal(t, "line 0\nline 1\nline 2\nlast\n", last.out.String())
	require.Zero(t, watch.wait(t).Code)

	id = launch(t, c, sh("cat; echo end"))
	f := attach(t, c, id, strings.NewReader("not for it"))
	require.Zero(t, f.wait(t).Code)
	require.Equal(t, "end\n", f.out.String())
}

// A program that does not read holds up neither attachments' ends nor more than one of their goroutines.
func TestAttachmentsToAProgramThatDoesNotRead(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	id := launch(t, c, agent.ExecRequest{Args: []string{"sleep", "1000"}, OpenStdin: true})
	for range 20 {
		ctx, cancel := context.WithCancel(testContext(t))
		p, err := c.Attach(ctx, id, agent.AttachRequest{Stdin: zeros{}})
		require.NoError(t, err)
		cancel()
		_, err = p.Wait()
		require.ErrorIs(t, err, context.Canceled)
	}
	eventually(t, func() bool { return streamGoroutines() <= 3 }, "the attachments' ends") // its two outputs', and one that feeds
	f := attach(t, c, id, nil)
	require.NoError(t, f.Kill())
	f.wait(t)
	eventually(t, func() bool { return streamGoroutines() == 0 }, "the program's end")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestADetachedTerminal(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	id := launch(t, c, agent.ExecRequest{Args: []string{"sh"}, TTY: true, OpenStdin: true, Rows: 10, Cols: 20})
	require.True(t, listed(t, c, id).TTY)
	r, w := io.Pipe()
	f := attach(t, c, id, r)
	_, err := io.WriteString(w, "stty size\n")
	require.NoError(t, err)
	eventually(t, func() bool { return strings.Contains(f.out.String(), "10 20\r\n") }, "size")
	require.NoError(t, f.Resize(11, 21))
	other := attach(t, g.client(t), id, strings.NewReader("stty size\nexit 4\n"))
	require.Equal(t, 4, f.wait(t).Code)
	require.Equal(t, 4, other.wait(t).Code)
	require.Contains(t, other.out.String(), "11 21\r\n")
	require.Contains(t, other.out.String(), "10 20\r\n", "what it showed before")
	require.NoError(t, w.Close())
}

func TestARunningProgramIsDetached(t *testing.T) {
	g := newGuest(t)
	conn := g.client(t)
	var before lockedBuffer
	req := sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo ready >&2; cat >/dev/null; until [ -e /tmp/end ]; do sleep 0.01; done; echo late; exit 6")
	r, w := io.Pipe()
	defer w.Close()
	req.Stdin, req.Stdout = r, &before
	ready := make(chan struct{})
	var once sync.Once
	req.Stderr = writerFunc(func(b []byte) (int, error) { once.Do(func() { close(ready) }); return len(b), nil })
	p, err := conn.Exec(testContext(t), req)
	require.NoError(t, err)
	<-ready
	require.NoError(t, p.Detach(testContext(t)))
	_, err = p.Wait()
	require.ErrorIs(t, err, agent.ErrDetached)
	invalid(t, p.Detach(testContext(t)), "detached already")
	require.NoError(t, conn.Close())

	c := g.client(t)
	require.True(t, listed(t, c, p.ID()).Detached)
	f := attach(t, c, p.ID(), nil)
	run(t, c, "touch /tmp/end")
	require.Equal(t, 6, f.wait(t).Code)
	var want strings.Builder
	for i := range 3000 {
		fmt.Fprintln(&want, "line", i)
	}
	require.Equal(t, want.String()+"late\n", before.String()+f.out.String())
	require.NotContains(t, before.String(), "late")
	require.NoError(t, w.Close()) // what the first client still waits to read
	eventually(t, func() bool { return streamGoroutines() == 0 }, "goroutines")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// Nothing is lost, whenever a program is detached: what the stream did not get is kept.
func TestDetachingLosesNothing(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	script := "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done"
	want := string(run(t, c, script).Stdout)
	for i := range 20 {
		var got lockedBuffer
		req := sh(script)
		req.Stdout = &got
		p, err := c.Exec(testContext(t), req)
		require.NoError(t, err)
		eventually(t, func() bool { return len(got.String()) >= i*100 }, "some output")
		err = p.Detach(testContext(t))
		var e *agent.Error
		if errors.As(err, &e) { // it has ended
			_, err = p.Wait()
			require.NoError(t, err)
			require.Equal(t, want, got.String())
			continue
		}
		require.NoError(t, err)
		_, err = p.Wait()
		require.ErrorIs(t, err, agent.ErrDetached)
		f := attach(t, c, p.ID(), nil)
		require.Zero(t, f.wait(t).Code)
		require.Equal(t, want, got.String()+f.out.String())
	}
	all, _, err := c.Programs(testContext(t))
	require.NoError(t, err)
	for _, p := range all {
		require.True(t, p.Ended && p.Detached)
	}
}

func TestProgramsOfOtherConnectionsAreKeptInACopy(t *testing.T) {
	g := freezable(t)
	holder, other := g.client(t), g.client(t)
	p, err := other.Exec(testContext(t), sh("until [ -e /tmp/go ]; do sleep 0.01; done; echo in the copy; exit 8"))
	require.NoError(t, err)
	require.NoError(t, holder.Freeze(testContext(t), false))
	require.NoError(t, holder.Thaw(testContext(t), identity("copy"), agent.Mount{}))
	require.True(t, listed(t, holder, p.ID()).Detached)
	f := attach(t, holder, p.ID(), nil)
	run(t, holder, "touch /tmp/go")
	require.Equal(t, 8, f.wait(t).Code)
	require.Equal(t, "in the copy\n", f.out.String())
}

func TestProgramsAreListed(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	then := time.Now().Add(-time.Second)
	start(t, c, "sleep 1000")
	long := strings.Repeat("x", 3000)
	req := agent.ExecRequest{Args: []string{"sh", "-c", "sleep 1000", "\x1b[1m", long, long, "more"}, User: "app", TTY: true}
	p, err := c.Exec(testContext(t), req)
	require.NoError(t, err)
	many := agent.ExecRequest{Args: append([]string{"sh", "-c", "sleep 1000"}, make([]string, 5000)...)}
	_, err = c.Exec(testContext(t), many)
	require.NoError(t, err)
	all, more, err := c.Programs(testContext(t))
	require.NoError(t, err)
	require.False(t, more)
	require.Len(t, all, 3)
	require.True(t, all[0].Main && all[0].Detached && !all[0].TTY)
	got := all[1]
	require.Equal(t, p.ID(), got.ID)
	require.Equal(t, p.PID(), got.PID)
	require.EqualValues(t, 1000, got.UID)
	require.True(t, got.TTY && !got.Main && !got.Detached && !got.Ended && got.ArgsCut)
	require.Len(t, got.Args, 6)
	require.Equal(t, "\uFFFD[1m", got.Args[3])
	require.Equal(t, long, got.Args[4])
	require.Less(t, len(got.Args[5]), 1200)
	require.WithinRange(t, got.StartTime(), then, time.Now())
	require.True(t, all[2].ArgsCut)
	require.Less(t, len(all[2].Args), 1000)
	require.NoError(t, p.Kill())
	_, err = p.Wait()
	require.NoError(t, err)
	require.Nil(t, listed(t, c, p.ID()))
}

// However many there are, what they cost the agent is bounded.
func TestDetachedProgramsShareTheRoom(t *testing.T) {
	s := newPrograms()
	var all []*process
	for range maxDetached {
		require.True(t, s.claim())
		p := &process{}
		s.add(p)
		r := s.keep(p)
		r.writer(wire.ChannelOut).Write(make([]byte, 2*keptTotal/maxDetached))
		s.unclaim()
		all = append(all, p)
	}
	require.False(t, s.claim())
	kept := func() (total int) {
		for _, r := range s.records {
			out, _, _ := collect(r, 0)
			total += len(out)
		}
		return total
	}
	require.Equal(t, keptTotal, kept())
	for _, p := range all {
		s.end(p, wire.Result{})
		require.Nil(t, s.keep(&process{about: wire.Program{ID: 1 << 40}}), "what does not run is not kept")
	}
	require.Len(t, s.records, maxEnded)
	require.Len(t, s.ended, maxEnded)
	require.Equal(t, maxEnded*(keptTotal/maxDetached), kept())
	require.True(t, s.claim())
	for _, p := range all {
		if r := s.records[p.about.ID]; r != nil {
			s.collect(r)
			s.collect(r)
		}
	}
	require.Empty(t, s.records)
	require.Empty(t, s.ended)
	s.collect(nil)
}

// Detached programs, attachments and lists of many connections cross each other.
func TestDetachedProgramsComeAndGo(t *testing.T) {
	g := newGuest(t)
	alone(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			c, err := agent.NewClient(g.dial(t))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for j := range 20 {
				want := fmt.Sprintln(i, j)
				p, err := c.Exec(testContext(t), agent.ExecRequest{Args: []string{"sh", "-c", "echo $0 $1; exit 9", fmt.Sprint(i), fmt.Sprint(j)}, Detach: true})
				if err != nil {
					t.Error(err)
					return
				}
				var out lockedBuffer
				a, err := c.Attach(testContext(t), p.ID(), agent.AttachRequest{Stdout: &out})
				if err != nil {
					t.Error(err)
					return
				}
				if st, err := a.Wait(); err != nil || st.Code != 9 || out.String() != want {
					t.Error(st, err, out.String())
				}
				if _, _, err := c.Programs(testContext(t)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, func() bool {
		all, _, err := g.client(t).Programs(testContext(t))
		require.NoError(t, err)
		return len(all) == 0 && children(t) == 1 && streamGoroutines() == 0
	}, "nothing is left")
}
