//go:build linux

package testbed

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMain skips everything where the emulated host cannot be made. It makes what is missing, so that the tests see only what their own
// runs say.
func TestMain(m *testing.M) {
	if why := missing(); why != "" {
		fmt.Println("skipped:", why)
		return
	}
	if out, err := command("true").CombinedOutput(); err != nil {
		fmt.Printf("no emulated host: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func missing() string {
	_, noQEMU := exec.LookPath("qemu-system-x86_64")
	switch {
	case os.Getenv("SUPERMACHINE_TESTBED") != "":
		return "this is the emulated host, and a second one in it would be too slow"
	case runtime.GOARCH != "amd64":
		return "the emulated host is made for amd64"
	case noQEMU != nil && os.Geteuid() != 0:
		return "QEMU is missing and only root can install it"
	}
	return ""
}

// result is how a command in the emulated host ended.
type result struct {
	stdout, stderr []byte
	status         int
}

// command returns one that runs args in the emulated host.
func command(args ...string) *exec.Cmd {
	return exec.Command("./run", append([]string{"--emulated"}, args...)...)
}

func finish(t testing.TB, cmd *exec.Cmd) result {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	first, rest, _ := bytes.Cut(stderr.Bytes(), []byte("\n"))
	require.Equal(t, "testbed: no usable KVM here: running in the emulated host", string(first))
	return result{stdout.Bytes(), rest, cmd.ProcessState.ExitCode()}
}

// here makes a directory that the emulated host sees too, unlike one in /tmp.
func here(t testing.TB) string {
	dir, err := os.MkdirTemp(".", "test-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	dir, err = filepath.Abs(dir)
	require.NoError(t, err)
	return dir
}

func TestStreamsAndExitStatus(t *testing.T) {
	r := finish(t, command("--", "sh", "-c", `echo out; echo err >&2; printf 'no newline'; exit 7`))
	require.Equal(t, "out\nno newline", string(r.stdout))
	require.Equal(t, "err\n", string(r.stderr))
	require.Equal(t, 7, r.status)
}

func TestHowCommandsEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		args   []string
		status int
		stderr string
	}{
		"signal":         {[]string{"--", "sh", "-c", "kill -TERM $$"}, 128 + 15, ""},
		"time limit":     {[]string{"--time-limit", "6", "--", "sleep", "1000"}, 124, "testbed: sleep: ended at the time limit of 6 s\n"},
		"left behind":    {[]string{"--", "sh", "-c", "sleep 1000 & exit 3"}, 3, ""},
		"not executable": {[]string{"--", "./emptied"}, 126, "exec format error"},
		"panic":          {[]string{"--", "sh", "-c", "kill -ABRT 1; sleep 1000"}, 125, "Attempted to kill init"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(tt.args...)
			if name == "not executable" {
				dir := here(t)
				require.NoError(t, os.WriteFile(filepath.Join(dir, "emptied"), []byte("\x7fELF"), 0o755))
				cmd.Args[len(cmd.Args)-1] = filepath.Join(dir, "emptied")
			}
			r := finish(t, cmd)
			require.Equal(t, tt.status, r.status, string(r.stderr))
			require.Contains(t, string(r.stderr), tt.stderr)
		})
	}
}

// A command is given a new emulated host if that hangs, which its kernel says twice, but not if the kernel says it once.
func TestCommandsRunAgainAfterAHang(t *testing.T) {
	const stall = "echo '<0>rcu: (detected by 1, t=1 jiffies, g=%d, q=1 ncpus=2)' >/dev/kmsg; "
	script := fmt.Sprintf("echo run >>runs; cat; if [ $(wc -l <runs) -lt 3 ]; then "+stall+stall+"sleep 1000; fi; "+stall+stall+"exit 7", 1, 1, 2, 3)
	for again, want := range map[string]result{
		"2": {stdout: []byte("input"), status: 7},
		"1": {stdout: []byte("input"), status: 125},
	} {
		t.Run(again, func(t *testing.T) {
			cmd := command("--again", again, "--", "sh", "-c", "cd '"+here(t)+"'; "+script)
			cmd.Stdin = strings.NewReader("input")
			r := finish(t, cmd)
			require.Equal(t, want.status, r.status, string(r.stderr))
			require.Equal(t, string(want.stdout), string(r.stdout))
			require.Contains(t, string(r.stderr), "the emulated host hangs")
			require.Equal(t, again, strconv.Itoa(strings.Count(string(r.stderr), "running the command again")))
		})
	}
}

func TestNoSuchCommand(t *testing.T) {
	var exit *exec.ExitError
	require.ErrorAs(t, command("--", "no-such-command").Run(), &exit)
	require.Equal(t, 127, exit.ExitCode())
}

func TestBinaryThroughStdinAndStdout(t *testing.T) {
	data := make([]byte, 20<<20)
	_, err := rand.Read(data)
	require.NoError(t, err)
	cmd := command("--", "cat")
	cmd.Stdin = bytes.NewReader(data)
	r := finish(t, cmd)
	require.Zero(t, r.status)
	require.Len(t, r.stdout, len(data))
	require.Equal(t, sha256.Sum256(data), sha256.Sum256(r.stdout))
}

