package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/oci/ocitest"
)

// TestEveryCommandExplainsItself also keeps examples from showing flags that do not exist.
func TestEveryCommandExplainsItself(t *testing.T) {
	commands := newRoot().Commands()
	require.Len(t, commands, 15)
	for _, c := range commands {
		commands = append(commands, c.Commands()...)
	}
	for _, c := range commands {
		path := strings.Fields(c.CommandPath())[1:]
		t.Run(strings.Join(path, " "), func(t *testing.T) {
			require.NotEmpty(t, c.Short)
			require.NotEmpty(t, c.Example)
			for line := range strings.Lines(c.Example) {
				line = line[strings.LastIndex(line, "supermachine ")+len("supermachine "):]
				found, rest, err := newRoot().Find(words(line))
				require.NoError(t, err)
				require.NoError(t, found.ParseFlags(rest), line)
				require.NoError(t, found.ValidateArgs(found.Flags().Args()), line)
			}
			for line := range strings.Lines(c.Long) {
				require.LessOrEqual(t, len([]rune(line)), 91, line)
			}
			out := cli(t, append(path, "--help")...)
			require.Zero(t, out.status)
			require.Contains(t, out.stdout, "Examples:")
			require.Empty(t, out.stderr)
		})
	}
}

// words splits a line as a shell does, of which examples use single quotes and the end of a substitution.
func words(line string) (out []string) {
	quoted := false
	for _, w := range strings.FieldsFunc(line, func(r rune) bool {
		if r == '\'' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == ')' || r == '\n')
	}) {
		out = append(out, strings.ReplaceAll(w, "'", ""))
	}
	return out
}

func TestWrongUseIsExplainedBeforeAnythingIsDone(t *testing.T) {
	for _, tt := range []struct {
		args string
		text string
	}{
		{"fly", `unknown command "fly"`},
		{"run", "requires at least 1 arg"},
		{"run --nonsense x", "unknown flag: --nonsense"},
		{"run --cpus 0 x", "give 1 to 8"},
		{"run --cpus 9 x", "1 to 8"},
		{"run --cpus many x", "invalid argument"},
		{"run --memory 512 x", "give a number and a unit"},
		{"run --memory -1m x", "give a number and a unit"},
		{"run --memory 3k x", "less than 1 MiB"},
		{"run --memory 16m x", "memory"},
		{"run --memory 4000000g x", "memory"},
		{"run --memory 4294967295t x", "memory"},
		{"run --disk big x", "--disk"},
		{"run --disk 0m x", "--disk"},
		{"run -p 80:80:80:80:x x", "--publish"},
		{"run -p 0 x", "--publish"},
		{"run -p 65536 x", "--publish"},
		{"run -p 99999:80 x", "--publish"},
		{"run --name ../../etc x", "name"},
		{"run --pull sometimes x", "missing, always or never"},
		{"run --platform amd64/linux/x/y/z x", "platform"},
		{"run --timeout soon x", "invalid argument"},
		{"run UPPER/case", "UPPER/case"},
		{"run --cold --snapshot y x", "leave out --cold or --snapshot"},
		{"run --cold=perhaps x", "invalid argument"},
		{"run --snapshot", "flag needs an argument"},
		{"bake", "requires at least 1 arg"},
		{"bake --boot-only x true", "--boot-only starts no command"},
		{"bake --boot-only --port 80 x", "--boot-only starts no command"},
		{"bake --boot-only --ready none x", "--boot-only starts no command"},
		{"bake --ready perhaps x", "give port, port:8080"},
		{"bake --ready port:0 x", "1 to 65535"},
		{"bake --port 0 x", "1 to 65535"},
		{"bake --port 65536 x", "invalid argument"},
		{"bake --timeout -1s x", "such as 30s"},
		{"bake --timeout 0s x", "such as 30s"},
		{"bake --warmup= x", "--warmup is empty"},
		{"bake --entrypoint= x", "--entrypoint is empty"},
		{"bake --cpus 0 x", "give 1 to 8"},
		{"bake --memory 512 x", "give a number and a unit"},
		{"bake --disk 1m x", "scratch disk"},
		{"bake -it x", "unknown shorthand flag"},
		{"bake --pull sometimes x", "missing, always or never"},
		{"bake oci:/does/not/exist", "/does/not/exist"},
		{"snapshots web", `unknown command "web"`},
		{"snapshots --size", "unknown flag"},
		{"snapshots --json=perhaps", "invalid argument"},
		{"snapshots inspect", "accepts 1 arg"},
		{"snapshots inspect a b", "accepts 1 arg"},
		{"snapshots inspect nothing", "nothing"},
		{"rm", "requires at least 1 arg"},
		{"rm --force x", "unknown flag"},
		{"prune x", `unknown command "x"`},
		{"prune --older-than 0s", "such as 72h"},
		{"prune --older-than week", "invalid argument"},
		{"prune --max-size 10", "give a number and a unit"},
		{"prune --max-size 1k", "use --all"},
		{"prune --all --unreferenced", "--all removes every snapshot"},
		{"prune --all --older-than 1h", "--all removes every snapshot"},
		{"pull", "accepts 1 arg"},
		{"pull a b", "accepts 1 arg"},
		{"pull oci:/does/not/exist", "/does/not/exist"},
		{"pull docker-archive:/does/not/exist.tar", "/does/not/exist.tar"},
		{"exec nobody true", "nobody"},
		{"stop nobody", "nobody"},
		{"logs nobody", "nobody"},
		{"stop --time x y", "invalid argument"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			out := cli(t, strings.Fields(tt.args)...)
			require.Equal(t, exitFailure, out.status)
			require.Empty(t, out.stdout)
			require.Contains(t, out.stderr, tt.text)
			require.True(t, strings.HasPrefix(out.stderr, "supermachine: "), out.stderr)
			require.Equal(t, 1, strings.Count(out.stderr, "\n"), "one line: %s", out.stderr)
		})
	}
}

