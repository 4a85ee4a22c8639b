package agent

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

func start(t testing.TB, c *agent.Client, script string) {
	t.Helper()
	require.NoError(t, c.StartWorkload(testContext(t), sh(script)))
}

// follower follows the workload into buffers.
type follower struct {
	*agent.Process
	out, err lockedBuffer
}

func follow(t testing.TB, c *agent.Client) *follower {
	t.Helper()
	f := &follower{}
	var err error
	f.Process, err = c.Follow(testContext(t), agent.AttachRequest{Stdout: &f.out, Stderr: &f.err})
	require.NoError(t, err)
	return f
}

func (f *follower) wait(t testing.TB) agent.ExitStatus {
	t.Helper()
	st, err := f.Wait()
	require.NoError(t, err)
	return st
}

func TestAWorkloadsOutputIsKeptForAllWhoFollow(t *testing.T) {
	g := newGuest(t)
	starter := g.client(t)
	start(t, starter, "echo out1; echo err1 >&2; trap 'echo out2; echo err2 >&2; exit 5' USR2; while true; do :; done")
	require.NoError(t, starter.Close(), "it does not need the connection that started it")
	var all []*follower
	for range 5 {
		f := follow(t, g.client(t))
		require.Positive(t, f.PID())
		eventually(t, func() bool { return f.out.String() == "out1\n" && f.err.String() == "err1\n" }, "what it wrote before")
		all = append(all, f)
	}
	require.NoError(t, all[0].Signal(syscall.SIGUSR2), "signals reach the workload")
	c := g.client(t)
	eventually(t, func() bool { return !running(t, c) }, "its end")
	all = append(all, follow(t, c), follow(t, c)) // after its end
	for _, f := range all {
		st := f.wait(t)
		require.Equal(t, 5, st.Code)
		require.Zero(t, st.Signal)
		require.Positive(t, st.MaxRSS)
		require.Equal(t, "out1\nout2\n", f.out.String())
		require.Equal(t, "err1\nerr2\n", f.err.String())
		require.Equal(t, all[0].PID(), f.PID())
		require.NoError(t, f.Signal(syscall.SIGTERM), "after the end a signal does nothing")
	}
}

func running(t testing.TB, c *agent.Client) bool {
	info, err := c.Info(testContext(t))
	require.NoError(t, err)
	require.LessOrEqual(t, info.Execs, 1)
	return info.Running
}

func TestTheSignalThatEndedAWorkloadIsKept(t *testing.T) {
	c := newGuest(t).client(t)
	start(t, c, "sleep 1000 & wait")
	f := follow(t, c)
	require.NoError(t, f.Kill())
	for _, st := range []agent.ExitStatus{f.wait(t), follow(t, c).wait(t)} {
		require.Equal(t, syscall.SIGKILL, st.Signal)
		require.Equal(t, 137, st.Code)
		require.False(t, st.TimedOut)
	}
}

func TestAWorkloadsTimeoutHolds(t *testing.T) {
	c := newGuest(t).client(t)
	req := sh("trap '' TERM; while true; do sleep 0.01; done")
	req.Timeout = 50 * time.Millisecond
	require.NoError(t, c.StartWorkload(testContext(t), req))
	st := follow(t, c).wait(t)
	require.True(t, st.TimedOut)
	require.Equal(t, syscall.SIGKILL, st.Signal)
}

func TestAWorkloadThatHasNotStarted(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	_, err := c.Follow(testContext(t), agent.AttachRequest{})
	invalid(t, err, "no workload was started")
	var e *agent.Error
	require.ErrorAs(t, c.StartWorkload(testContext(t), agent.ExecRequest{Args: []string{"nope"}}), &e)
	require.Equal(t, wire.KindCommandNotFound, e.Kind)
	_, err = c.Follow(testContext(t), agent.AttachRequest{})
	invalid(t, err, "no workload was started")
	require.False(t, running(t, c))
}

