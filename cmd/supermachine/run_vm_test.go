package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/instances"
	"github.com/supermachine/supermachine/core/vmtest"
)

// background starts a busybox VM named after the test whose command sleeps, and stops it at the test's end.
func background(t *testing.T, name string, flags ...string) {
	t.Helper()
	vmtest.RequireKVM(t)
	args := append([]string{"run", "-d", "--name", name}, flags...)
	id := succeed(t, append(args, image(t, "busybox"), "sleep", "1000000")...)
	t.Cleanup(func() { cli(t, "stop", "--force", name) })
	require.Regexp(t, "^[0-9a-f]+$", id)
}

func TestRunBehavesLikeTheProgramItself(t *testing.T) {
	vmtest.RequireKVM(t)
	busybox := image(t, "busybox")
	out := cliWith(t, strings.NewReader("input"), "run", "-i", "--name", "box", "--cpus", "2", "--memory", "300m",
		"-e", "GIVEN=a b", "-w", "/etc", "-u", "1000:1000", "--entrypoint", "/bin/sh", busybox, "-c",
		`cat; echo; hostname; nproc; echo "$GIVEN"; pwd; id -u; echo problem >&2; awk '/MemTotal/ { print ($2 < 307200), ($2 > 204800) }' /proc/meminfo; exit 7`)
	require.Equal(t, 7, out.status, out.stderr)
	require.Equal(t, "input\nbox\n2\na b\n/etc\n1000\n1 1\n", out.stdout)
	require.Contains(t, out.stderr, "problem\n")

	out = cli(t, "run", "--rm", "-q", busybox, "true")
	require.Equal(t, output{}, out, "a program that says nothing leaves nothing on the terminal")

	out = cli(t, "run", "-q", busybox, "no-such-program")
	require.Equal(t, exitNotFound, out.status)
	require.Contains(t, out.stderr, "no-such-program")

	out = cli(t, "run", "-q", "--timeout", "100ms", busybox, "sleep", "1000000")
	require.Equal(t, exitTimeout, out.status)
}

func TestExecBehavesLikeTheProgramItself(t *testing.T) {
	background(t, "exec")
	for _, tt := range []struct {
		args   string
		status int
	}{
		{"true", 0},
		{"false", 1},
		{"/bin/sh -c :", 0},
		{"/etc/passwd", exitNotExecutable},
		{"/no/such/program", exitNotFound},
		{"no-such-program", exitNotFound},
	} {
		require.Equal(t, tt.status, cli(t, append([]string{"exec", "exec"}, strings.Fields(tt.args)...)...).status, tt.args)
	}
	require.Equal(t, 42, cli(t, "exec", "exec", "sh", "-c", "exit 42").status)
	require.Equal(t, 128+9, cli(t, "exec", "exec", "sh", "-c", "kill -9 $$").status)
	require.Equal(t, exitTimeout, cli(t, "exec", "--timeout", "100ms", "exec", "sleep", "1000000").status)
	require.Equal(t, exitFailure, cli(t, "exec", "-u", "nobody-here", "exec", "true").status)
	require.Equal(t, exitFailure, cli(t, "exec", "-t", "-i", "exec", "true").status, "-t and -i without a terminal")

	out := cliWith(t, strings.NewReader("from outside"), "exec", "-i", "exec", "sh", "-c", "cat; echo to stderr >&2")
	require.Equal(t, output{stdout: "from outside", stderr: "to stderr\n"}, out)
	require.Equal(t, output{}, cliWith(t, strings.NewReader("from outside"), "exec", "exec", "cat"), "no input without -i")

	t.Setenv("PASSED", "on")
	require.Equal(t, "on x=y /tmp 1000", succeed(t, "exec", "-e", "PASSED", "-e", "B=x=y", "-w", "/tmp", "-u", "1000", "exec",
		"sh", "-c", `echo "$PASSED $B $PWD $(id -u)"`))

	// A reader that goes away ends the program as a closed pipe would.
	cmd := command(t.Context(), "exec", "exec", "yes")
	pipe, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(pipe, make([]byte, 100))
	require.NoError(t, err)
	require.NoError(t, pipe.Close())
	require.Error(t, cmd.Wait())
}

