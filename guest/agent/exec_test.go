package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

func TestProgramsRunAsAsked(t *testing.T) {
	c := newGuest(t).client(t)
	for name, test := range map[string]struct {
		req            agent.ExecRequest
		stdout, stderr string
		code           int
		signal         syscall.Signal
	}{
		"both streams and a status": {req: sh("echo out; echo err >&2; exit 3"), stdout: "out\n", stderr: "err\n", code: 3},
		"death by signal":           {req: sh("kill -TERM $$"), code: 143, signal: syscall.SIGTERM},
		"path with a slash":         {req: agent.ExecRequest{Args: []string{"/bin/echo", "a b", ""}}, stdout: "a b \n"},
		"relative to the directory": {req: agent.ExecRequest{Args: []string{"./echo", "x"}, Dir: "/bin"}, stdout: "x\n"},
		"directory":                 {req: agent.ExecRequest{Args: []string{"pwd"}, Dir: "/home/app"}, stdout: "/home/app\n"},
		"default directory":         {req: sh("pwd"), stdout: "/\n"},
		"image's environment":       {req: sh("echo $FROM"), stdout: "image\n"},
		"own environment": {
			req:    agent.ExecRequest{Args: []string{"env"}, Env: []string{"FROM=me", "A=\xff=\n1", "PATH=/bin", "HOME=/x", "A=2"}},
			stdout: "PATH=/bin\nHOME=/x\nFROM=me\nA=2\n",
		},
		"bytes that are no text": {req: agent.ExecRequest{Args: []string{"sh", "-c", "echo \"$A\""}, Env: []string{"A=\xff\x01="}}, stdout: "\xff\x01=\n"},
		"root":                   {req: sh("id; echo $HOME"), stdout: "uid=0(root) gid=0(root)\n/root\n"},
		"user by name": {
			req:    agent.ExecRequest{Args: []string{"sh", "-c", "id; echo $HOME"}, User: "app"},
			stdout: "uid=1000(app) gid=100(users) groups=44(video),45(audio)\n/home/app\n",
		},
		"user by number":        {req: agent.ExecRequest{Args: []string{"id"}, User: "1000"}, stdout: "uid=1000(app) gid=100(users) groups=44(video),45(audio)\n"},
		"user without account":  {req: agent.ExecRequest{Args: []string{"sh", "-c", "id; echo $HOME"}, User: "4242:4243"}, stdout: "uid=4242 gid=4243\n/\n"},
		"user and group":        {req: agent.ExecRequest{Args: []string{"id"}, User: "app:video"}, stdout: "uid=1000(app) gid=44(video)\n"},
		"empty stdin":           {req: sh("cat; echo end"), stdout: "end\n"},
		"stdin":                 {req: agent.ExecRequest{Args: []string{"cat"}, Stdin: strings.NewReader("hello")}, stdout: "hello"},
		"stdin nobody reads":    {req: agent.ExecRequest{Args: []string{"true"}, Stdin: bytes.NewReader(make([]byte, 1<<20))}},
		"/dev/stdout for users": {req: agent.ExecRequest{Args: []string{"sh", "-c", "echo x >/dev/stdout"}, User: "app"}, stdout: "x\n"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := c.Run(testContext(t), test.req)
			require.NoError(t, err)
			require.Equal(t, test.stdout, string(out.Stdout))
			require.Equal(t, test.stderr, string(out.Stderr))
			require.Equal(t, test.code, out.Code)
			require.Equal(t, test.signal, out.Signal)
			require.False(t, out.Truncated)
			require.Positive(t, out.Duration)
			require.Positive(t, out.MaxRSS)
		})
	}
}