func TestOneWorkloadAtATime(t *testing.T) {
	c := newGuest(t).client(t)
	start(t, c, "echo first; sleep 1000")
	invalid(t, c.StartWorkload(testContext(t), sh("true")), "the workload runs already")
	first := follow(t, c)
	eventually(t, func() bool { return first.out.String() == "first\n" }, "start")
	require.NoError(t, first.Kill())
	first.wait(t)
	start(t, c, "echo second") // at once: who has seen the end may start the next
	second := follow(t, c)
	require.Zero(t, second.wait(t).Code)
	require.Equal(t, "second\n", second.out.String())
	require.Equal(t, "first\n", first.out.String())
}

func TestShutdownStopsADetachedWorkload(t *testing.T) {
	g := newGuest(t)
	c, other := g.client(t), g.client(t)
	start(t, c, "trap 'echo stopping; exit 9' USR1; echo ready; while true; do sleep 0.01; done")
	f := follow(t, other)
	eventually(t, func() bool { return f.out.String() == "ready\n" }, "start")
	require.NoError(t, c.Shutdown(testContext(t), time.Minute))
	require.Equal(t, 9, f.wait(t).Code, "it got the image's stop signal")
	require.Equal(t, "ready\nstopping\n", f.out.String())
	<-g.off
}

func TestShutdownKillsADetachedWorkloadAfterItsGrace(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	start(t, c, "trap '' USR1 TERM; echo ready; while true; do sleep 0.01; done")
	f := follow(t, c)
	eventually(t, func() bool { return f.out.String() == "ready\n" }, "start")
	require.NoError(t, c.Shutdown(testContext(t), 10*time.Millisecond))
	require.Equal(t, syscall.SIGKILL, f.wait(t).Signal)
	<-g.off
}

func TestLateFollowersGetTheEndOfTheOutput(t *testing.T) {
	c := newGuest(t).client(t)
	start(t, c, "i=0; while [ $i -lt 20000 ]; do echo line number $i; i=$((i+1)); done")
	eventually(t, func() bool { return !running(t, c) }, "its end")
	f := follow(t, c)
	f.wait(t)
	var all strings.Builder
	for i := range 20000 {
		fmt.Fprintln(&all, "line number", i)
	}
	require.Len(t, f.out.String(), logSize)
	require.True(t, strings.HasSuffix(all.String(), f.out.String()), "exactly the end")
}

// Neither the workload nor other followers wait for it, and giving it up ends it.
func TestAFollowerThatDoesNotReadHoldsUpNobody(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	start(t, c, `until [ -e /tmp/go ]; do sleep 0.01; done; dd if=/dev/zero bs=100000 count=200 2>/dev/null; echo full
		until [ -e /tmp/end ]; do sleep 0.01; done; exit 3`)
	slow := blocking{make(chan struct{})}
	held, err := g.client(t).Follow(testContext(t), agent.AttachRequest{Stdout: slow})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(testContext(t))
	given, err := c.Follow(ctx, agent.AttachRequest{Stdout: slow})
	require.NoError(t, err)
	run(t, c, "touch /tmp/go")
	quick := follow(t, c)
	eventually(t, func() bool { return strings.HasSuffix(quick.out.String(), "full\n") }, "all output")
	cancel() // before there is a result
	run(t, c, "touch /tmp/end")
	require.Equal(t, 3, quick.wait(t).Code)
	close(slow.release)
	_, err = given.Wait()
	require.ErrorIs(t, err, context.Canceled)
	st, err := held.Wait()
	require.NoError(t, err)
	require.Equal(t, 3, st.Code)
	eventually(t, func() bool { return streamGoroutines() == 0 }, "goroutines")
}