func TestLifeInTheBackground(t *testing.T) {
	vmtest.RequireKVM(t)
	id := succeed(t, "run", "-d", "--name", "web", "-p", "80", image(t, "debian"))
	require.Equal(t, id, succeed(t, "ps", "-q"))
	var vms []instances.Info
	require.NoError(t, json.Unmarshal([]byte(succeed(t, "ps", "--json")), &vms))
	require.Len(t, vms, 1)
	require.Equal(t, "web", vms[0].Name)
	require.Len(t, vms[0].Ports, 1)
	address, _, _ := strings.Cut(vms[0].Ports[0], "->")
	require.Contains(t, succeed(t, "ps"), address)

	// nginx takes a moment to listen; until then connections are refused or closed.
	require.Eventually(t, func() bool {
		resp, err := http.Get("http://" + address + "/")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(resp.Body)
		return err == nil && resp.StatusCode == 200 && len(page) > 0
	}, time.Minute, 50*time.Millisecond)

	require.Equal(t, "web", succeed(t, "exec", id[:6], "hostname"), "the beginning of an ID will do")
	out := cli(t, "run", "-d", "-q", "--name", "web", image(t, "busybox"), "true")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "web", "the name is taken")

	require.Equal(t, "web", succeed(t, "stop", "web"))
	require.Empty(t, succeed(t, "ps", "-q"))
	require.Equal(t, exitFailure, cli(t, "exec", "web", "true").status)
	require.Equal(t, exitFailure, cli(t, "stop", "web").status)
	_, err := http.Get("http://" + address + "/")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestLogsOfABackgroundProgram(t *testing.T) {
	vmtest.RequireKVM(t)
	succeed(t, "run", "-d", "--name", "talker", image(t, "busybox"), "sh", "-c", "echo out; echo err >&2; sleep 1000000")
	defer cli(t, "stop", "--force", "talker")
	require.Eventually(t, func() bool { return len(succeed(t, "logs", "talker")) == len("out\nerr") }, time.Minute, 20*time.Millisecond)
	require.ElementsMatch(t, []string{"out", "err"}, strings.Fields(succeed(t, "logs", "talker")))
}

func TestBackgroundProgramThatCannotStart(t *testing.T) {
	vmtest.RequireKVM(t)
	out := cli(t, "run", "-d", "-q", image(t, "busybox"), "no-such-program")
	require.Equal(t, exitNotFound, out.status)
	require.Contains(t, out.stderr, "no-such-program")
	require.Empty(t, out.stdout)
	require.Empty(t, succeed(t, "ps", "-q"))
}

// started is a command line whose program has written "ready".
type started struct {
	*exec.Cmd
	stderr bytes.Buffer
}

func start(t *testing.T, args ...string) *started {
	t.Helper()
	s := &started{Cmd: command(t.Context(), args...)}
	s.Cmd.Stderr = &s.stderr
	r, w, err := os.Pipe()
	require.NoError(t, err)
	s.Cmd.Stdout = w
	require.NoError(t, s.Start())
	w.Close()
	t.Cleanup(func() { r.Close() })
	ready := make([]byte, len("ready\n"))
	_, err = io.ReadFull(r, ready)
	require.NoError(t, err, s.stderr.String())
	require.Equal(t, "ready\n", string(ready))
	return s
}

func (s *started) status() int {
	s.Wait()
	return s.ProcessState.ExitCode()
}

func TestSignalsGoToTheProgram(t *testing.T) {
	background(t, "signals")
	for sig, name := range map[syscall.Signal]string{
		syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGUSR1: "USR1", syscall.SIGQUIT: "QUIT",
	} {
		p := start(t, "exec", "signals", "sh", "-c", "trap 'exit 33' "+name+"; echo ready; while :; do sleep 0.05; done")
		require.NoError(t, p.Process.Signal(sig))
		require.Equal(t, 33, p.status(), name)
	}
	p := start(t, "exec", "signals", "sh", "-c", "echo ready; exec sleep 1000000")
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 128+15, p.status(), "a program that a signal ended")
	require.Equal(t, "0", succeed(t, "exec", "signals", "sh", "-c", "pidof -x yes | wc -w"))
}