func tiny() *ocitest.Image {
	return ocitest.NewImage(v1.Config{Cmd: []string{"/hello"}}, ocitest.Gzip(ocitest.File("hello", "hello").Mode(0o755)))
}

func TestPullAndList(t *testing.T) {
	t.Setenv(core.HomeEnv, t.TempDir())
	require.Equal(t, "[]", succeed(t, "images", "--json"))
	host := ocitest.NewRegistry(t, nil)
	img := tiny()
	require.NoError(t, img.Push(t.Context(), host, "app", "v1"))

	out := cli(t, "pull", host+"/app:v1")
	require.Zero(t, out.status, out.stderr)
	require.Equal(t, img.Digest().String()+"\n", out.stdout)
	require.Contains(t, out.stderr, "1 layers")
	require.Contains(t, out.stderr, "ready")
	require.NotContains(t, out.stderr, "\x1b", "no colours and no bars in a log")

	require.Equal(t, img.Digest().String(), succeed(t, "pull", "-q", host+"/app:v1"))
	require.Empty(t, cli(t, "pull", "-q", host+"/app:v1").stderr)

	var listed []map[string]any
	require.NoError(t, json.Unmarshal([]byte(succeed(t, "images", "--json")), &listed))
	require.Len(t, listed, 1)
	require.Equal(t, host+"/app:v1", listed[0]["ref"])
	require.Equal(t, img.Digest().String(), listed[0]["digest"])
	require.FileExists(t, listed[0]["rootfs_path"].(string))
	table := succeed(t, "images")
	require.Contains(t, table, "IMAGE")
	require.Contains(t, table, host+"/app:v1")
}

