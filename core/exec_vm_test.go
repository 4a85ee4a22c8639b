package core_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// sh makes an exec of a shell script.
func sh(script string) core.Exec { return core.Exec{Args: []string{"/bin/sh", "-c", script}} }

func TestExecPassesEnvironmentDirectoryAndUser(t *testing.T) {
	vm := vmtest.Shared(t)
	for _, c := range []struct {
		name string
		req  core.Exec
		want string
	}{
		{"a program is found in the image's PATH", core.Exec{Args: []string{"echo", "a b", "", "c"}}, "a b  c\n"},
		{"environment", core.Exec{Args: []string{"sh", "-c", "echo $A-$B"}, Env: []string{"A=1", "B=x y"}}, "1-x y\n"},
		{"environment replaces the image's", core.Exec{Args: []string{"/bin/sh", "-c", "echo $PATH"}, Env: []string{"PATH=/nowhere"}}, "/nowhere\n"},
		{"directory", core.Exec{Args: []string{"pwd"}, Dir: "/etc"}, "/etc\n"},
		{"root is the default user", core.Exec{Args: []string{"sh", "-c", "id -u; echo $HOME"}}, "0\n/root\n"},
		{"user by name", core.Exec{Args: []string{"sh", "-c", "id -u; id -g; echo $HOME"}, User: "user"}, "1000\n1000\n/home/user\n"},
		{"user by number", core.Exec{Args: []string{"id", "-un"}, User: "1000"}, "user\n"},
		{"user and group", core.Exec{Args: []string{"sh", "-c", "id -u; id -g"}, User: "user:nogroup"}, "1000\n65534\n"},
		{"a number need not be in the image", core.Exec{Args: []string{"sh", "-c", "id -u; id -g"}, User: "4242:4343"}, "4242\n4343\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := vm.Run(t.Context(), c.req)
			require.NoError(t, err)
			require.Equal(t, c.want, string(out.Stdout), "stderr: %s", out.Stderr)
			require.Zero(t, out.Code)
		})
	}
}

func TestExecErrorsNameWhatIsMissing(t *testing.T) {
	vm := vmtest.Shared(t)
	for _, c := range []struct {
		name string
		req  core.Exec
		code core.Code
		says string
	}{
		{"no arguments", core.Exec{}, core.ErrInvalidArgument, ""},
		{"no such program in PATH", core.Exec{Args: []string{"no-such-program"}}, core.ErrCommandNotFound, "no-such-program"},
		{"no such program", core.Exec{Args: []string{"/bin/no-such-program"}}, core.ErrCommandNotFound, "/bin/no-such-program"},
		{"a file that is not executable", core.Exec{Args: []string{"/etc/passwd"}}, core.ErrNotExecutable, "/etc/passwd"},
		{"a directory", core.Exec{Args: []string{"/etc"}}, core.ErrNotExecutable, "/etc"},
		{"no such working directory", core.Exec{Args: []string{"true"}, Dir: "/no/such/dir"}, core.ErrNotFound, "/no/such/dir"},
		{"no such user", core.Exec{Args: []string{"true"}, User: "nosuchuser"}, core.ErrNotFound, "nosuchuser"},
		{"no such group", core.Exec{Args: []string{"true"}, User: "user:nosuchgroup"}, core.ErrNotFound, "nosuchgroup"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := vm.Exec(t.Context(), c.req)
			require.ErrorIs(t, err, c.code)
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, err, vm.ID(), "the error names the VM")
		})
	}
}

func TestExecTellsHowAProgramEnded(t *testing.T) {
	vm := vmtest.Shared(t)
	out, err := vm.Run(t.Context(), sh("echo out; echo err >&2; exit 7"))
	require.NoError(t, err)
	require.Equal(t, "out\n", string(out.Stdout))
	require.Equal(t, "err\n", string(out.Stderr))
	require.Equal(t, 7, out.Code)
	require.Zero(t, out.Signal)

	out, err = vm.Run(t.Context(), sh("kill -USR1 $$"))
	require.NoError(t, err)
	require.Equal(t, syscall.SIGUSR1, out.Signal)
	require.Equal(t, 128+10, out.Code)
	require.False(t, out.TimedOut)
}

func TestExecSignalsAndKills(t *testing.T) {
	vm := vmtest.Shared(t)
	// The script says when its trap is set.
	r, w := io.Pipe()
	req := sh("trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.1; done")
	req.Stdout = w
	p, err := vm.Exec(t.Context(), req)
	require.NoError(t, err)
	require.Positive(t, p.PID())
	lines := newLines(r)
	require.Equal(t, "ready", lines.next(t))
	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.Equal(t, "got it", lines.next(t))
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, 3, st.Code)

	p, err = vm.Exec(t.Context(), sh("sleep 1000"))
	require.NoError(t, err)
	require.NoError(t, p.Kill())
	st, err = p.Wait()
	require.NoError(t, err)
	require.Equal(t, syscall.SIGKILL, st.Signal)
	require.NoError(t, p.Signal(syscall.SIGTERM), "a signal to an ended program does nothing")
}