func TestInterruptedRun(t *testing.T) {
	vmtest.RequireKVM(t)
	p := start(t, "run", "-q", image(t, "busybox"), "sh", "-c", "trap 'exit 5' INT; echo ready; while :; do sleep 0.05; done")
	require.NoError(t, p.Process.Signal(syscall.SIGINT))
	require.Equal(t, 5, p.status(), p.stderr.String())

	p = start(t, "run", "-q", image(t, "busybox"), "sh", "-c", "trap '' INT TERM; echo ready; while :; do sleep 0.05; done")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Wait()
	}()
	for sent := 0; ; sent++ { // signals that arrive together count once
		select {
		case <-ended:
			require.GreaterOrEqual(t, sent, impatience)
			require.NotZero(t, p.ProcessState.ExitCode())
			require.Empty(t, succeed(t, "ps", "-q"))
			return
		case <-time.After(100 * time.Millisecond):
			p.Process.Signal(syscall.SIGINT)
		}
	}
}

// TestKilledOwnerTakesItsVMAlong: nothing of a VM outlives its process, and the list of VMs forgets it.
func TestKilledOwnerTakesItsVMAlong(t *testing.T) {
	vmtest.RequireKVM(t)
	p := start(t, "run", "-q", "--name", "orphan", image(t, "busybox"), "sh", "-c", "echo ready; exec sleep 1000000")
	require.Contains(t, succeed(t, "ps"), "orphan")
	require.NoError(t, p.Process.Kill())
	require.Equal(t, -1, p.status())
	require.Equal(t, "[]", succeed(t, "ps", "--json"))
	out := cli(t, "exec", "orphan", "true")
	require.Equal(t, exitFailure, out.status)
	succeed(t, "run", "-q", "--name", "orphan", image(t, "busybox"), "true")
}

func TestTerminal(t *testing.T) {
	background(t, "terminal")
	cmd := command(t.Context(), "exec", "-it", "terminal", "sh")
	cmd.Env = append(cmd.Env, "TERM=xterm-test")
	master, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 41, Cols: 133})
	require.NoError(t, err)
	defer master.Close()
	screen := &terminal{t: t, master: master, process: cmd.Process}
	screen.write("stty size; echo $TERM; tty\n")
	screen.await("41 133")
	screen.await("xterm-test")
	screen.await("/dev/pts/")

	require.NoError(t, pty.Setsize(master, &pty.Winsize{Rows: 20, Cols: 70}))
	screen.write("until [ \"$(stty size)\" = '20 70' ]; do sleep 0.05; done; echo re''sized\n")
	screen.await("resized")

	screen.write("sh -c \"echo 'run''ning'; sleep 1000000\"\n")
	screen.await("running\r\n")
	screen.write("\x03") // Ctrl-C interrupts the program inside, not us
	screen.write("echo still''here\n")
	screen.await("stillhere")
	screen.write("exit 9\n")
	cmd.Wait()
	require.Equal(t, 9, cmd.ProcessState.ExitCode())
}

// terminal is what a person at a terminal sees.
type terminal struct {
	t       *testing.T
	master  *os.File
	process *os.Process
	seen    []byte
}

func (s *terminal) write(text string) {
	_, err := s.master.WriteString(text)
	require.NoError(s.t, err)
}

// await reads until text has been on the screen.
func (s *terminal) await(text string) {
	s.t.Helper()
	// The library leaves the terminal in blocking mode, where there are no deadlines: a stuck program is hung up.
	defer time.AfterFunc(time.Minute, func() { s.process.Kill() }).Stop()
	for !bytes.Contains(s.seen, []byte(text)) {
		buf := make([]byte, 4<<10)
		n, err := s.master.Read(buf)
		s.seen = append(s.seen, buf[:n]...)
		require.NoError(s.t, err, "waiting for %q; seen: %q", text, s.seen)
	}
	s.seen = s.seen[bytes.Index(s.seen, []byte(text))+len(text):]
}
