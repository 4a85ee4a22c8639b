package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

// generation tells a VM that was booted, "0", from one that goes on from a snapshot.
var generation = []string{"cat", "/run/supermachine/generation"}

// freshHome gives the test stores of its own, so that its snapshots concern no other test.
func freshHome(t *testing.T) {
	t.Helper()
	vmtest.RequireKVM(t)
	t.Setenv(core.HomeEnv, t.TempDir())
}

func TestRunGoesOnFromABakedBoot(t *testing.T) {
	freshHome(t)
	busybox := image(t, "busybox")
	generationOf := func(flags ...string) string {
		t.Helper()
		return succeed(t, append(append(append([]string{"run", "-q"}, flags...), busybox), generation...)...)
	}
	require.Equal(t, "0", generationOf(), "there is no snapshot")

	out := cli(t, "bake", "--name", "box", busybox)
	require.Zero(t, out.status, out.stderr)
	id := strings.TrimSpace(out.stdout)
	require.Regexp(t, "^[0-9a-f]{32}$", id)
	for _, text := range []string{"only the boot is baked", "boot\n", "freeze\n", "baked in"} {
		require.Contains(t, out.stderr, text)
	}
	require.NotContains(t, out.stderr, "\x1b")
	out = cli(t, "bake", "--name", "box", busybox)
	require.Equal(t, id+"\n", out.stdout)
	require.Contains(t, out.stderr, "already baked")
	require.Equal(t, output{stdout: id + "\n"}, cli(t, "bake", "-q", "--name", "box", busybox))

	require.Equal(t, id, succeed(t, "snapshots", "-q"))
	table := succeed(t, "snapshots")
	for _, text := range []string{id[:12], "box", "(boot only)", "256 MiB, 1 cpu"} {
		require.Contains(t, table, text)
	}
	var listed []core.SnapshotInfo
	require.NoError(t, json.Unmarshal([]byte(succeed(t, "snapshots", "--json")), &listed))
	require.Len(t, listed, 1)
	require.Equal(t, id, listed[0].ID)
	require.False(t, listed[0].Workload)
	var info core.SnapshotInfo
	require.NoError(t, json.Unmarshal([]byte(succeed(t, "snapshots", "inspect", "box")), &info))
	require.Equal(t, listed[0].Digest, info.Digest)

	require.Equal(t, "1", generationOf())
	require.Equal(t, "0", generationOf("--cold"))
	require.Equal(t, "0", generationOf("--memory", "300m"), "no snapshot has this size")
	require.Equal(t, "1", generationOf("--snapshot", "box"))
	require.Equal(t, "1", generationOf("--snapshot", id[:8]))

	out = cliWith(t, strings.NewReader("input"), "run", "-q", "-i", "--name", "copy", "-e", "A=b c", "-w", "/etc", "-u", "1000", "-p", "80",
		busybox, "sh", "-c", `cat; echo; hostname; echo "$A"; pwd; id -u; cat /run/supermachine/generation; echo problem >&2; exit 7`)
	require.Equal(t, output{"input\ncopy\nb c\n/etc\n1000\n1\n", "problem\n", 7}, out)
	require.Equal(t, exitNotFound, cli(t, "run", "-q", busybox, "no-such-program").status)
	require.Equal(t, exitTimeout, cli(t, "run", "-q", "--timeout", "100ms", busybox, "sleep", "1000000").status)

	for text, args := range map[string][]string{
		"nothing":              {"--snapshot", "nothing", busybox, "true"},
		"give --memory 256m":   {"--snapshot", "box", "--memory", "300m", busybox, "true"},
		"leave out --cold":     {"--snapshot", "box", "--cold", busybox, "true"},
		"no-such-program-here": {"--snapshot", "box", busybox, "no-such-program-here"},
	} {
		out = cli(t, append([]string{"run", "-q"}, args...)...)
		require.NotZero(t, out.status, text)
		require.Contains(t, out.stderr, text)
	}

	out = cli(t, "rm", "box", "nothing")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "nothing")
	require.Contains(t, out.stdout, "removed "+id[:12]+" (box)\n1 removed, ")
	require.NotContains(t, out.stdout, ", 0 B freed")
	require.Equal(t, "[]", succeed(t, "snapshots", "--json"))
	require.Equal(t, "0", generationOf())
}