func TestUnreadStdinHoldsNothingUp(t *testing.T) {
	cmd := command("--", "sh", "-c", "head -c 5; exec <&-; echo; echo done")
	cmd.Stdin = bytes.NewReader(make([]byte, 4<<20))
	r := finish(t, cmd)
	require.Equal(t, "\x00\x00\x00\x00\x00\ndone\n", string(r.stdout))
}

func TestEnvironmentArgumentsAndDirectoryAreExact(t *testing.T) {
	odd := "\xff\xfe two\nlines 'quoted' \"twice\" $HOME \\ end"
	dir := here(t)
	wd, err := filepath.Abs(".")
	require.NoError(t, err)
	cmd := exec.Command(filepath.Join(wd, "run"), "--emulated", "--", "sh", "-c",
		`printf '%s\0' "$ODD" "$1" "$2" "$PWD" "$SUPERMACHINE_TESTBED"; umask; echo new >made`, "sh", odd, "")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "ODD="+odd)
	r := finish(t, cmd)
	require.Equal(t, strings.Join([]string{odd, odd, "", dir, "1", "0022\n"}, "\x00"), string(r.stdout))
	made, err := os.ReadFile(filepath.Join(dir, "made"))
	require.NoError(t, err)
	require.Equal(t, "new\n", string(made))
}

func TestSignalsReachTheCommand(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGUSR1} {
		t.Run(s.String(), func(t *testing.T) {
			cmd := command("--", "sh", "-c", `trap 'echo got; exit 9' INT TERM USR1; echo ready; while :; do sleep 0.1; done`)
			out, in := io.Pipe()
			cmd.Stdout = in
			require.NoError(t, cmd.Start())
			go func() {
				cmd.Wait()
				in.Close()
			}()
			ready := make([]byte, len("ready\n"))
			_, err := io.ReadFull(out, ready)
			require.NoError(t, err)
			require.NoError(t, cmd.Process.Signal(s))
			rest, err := io.ReadAll(out)
			require.NoError(t, err)
			require.Equal(t, "got\n", string(rest))
			require.Equal(t, 9, cmd.ProcessState.ExitCode())
		})
	}
}

func TestKilledTestbedLeavesNoQEMU(t *testing.T) {
	cmd := command("--", "sh", "-c", "echo ready; sleep 1000")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, len("ready\n")))
	require.NoError(t, err)
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid))
	require.NoError(t, err)
	qemu := strings.TrimSpace(string(children))
	require.NotEmpty(t, qemu)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.Eventually(t, func() bool {
		line, err := os.ReadFile("/proc/" + qemu + "/cmdline") // empty for a process that only waits to be reaped
		return err != nil || len(line) == 0
	}, 30e9, 1e7)
}

func TestTemporaryDirectories(t *testing.T) {
	dir := t.TempDir() // in /tmp, or wherever TMPDIR says
	script := filepath.Join(dir, "script")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\necho beside >\"$0.out\"; echo x >/run/x; echo x >/dev/shm/x; cat \"$1\"\n"), 0o755))
	shared := filepath.Join(t.TempDir(), "shared")
	require.NoError(t, os.WriteFile(shared, []byte("shared\n"), 0o644))
	r := finish(t, command("--share", shared, "--", script, shared))
	require.Equal(t, "shared\n", string(r.stdout), string(r.stderr))
	out, err := os.ReadFile(script + ".out")
	require.NoError(t, err)
	require.Equal(t, "beside\n", string(out))
	require.NoFileExists(t, "/run/x")
	require.NoFileExists(t, "/dev/shm/x")
}

func TestSeveralAtOnce(t *testing.T) {
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			r := finish(t, command("--mem", "1024", "--", "sh", "-c", fmt.Sprintf("echo %d; exit %[1]d", i)))
			if r.status != i || string(r.stdout) != fmt.Sprintf("%d\n", i) {
				t.Errorf("testbed %d ended with %d and %q; %s", i, r.status, r.stdout, r.stderr)
			}
		})
	}
	all.Wait()
}

func TestKVMWorksInside(t *testing.T) {
	program := filepath.Join(t.TempDir(), "kvmcheck")
	build := exec.Command("go", "build", "-o", program, "./cmd/kvmcheck")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	r := finish(t, command("--", program))
	require.Equal(t, "ok\n", string(r.stdout), string(r.stderr))
}

// The emulated host is a machine where KVM works.
func TestRunsDirectlyWhereKVMWorks(t *testing.T) {
	for name, tt := range map[string]struct {
		args   []string
		status int
		stderr string
	}{
		"no limit":  {[]string{"--", "sh", "-c", "exit 5"}, 5, ""},
		"in time":   {[]string{"--time-limit", "1000", "--", "sh", "-c", "kill -KILL $$"}, 128 + 9, ""},
		"too long":  {[]string{"--time-limit", "0.2", "--", "sh", "-c", "sleep 1000; true"}, 124, "testbed: sh: ended at the time limit of 0.2 s\n"},
		"not found": {[]string{"--", "no-such-command"}, 127, "executable file not found"},
	} {
		t.Run(name, func(t *testing.T) {
			r := finish(t, command(append([]string{"--", "../build/testbed/testbed"}, tt.args...)...))
			require.Equal(t, tt.status, r.status, string(r.stderr))
			require.Contains(t, string(r.stderr), tt.stderr)
			require.Equal(t, tt.status != 127, strings.HasPrefix(string(r.stderr), "testbed: KVM works here: running on this machine\n"))
		})
	}
}