func TestExecTimeoutKillsTheWholeGroup(t *testing.T) {
	vm := vmtest.Shared(t)
	req := sh("sleep 4711 & sleep 4711")
	req.Timeout = 300 * time.Millisecond
	out, err := vm.Run(t.Context(), req)
	require.NoError(t, err)
	require.True(t, out.TimedOut)
	require.Equal(t, syscall.SIGKILL, out.Signal)
	requireNoProcess(t, vm, "4711")
}

func TestCancelledContextKillsTheWholeGroup(t *testing.T) {
	vm := vmtest.Shared(t)
	ctx, cancel := context.WithCancel(t.Context())
	p, err := vm.Exec(ctx, sh("sleep 4712 & sleep 4712"))
	require.NoError(t, err)
	cancel()
	_, err = p.Wait()
	require.ErrorIs(t, err, core.ErrCanceled)
	require.ErrorIs(t, err, context.Canceled)
	requireNoProcess(t, vm, "4712")
}

// requireNoProcess waits until no process of the VM is a sleep of that many seconds; being killed takes its moment.
func requireNoProcess(t *testing.T, vm *core.VM, seconds string) {
	t.Helper()
	eventually(t, func() bool { return vmtest.Shell(t, vm, sleepers(seconds)) == "" }, "sleep %s still runs", seconds)
}

// sleepers is a script that prints the IDs of the processes that sleep so many seconds, but not its own.
func sleepers(seconds string) string {
	return fmt.Sprintf(`cd /proc; for p in [0-9]*; do [ "$(tr '\0' ' ' 2>/dev/null <$p/cmdline)" = 'sleep %s ' ] && echo $p; done 2>/dev/null; :`, seconds)
}

func TestExecResultComesWithTheProgramsExit(t *testing.T) {
	vm := vmtest.Shared(t)
	t.Run("a background child that keeps the pipes does not delay it", func(t *testing.T) {
		out, err := vm.Run(t.Context(), sh("echo before; sleep 4713 & exit 5"))
		require.NoError(t, err)
		require.Equal(t, 5, out.Code)
		require.Equal(t, "before\n", string(out.Stdout))
		require.True(t, out.Truncated)
		require.Equal(t, "1", vmtest.Shell(t, vm, "("+sleepers("4713")+") | tee /tmp/pids | wc -l; kill $(cat /tmp/pids)"), "the child lives on")
	})
	t.Run("a background child with streams of its own is no truncation", func(t *testing.T) {
		out, err := vm.Run(t.Context(), sh("sleep 4714 >/dev/null 2>&1 </dev/null & echo done"))
		require.NoError(t, err)
		require.False(t, out.Truncated)
		require.Equal(t, "done\n", string(out.Stdout))
		require.Equal(t, "1", vmtest.Shell(t, vm, "("+sleepers("4714")+") | tee /tmp/pids | wc -l; kill $(cat /tmp/pids)"), "the child lives on")
	})
	t.Run("an open stdin does not delay it", func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		req := sh("head -n 1; exit 4")
		req.Stdin = r
		var out bytes.Buffer
		req.Stdout = &out
		p, err := vm.Exec(t.Context(), req)
		require.NoError(t, err)
		_, err = io.WriteString(w, "a line\n")
		require.NoError(t, err)
		st, err := p.Wait()
		require.NoError(t, err)
		require.Equal(t, 4, st.Code)
		require.Equal(t, "a line\n", out.String())
	})
	t.Run("a stdin that is never read does not delay it", func(t *testing.T) {
		req := core.Exec{Args: []string{"true"}, Stdin: endless{}}
		out, err := vm.Run(t.Context(), req)
		require.NoError(t, err)
		require.Zero(t, out.Code)
	})
}

// endless is a reader without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestExecWithoutStdinReadsNothing(t *testing.T) {
	require.Equal(t, "0", vmtest.Shell(t, vmtest.Shared(t), "cat | wc -c"))
}

func Test64MegabytesPassThroughAProgramUnchanged(t *testing.T) {
	vm := vmtest.Shared(t)
	const size = 64_000_000
	sent, got := newPattern(size), newPattern(size)
	p, err := vm.Exec(t.Context(), core.Exec{Args: []string{"cat"}, Stdin: sent, Stdout: got})
	require.NoError(t, err)
	st, err := p.Wait()
	require.NoError(t, err)
	require.Zero(t, st.Code)
	require.Zero(t, sent.left)
	require.Zero(t, got.left)
}

// pattern is a stream of random bytes that repeat after a number of bytes which is no block's size: as a reader it yields them, as a
// writer it takes nothing else. It costs little, as an emulated host's CPU is slow.
type pattern struct {
	block, rest []byte
	left        int
}

func newPattern(size int) *pattern {
	block := make([]byte, 65521)
	rand.NewChaCha8([32]byte{1}).Read(block)
	return &pattern{block: block, left: size}
}