func TestProgramsThatCannotRun(t *testing.T) {
	c := newGuest(t).client(t)
	for name, test := range map[string]struct {
		req  agent.ExecRequest
		kind string
		says string
	}{
		"nothing":           {agent.ExecRequest{}, wire.KindInvalid, "no program"},
		"not in PATH":       {agent.ExecRequest{Args: []string{"nope"}}, wire.KindCommandNotFound, "nope: not found in PATH /usr/local"},
		"no such file":      {agent.ExecRequest{Args: []string{"/bin/nope"}}, wire.KindCommandNotFound, "/bin/nope: not found"},
		"not executable":    {agent.ExecRequest{Args: []string{"notexec"}}, wire.KindNotExecutable, "notexec"},
		"a directory":       {agent.ExecRequest{Args: []string{"/bin"}}, wire.KindNotExecutable, "/bin"},
		"no interpreter":    {agent.ExecRequest{Args: []string{"nointerpreter"}}, wire.KindCommandNotFound, "nointerpreter: no such file"},
		"no directory":      {agent.ExecRequest{Args: []string{"true"}, Dir: "/nope"}, wire.KindNotFound, "working directory /nope"},
		"file as directory": {agent.ExecRequest{Args: []string{"true"}, Dir: "/etc/passwd"}, wire.KindNotFound, "not a directory"},
		"relative dir":      {agent.ExecRequest{Args: []string{"true"}, Dir: "bin"}, wire.KindInvalid, "not an absolute path"},
		"no user":           {agent.ExecRequest{Args: []string{"true"}, User: "nobody"}, wire.KindNotFound, `user "nobody"`},
		"no group":          {agent.ExecRequest{Args: []string{"true"}, User: "app:nope"}, wire.KindNotFound, `group "nope"`},
		"NUL":               {agent.ExecRequest{Args: []string{"echo", "a\x00b"}}, wire.KindInvalid, "NUL"},
		"bad environment":   {agent.ExecRequest{Args: []string{"true"}, Env: []string{"novalue"}}, wire.KindInvalid, "NAME=value"},
		"argument too long": {agent.ExecRequest{Args: []string{"true", strings.Repeat("x", 200<<10)}}, wire.KindInvalid, "argument list too long"},
		"escape sequences":  {agent.ExecRequest{Args: []string{"\x1b[31mred"}}, wire.KindCommandNotFound, "\uFFFD[31mred"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.Run(testContext(t), test.req)
			var e *agent.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, test.kind, e.Kind)
			require.Contains(t, e.Message, test.says)
			require.Less(t, len(e.Message), 2000)
		})
	}
	_, err := c.Run(testContext(t), agent.ExecRequest{Args: []string{"true", strings.Repeat("x", 2<<20)}})
	require.ErrorIs(t, err, wire.ErrTooLarge)
	require.Equal(t, "still here\n", string(run(t, c, "echo still here").Stdout))
}

func TestThePIDIsTheContainers(t *testing.T) {
	c := newGuest(t).client(t)
	var out bytes.Buffer
	p, err := c.Exec(testContext(t), agent.ExecRequest{Args: []string{"sh", "-c", "echo $$"}, Stdout: &out})
	require.NoError(t, err)
	_, err = p.Wait()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintln(p.PID()), out.String())
}

// A background child keeps the pipes open; it may go on writing, to nowhere.
func TestABackgroundChildDoesNotDelayTheResult(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	out := run(t, c, "echo before; (while echo late; do echo x >>/tmp/log; sleep 0.02; done) & echo after")
	require.True(t, out.Truncated)
	require.Contains(t, string(out.Stdout), "before\n")
	require.Contains(t, string(out.Stdout), "after\n")
	size := func() int64 {
		info, err := os.Stat(filepath.Join(g.root, "tmp/log"))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	then := size()
	eventually(t, func() bool { return size() > then+8 }, "the child must survive its lost output")
}

func TestAllOutputOfAnEndedProgramArrives(t *testing.T) {
	c := newGuest(t).client(t)
	// A pipe's worth is still unread when the program ends.
	out := run(t, c, "head -c 60000 /dev/zero; (sleep 100 >/dev/null 2>&1 &)")
	require.Len(t, out.Stdout, 60000)
	require.False(t, out.Truncated)
	out = run(t, c, "head -c 60000 /dev/zero; sleep 100 &")
	require.Len(t, out.Stdout, 60000)
	require.True(t, out.Truncated)
}

func TestAnOpenStdinDoesNotDelayTheResult(t *testing.T) {
	c := newGuest(t).client(t)
	r, w := io.Pipe()
	defer w.Close()
	out, err := c.Run(testContext(t), agent.ExecRequest{Args: []string{"echo", "done"}, Stdin: r})
	require.NoError(t, err)
	require.Equal(t, "done\n", string(out.Stdout))
}

func TestATimeoutKillsTheSession(t *testing.T) {
	c := newGuest(t).client(t)
	req := sh("trap '' TERM INT HUP; set -m; sleep 1111 & sh -c 'trap \"\" TERM; sleep 1112' & while true; do sleep 1113; done")
	req.Timeout = 100 * time.Millisecond
	out, err := c.Run(testContext(t), req)
	require.NoError(t, err)
	require.True(t, out.TimedOut)
	require.Equal(t, syscall.SIGKILL, out.Signal)
	require.Equal(t, 137, out.Code)
	eventually(t, func() bool { return processes(t, c, "sleep 111") == 0 }, "children in groups of their own must die too")

	req = sh("exit 4")
	req.Timeout = time.Minute
	out, err = c.Run(testContext(t), req)
	require.NoError(t, err)
	require.False(t, out.TimedOut)
	require.Equal(t, 4, out.Code)
}

func TestSignals(t *testing.T) {
	c := newGuest(t).client(t)
	var out lockedBuffer
	p, err := c.Exec(testContext(t), agent.ExecRequest{
		Args: []string{"sh", "-c", "trap 'echo got' USR1; trap 'exit 7' TERM; echo ready; while true; do sleep 0.01; done"}, Stdout: &out,
	})
	require.NoError(t, err)
	eventually(t, func() bool { return out.String() == "ready\n" }, "start")
	require.NoError(t, p.Signal(syscall.SIGUSR1))
	eventually(t, func() bool { return out.String() == "ready\ngot\n" }, "signal")
	require.NoError(t, p.Signal(syscall.SIGTERM))
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, 7, st.Code)
	require.NoError(t, p.Signal(syscall.SIGTERM), "after the end a signal does nothing")
}