func TestRunAttachesToABakedCommand(t *testing.T) {
	freshHome(t)
	busybox := image(t, "busybox")
	script := `trap 'exit 3' TERM; echo ready; echo problem >&2; touch /tmp/up; while :; do sleep 0.05; done`
	command := []string{busybox, "sh", "-c", script}
	args := func(before ...string) []string { return append(before, command...) }
	id := succeed(t, args("bake", "-q", "--name", "trap", "--ready", "command:test -e /tmp/up")...)
	require.Contains(t, succeed(t, "snapshots"), "sh -c trap")
	succeed(t, "bake", "-q", "--boot-only", busybox) // newer, but it has yet to start the command

	p := start(t, args("run", "-q", "--name", "attached")...)
	require.Equal(t, "1", succeed(t, append([]string{"exec", "attached"}, generation...)...))
	require.Equal(t, "attached", succeed(t, "exec", "attached", "hostname"))
	require.Contains(t, succeed(t, "ps"), "sh -c trap")
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 3, p.status(), p.stderr.String())
	require.True(t, strings.HasPrefix(p.stderr.String(), "problem\n"), "then the shell may say that its sleep was terminated: %s", p.stderr.String())

	p = start(t, "run", "-q", "--snapshot", "trap", busybox) // the snapshot knows the command
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 3, p.status(), p.stderr.String())

	out := cli(t, args("run", "-q", "--timeout", "1s")...)
	require.Equal(t, output{"ready\n", "problem\n", exitTimeout}, out)
	out = cli(t, "run", "-q", "--snapshot", id, busybox, "true")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "use exec")
	require.Equal(t, "1", succeed(t, append([]string{"run", "-q", busybox}, generation...)...), "another command goes on from the boot")

	// In the background it is no different.
	require.Regexp(t, "^[0-9a-f]+$", succeed(t, args("run", "-d", "-q", "--name", "behind")...))
	defer cli(t, "stop", "--force", "behind")
	require.Equal(t, "1", succeed(t, append([]string{"exec", "behind"}, generation...)...))
	require.Eventually(t, func() bool { return len(succeed(t, "logs", "behind")) == len("ready\nproblem") }, time.Minute, 20*time.Millisecond)
	require.Equal(t, "behind", succeed(t, "stop", "behind"))
	require.Empty(t, succeed(t, "ps", "-q"))
}

func TestBakeOfACommandThatDoesNotComeUp(t *testing.T) {
	freshHome(t)
	out := cli(t, "bake", image(t, "busybox"), "sh", "-c", "echo out of luck; exit 4")
	require.Equal(t, exitFailure, out.status)
	require.Empty(t, out.stdout)
	require.Contains(t, out.stderr, "status 4")
	require.Contains(t, out.stderr, "out of luck")
	out = cli(t, "bake", "--boot-only", "--warmup", "echo cold feet; exit 5", image(t, "busybox"))
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "status 5")
	require.Contains(t, out.stderr, "cold feet")
	require.Equal(t, "[]", succeed(t, "snapshots", "--json"))
}

func TestBakeWarmsUp(t *testing.T) {
	freshHome(t)
	busybox := image(t, "busybox")
	succeed(t, "bake", "-q", "--warmup", `echo "a  b" > /tmp/warm`, "--warmup", "echo c >> /tmp/warm", busybox)
	require.Equal(t, "a  b\nc", succeed(t, "run", "-q", busybox, "cat", "/tmp/warm"))
}

// TestRunPassesOverABrokenSnapshot: a snapshot whose data has changed on disk is refused, and costs no run.
func TestRunPassesOverABrokenSnapshot(t *testing.T) {
	freshHome(t)
	busybox := image(t, "busybox")
	id := succeed(t, "bake", "-q", busybox)
	state := filepath.Join(os.Getenv(core.HomeEnv), "snapshots", id, "state.msgpack")
	b, err := os.ReadFile(state)
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(state, b, 0o600))

	out := cli(t, append([]string{"run", "-q", busybox}, generation...)...)
	require.Zero(t, out.status, out.stderr)
	require.Equal(t, "0\n", out.stdout)
	require.Contains(t, out.stderr, "snapshot "+id[:12]+" is passed over")
	out = cli(t, "run", "-q", "--snapshot", id, busybox, "true")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "state.msgpack")

	require.Equal(t, id, succeed(t, "bake", "-q", busybox), "it is baked again")
	require.Equal(t, "1", succeed(t, append([]string{"run", "-q", busybox}, generation...)...))
	require.NoError(t, os.Truncate(state, 10))
	require.Contains(t, succeed(t, "snapshots"), "PROBLEM")
	require.Contains(t, succeed(t, "prune"), "removed "+id[:12])
}