func TestPullErrorsNameTheImageAndTheCause(t *testing.T) {
	t.Setenv(core.HomeEnv, t.TempDir())
	host := ocitest.NewRegistry(t, nil)
	require.NoError(t, tiny().Push(t.Context(), host, "app", "v1"))
	foreign := ocitest.NewImageFor(v1.Platform{OS: "linux", Architecture: "s390x"}, v1.Config{}, ocitest.Gzip(ocitest.File("x", "x")))
	require.NoError(t, foreign.Push(t.Context(), host, "foreign", "v1"))
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())

	for _, tt := range []struct{ ref, text string }{
		{host + "/app:v2", "404"},
		{host + "/nothing", "404"},
		{closed.Addr().String() + "/app", "connection refused"},
		{host + "/foreign:v1", "s390x"},
	} {
		for _, args := range [][]string{{"pull"}, {"run"}, {"run", "-d"}} {
			out := cli(t, append(args, tt.ref)...)
			require.Equal(t, exitFailure, out.status)
			require.Contains(t, out.stderr, tt.text)
			require.Contains(t, out.stderr, tt.ref)
			require.Empty(t, out.stdout)
		}
	}
	out := cli(t, "run", "--pull", "never", host+"/app:v1")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, host+"/app:v1")
	require.Equal(t, "[]", succeed(t, "images", "--json"), "failures leave nothing behind")
}

// TestPullKilledInTheMiddle kills a pull that waits for the rest of a layer: the next one completes, and no half of anything stays.
func TestPullKilledInTheMiddle(t *testing.T) {
	t.Setenv(core.HomeEnv, t.TempDir())
	waiting := make(chan struct{}, 16)
	var stuck atomic.Bool
	host := ocitest.NewRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && stuck.Load() {
				w.Header().Set("Content-Length", "100000")
				w.Write([]byte("half"))
				w.(http.Flusher).Flush()
				waiting <- struct{}{}
				<-r.Context().Done()
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	img := tiny()
	require.NoError(t, img.Push(t.Context(), host, "app", "v1"))
	stuck.Store(true)
	ctx, kill := context.WithCancel(t.Context())
	cmd := command(ctx, "pull", host+"/app:v1")
	require.NoError(t, cmd.Start())
	<-waiting
	kill()
	require.Error(t, cmd.Wait())
	require.Equal(t, "[]", succeed(t, "images", "--json"))

	stuck.Store(false)
	require.Equal(t, img.Digest().String(), succeed(t, "pull", host+"/app:v1"))
	left, err := os.ReadDir(filepath.Join(os.Getenv(core.HomeEnv), "images", "tmp"))
	require.NoError(t, err)
	require.Empty(t, left, "files of the killed pull")
}

func TestDoctorSaysWhatIsMissing(t *testing.T) {
	t.Setenv(core.AssetsEnv, t.TempDir())
	out := cli(t, "doctor", "--json")
	require.Equal(t, 1, out.status)
	var checks []core.Check
	require.NoError(t, json.Unmarshal([]byte(out.stdout), &checks))
	failed := 0
	for _, c := range checks {
		if c.Status == core.CheckFailed {
			failed++
			require.NotEmpty(t, c.Fix, c.Name)
		}
	}
	require.NotZero(t, failed)
	out = cli(t, "doctor")
	require.Equal(t, 1, out.status)
	require.Contains(t, out.stdout, "failed")
	require.NotContains(t, out.stdout, "\x1b", "no colours in a file")
}

func TestNothingRuns(t *testing.T) {
	require.Equal(t, "[]", succeed(t, "ps", "--json"))
	require.Empty(t, succeed(t, "ps", "-q"))
	require.Contains(t, succeed(t, "ps"), "NAME")
}

func TestParsePort(t *testing.T) {
	for s, want := range map[string]port{
		"80":               {"127.0.0.1:0", 80},
		"8080:80":          {"127.0.0.1:8080", 80},
		"8080:80/tcp":      {"127.0.0.1:8080", 80},
		"0.0.0.0:8080:80":  {"0.0.0.0:8080", 80},
		"0.0.0.0::80":      {"0.0.0.0:0", 80},
		"[::1]:8080:65535": {"[::1]:8080", 65535},
	} {
		got, err := parsePort(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int{"512m": 512, "2g": 2048, "1GiB": 1024, "1048576b": 1, "2048k": 2, "1t": 1 << 20, "64MiB": 64} {
		got, err := parseSize("memory", s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{"", "m", "512", "-1m", "1.5g", "1x", "99999999999g", "0x10m"} {
		_, err := parseSize("memory", s)
		require.Error(t, err, s)
	}
}