func TestKillEndsTheGroup(t *testing.T) {
	c := newGuest(t).client(t)
	p, err := c.Exec(testContext(t), sh("sleep 2221 & sleep 2222 & wait"))
	require.NoError(t, err)
	eventually(t, func() bool { return processes(t, c, "sleep 222") == 2 }, "start")
	require.NoError(t, p.Kill())
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGKILL, st.Signal)
	eventually(t, func() bool { return processes(t, c, "sleep 222") == 0 }, "children must die too")
}

func TestCancelingKills(t *testing.T) {
	c := newGuest(t).client(t)
	ctx, cancel := context.WithCancel(testContext(t))
	p, err := c.Exec(ctx, sh("sleep 3331"))
	require.NoError(t, err)
	eventually(t, func() bool { return processes(t, c, "sleep 3331") == 1 }, "start")
	cancel()
	_, err = p.Wait()
	require.ErrorIs(t, err, context.Canceled)
	eventually(t, func() bool { return processes(t, c, "sleep 3331") == 0 }, "end")
	_, err = c.Exec(ctx, sh("true"))
	require.ErrorIs(t, err, context.Canceled)
}

func TestHundredsAtOnce(t *testing.T) {
	c := newGuest(t).client(t)
	var wg sync.WaitGroup
	errs := make(chan error, 300)
	for i := range 300 {
		wg.Go(func() {
			want := fmt.Sprintf("%d in\n", i)
			req := sh(fmt.Sprintf("echo %d $(cat)", i))
			req.Stdin = strings.NewReader("in")
			out, err := c.Run(testContext(t), req)
			if err == nil && string(out.Stdout) != want {
				err = fmt.Errorf("%q instead of %q", out.Stdout, want)
			}
			errs <- err
		})
	}
	wg.Wait()
	for range 300 {
		require.NoError(t, <-errs)
	}
	info, err := c.Info(testContext(t))
	require.NoError(t, err)
	require.Zero(t, info.Execs)
}

// blocking is a writer that takes nothing until it is released.
type blocking struct{ release chan struct{} }

func (b blocking) Write(p []byte) (int, error) {
	<-b.release
	return len(p), nil
}

func TestASlowReaderHoldsUpOnlyItself(t *testing.T) {
	c := newGuest(t).client(t)
	slow := blocking{make(chan struct{})}
	p, err := c.Exec(testContext(t), agent.ExecRequest{Args: []string{"yes"}, Stdout: slow})
	require.NoError(t, err)
	for range 20 {
		require.Equal(t, "quick\n", string(run(t, c, "echo quick").Stdout))
	}
	require.NoError(t, p.Kill())
	close(slow.release)
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGKILL, st.Signal)
}

func TestMuchDataBothWays(t *testing.T) {
	c := newGuest(t).client(t)
	const size = 100 << 20
	random := rand.New(rand.NewSource(1))
	want, got := sha256.New(), sha256.New()
	st := execute(t, c, agent.ExecRequest{Args: []string{"cat"}, Stdin: io.TeeReader(io.LimitReader(random, size), want), Stdout: got})
	require.Zero(t, st.Code)
	require.Equal(t, want.Sum(nil), got.Sum(nil))
}

func execute(t *testing.T, c *agent.Client, req agent.ExecRequest) agent.ExitStatus {
	t.Helper()
	p, err := c.Exec(testContext(t), req)
	require.NoError(t, err)
	st, err := p.Wait()
	require.NoError(t, err)
	return st
}