func TestGivingUpFollowingLeavesTheWorkloadAlone(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	start(t, c, "trap 'exit 4' USR2; echo ready; while true; do sleep 0.01; done")
	ctx, cancel := context.WithCancel(testContext(t))
	f, err := c.Follow(ctx, agent.AttachRequest{})
	require.NoError(t, err)
	cancel()
	_, err = f.Wait()
	require.ErrorIs(t, err, context.Canceled)
	other := g.client(t)
	follow(t, other)
	require.NoError(t, other.Close())
	last := follow(t, c)
	eventually(t, func() bool { return last.out.String() == "ready\n" }, "output")
	require.True(t, running(t, c))
	require.NoError(t, last.Signal(syscall.SIGUSR2))
	require.Equal(t, 4, last.wait(t).Code)
}

// collect returns what a record has of both outputs, from a position on.
func collect(r *record, at uint64) (out, err []byte, end uint64) {
	for {
		p, _, changed := r.next(at)
		switch {
		case p.data == nil && changed != nil:
			return out, err, at
		case p.channel == wire.ChannelOut:
			out = append(out, p.data...)
		default:
			err = append(err, p.data...)
		}
		at = p.end()
	}
}

func TestARecordKeepsTheEndInOrder(t *testing.T) {
	r := newRecord(nil)
	out, errs := r.writer(wire.ChannelOut), r.writer(wire.ChannelErr)
	var wantOut, wantErr, gotOut, gotErr []byte
	var at uint64
	for i := range 5000 {
		b := bytes.Repeat([]byte(fmt.Sprint(i, " ")), 1+i%30)
		if i%7 < 3 {
			errs.Write(b)
			wantErr = append(wantErr, b...)
		} else {
			out.Write(b)
			wantOut = append(wantOut, b...)
		}
		if i%11 == 0 { // in the middle of pieces that grow later
			var o, e []byte
			o, e, at = collect(r, at)
			gotOut, gotErr = append(gotOut, o...), append(gotErr, e...)
		}
	}
	o, e, at := collect(r, at)
	require.Equal(t, string(wantOut), string(append(gotOut, o...)))
	require.Equal(t, string(wantErr), string(append(gotErr, e...)))
	require.Equal(t, uint64(len(wantOut)+len(wantErr)), at)
	o, e, _ = collect(r, 0)
	require.Equal(t, logSize, len(o)+len(e))
	require.True(t, bytes.HasSuffix(wantOut, o))
	require.True(t, bytes.HasSuffix(wantErr, e))

	out.Write(make([]byte, 2*logSize+1)) // more than fits at once
	o, e, _ = collect(r, 0)
	require.Len(t, o, logSize)
	require.Empty(t, e)
}

// Programs that write single bytes must not cost many times their bytes.
func TestARecordOfSingleBytesIsSmall(t *testing.T) {
	r := newRecord(nil)
	out, errs := r.writer(wire.ChannelOut), r.writer(wire.ChannelErr)
	for range 2 * logSize {
		out.Write([]byte{'o'})
	}
	require.LessOrEqual(t, len(r.pieces), logSize/smallPiece+1)
	o, _, _ := collect(r, 0)
	require.Len(t, o, logSize)
	for range logSize {
		out.Write([]byte{'o'})
		errs.Write([]byte{'e'})
	}
	require.LessOrEqual(t, len(r.pieces), maxPieces)
	require.LessOrEqual(t, cap(r.pieces), 4*maxPieces)
	o, e, _ := collect(r, 0)
	require.Equal(t, maxPieces, len(o)+len(e))
}

func TestAWorkloadThatFloodsItsOutputGoesOn(t *testing.T) {
	c := newGuest(t).client(t)
	start(t, c, "yes | head -c 30000000; yes | head -c 30000000 >&2; echo end")
	f := follow(t, c)
	require.Zero(t, f.wait(t).Code)
	require.True(t, strings.HasSuffix(f.out.String(), "end\n"))
	late := follow(t, c)
	late.wait(t)
	require.LessOrEqual(t, len(late.out.String())+len(late.err.String()), logSize)
}