// chunk returns the next bytes, at most n of them.
func (p *pattern) chunk(n int) []byte {
	if len(p.rest) == 0 {
		p.rest = p.block
	}
	n = min(n, p.left, len(p.rest))
	c := p.rest[:n]
	p.rest = p.rest[n:]
	p.left -= n
	return c
}

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	return copy(b, p.chunk(len(b))), nil
}

func (p *pattern) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		want := p.chunk(len(b) - n)
		if len(want) == 0 || !bytes.Equal(want, b[n:n+len(want)]) {
			return n, fmt.Errorf("the stream differs with %d bytes to go", p.left)
		}
		n += len(want)
	}
	return len(b), nil
}

func TestFailingWriterIsReportedAndLeavesTheVMUsable(t *testing.T) {
	vm := vmtest.Shared(t)
	req := sh("head -c 1000000 /dev/zero")
	req.Stdout = brokenWriter{}
	p, err := vm.Exec(t.Context(), req)
	require.NoError(t, err)
	_, err = p.Wait()
	require.ErrorIs(t, err, io.ErrClosedPipe)
	require.Equal(t, "fine", vmtest.Shell(t, vm, "echo fine"))
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestExecOnATerminal(t *testing.T) {
	vm := vmtest.Shared(t)
	req := sh("tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; ls -l /dev/fd/2 >/dev/null && echo err >&2")
	req.TTY, req.Rows, req.Cols = true, 42, 123
	out, err := vm.Run(t.Context(), req)
	require.NoError(t, err)
	require.Regexp(t, `^/dev/pts/\d+\r\n42 123\r\nall\r\nerr\r\n$`, string(out.Stdout))
	require.Empty(t, out.Stderr)

	req = sh("trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.1; done")
	r, w := io.Pipe()
	req.TTY, req.Stdout = true, w
	p, err := vm.Exec(t.Context(), req)
	require.NoError(t, err)
	lines := newLines(r)
	require.Equal(t, "ready", lines.next(t))
	require.NoError(t, p.Resize(7, 77))
	require.Equal(t, "7 77", lines.next(t))
	_, err = p.Wait()
	require.NoError(t, err)
}

func TestTerminalTurnsCtrlCIntoAnInterrupt(t *testing.T) {
	vm := vmtest.Shared(t)
	in, out := newPipe(), newPipe()
	req := core.Exec{Args: []string{"sh", "-c", "echo ready; cat"}, TTY: true, Stdin: in.r, Stdout: out.w}
	p, err := vm.Exec(t.Context(), req)
	require.NoError(t, err)
	require.Equal(t, "ready", newLines(out.r).next(t))
	go io.Copy(io.Discard, out.r) // the terminal echoes ^C
	_, err = in.w.Write([]byte{3})
	require.NoError(t, err)
	st, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, 130, st.Code)
}

func Test300ProgramsRunAtOnce(t *testing.T) {
	vm := vmtest.Shared(t)
	const n = 300
	var wg sync.WaitGroup
	failed := make([]error, n)
	for i := range n {
		wg.Go(func() {
			text := strings.Repeat(fmt.Sprintf("line %d\n", i), 100)
			out, err := vm.Run(t.Context(), core.Exec{Args: []string{"sh", "-c", "cat; exit $1", "x", fmt.Sprint(i % 256)}, Stdin: strings.NewReader(text)})
			switch {
			case err != nil:
				failed[i] = err
			case out.Code != i%256 || string(out.Stdout) != text:
				failed[i] = fmt.Errorf("program %d ended with %d and %d bytes of output: %s", i, out.Code, len(out.Stdout), out.Stderr)
			}
		})
	}
	wg.Wait()
	for _, err := range failed {
		require.NoError(t, err)
	}
}

func TestWorkloadNeitherSeesNorKillsTheAgent(t *testing.T) {
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 128})
	require.Equal(t, "1", vmtest.Shell(t, vm, `grep -l '[s]upermachine-init' /proc/[0-9]*/cmdline | wc -l`), "only the container's own PID 1")
	require.Equal(t, "1 0", vmtest.Shell(t, vm, `awk '/^(Pid|PPid):/ { printf "%s%s", sep, $2; sep = " " }' /proc/1/status`))
	// Everything that can be killed from within, the container's PID 1 ignores the rest.
	out, err := vm.Run(t.Context(), sh("kill -9 1; kill -TERM 1; kill -9 -1; sleep 0.1; echo alive"))
	require.NoError(t, err)
	require.Equal(t, "alive\n", string(out.Stdout))
	// Of the agent's descriptors, none is inherited.
	require.Equal(t, "0 1 2 3", vmtest.Shell(t, vm, "cd /proc/self/fd && echo *"), "3 is the directory that the shell reads")
	// It cannot be reached over its sockets either: the workload has no business with the host's address.
	require.Equal(t, "still here", vmtest.Shell(t, vm, "echo still here"))
}