func TestFailingStreamsAreReported(t *testing.T) {
	c := newGuest(t).client(t)
	broken := errors.New("broken")
	p, err := c.Exec(testContext(t), agent.ExecRequest{
		Args: []string{"sh", "-c", "cat; head -c 1000000 /dev/zero"}, Stdin: failing{broken}, Stdout: failing{broken},
	})
	require.NoError(t, err)
	st, err := p.Wait()
	require.ErrorIs(t, err, broken)
	require.Zero(t, st.Code, "the program itself could go on")
}

type failing struct{ err error }

func (e failing) Read([]byte) (int, error)  { return 0, e.err }
func (e failing) Write([]byte) (int, error) { return 0, e.err }

func TestOutputIsCollectedUpToALimit(t *testing.T) {
	c := newGuest(t).client(t)
	out, err := c.Run(testContext(t), agent.ExecRequest{Args: []string{"yes"}})
	require.ErrorIs(t, err, agent.ErrOutputTooLarge)
	require.LessOrEqual(t, len(out.Stdout), agent.MaxOutput)
	eventually(t, func() bool { return processes(t, c, "yes") == 0 }, "it is killed")
}

func TestPipes(t *testing.T) {
	c := newGuest(t).client(t)
	p, err := c.Exec(testContext(t), agent.ExecRequest{Args: []string{"sh", "-c", "read a; echo got $a; echo err >&2; cat"}, Pipes: true})
	require.NoError(t, err)
	_, err = io.WriteString(p.Stdin, "line\n")
	require.NoError(t, err)
	b := make([]byte, len("got line\n"))
	_, err = io.ReadFull(p.Stdout, b)
	require.NoError(t, err)
	require.Equal(t, "got line\n", string(b))
	_, err = io.WriteString(p.Stdin, "rest")
	require.NoError(t, err)
	require.NoError(t, p.Stdin.Close())
	st, err := p.Wait()
	require.NoError(t, err)
	require.Zero(t, st.Code)
	rest, err := io.ReadAll(p.Stdout)
	require.NoError(t, err)
	require.Equal(t, "rest", string(rest))
	rest, err = io.ReadAll(p.Stderr)
	require.NoError(t, err)
	require.Equal(t, "err\n", string(rest))
	_, err = p.Stdin.Write([]byte("x"))
	require.ErrorIs(t, err, io.ErrClosedPipe)

	p, err = c.Exec(testContext(t), agent.ExecRequest{Args: []string{"head", "-c", "10000000", "/dev/zero"}, Pipes: true})
	require.NoError(t, err)
	require.NoError(t, p.Stdout.Close())
	_, err = p.Wait()
	require.NoError(t, err, "a closed pipe does not stop the program")
}

func TestTheEndOfTheConnectionEndsItsPrograms(t *testing.T) {
	g := newGuest(t)
	watch := g.client(t)
	conn := g.dial(t)
	c, err := agent.NewClient(conn)
	require.NoError(t, err)
	var running []*agent.Process
	for i := range 10 {
		r, w := io.Pipe()
		p, err := c.Exec(testContext(t), agent.ExecRequest{Args: []string{"sleep", "4441"}, Stdin: r, TTY: i%2 == 0})
		require.NoError(t, err)
		w.Close()
		running = append(running, p)
	}
	conn.Close() // in the middle of everything
	<-c.Done()
	require.ErrorIs(t, c.Err(), agent.ErrClosed)
	require.ErrorIs(t, c.Ping(testContext(t)), agent.ErrClosed)
	for _, p := range running {
		_, err := p.Wait()
		require.ErrorIs(t, err, agent.ErrClosed)
		require.ErrorIs(t, p.Signal(syscall.SIGTERM), agent.ErrClosed)
	}
	eventually(t, func() bool { return processes(t, watch, "sleep 4441") == 0 }, "programs")
	eventually(t, func() bool { return streamGoroutines() == 0 }, "goroutines")
}

// streamGoroutines returns how many goroutines serve a request, on either end.
func streamGoroutines() int {
	b := make([]byte, 4<<20)
	n := 0
	for _, stack := range strings.Split(string(b[:runtime.Stack(b, true)]), "\n\n") {
		for _, of := range []string{"(*stream)", "(*stdio)", "(*output)", "(*Process)"} {
			if strings.Contains(stack, of) {
				n++
				break
			}
		}
	}
	return n
}

// lockedBuffer is a bytes.Buffer that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
