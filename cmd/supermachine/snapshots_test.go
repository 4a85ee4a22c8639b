package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/oci/ocitest"
)

func TestNoSnapshots(t *testing.T) {
	t.Setenv(core.HomeEnv, t.TempDir())
	require.Equal(t, "[]", succeed(t, "snapshots", "--json"))
	require.Empty(t, succeed(t, "snapshots", "-q"))
	require.Contains(t, succeed(t, "snapshots"), "COMMAND")
	for _, args := range []string{"prune", "prune --all", "prune --older-than 72h", "prune --max-size 10g --unreferenced"} {
		require.Equal(t, "0 removed, 0 B freed", succeed(t, strings.Fields(args)...), args)
	}
	out := cli(t, "rm", "this", "that")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "this")
	require.Contains(t, out.stderr, "that", "it goes on after a failure")
	require.Equal(t, "0 removed, 0 B freed\n", out.stdout)
}

func TestBrokenSnapshotsSayWhyAndCanBeRemoved(t *testing.T) {
	t.Setenv(core.HomeEnv, t.TempDir())
	for _, id := range []string{"aaaa0000aaaa0000", "aaaa1111", "bbbb"} {
		dir := filepath.Join(os.Getenv(core.HomeEnv), "snapshots", id)
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "manifest.json"), []byte("no manifest"), 0o600))
	}
	table := succeed(t, "snapshots")
	require.Contains(t, table, "PROBLEM")
	require.Contains(t, table, "manifest")
	require.Contains(t, table, "aaaa0000aaaa ", "the beginning of the ID is enough")
	require.NotContains(t, table, "(boot only)", "nobody knows")
	require.Len(t, strings.Fields(succeed(t, "snapshots", "-q")), 3)
	var info core.SnapshotInfo
	require.NoError(t, json.Unmarshal([]byte(succeed(t, "snapshots", "inspect", "bb")), &info))
	require.Equal(t, "bbbb", info.ID)
	require.NotEmpty(t, info.Problem)

	out := cli(t, "rm", "aaaa", "bbbb", "bbbb")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "2 snapshots begin like this")
	require.Equal(t, 2, strings.Count(out.stderr, "\n"))
	require.Contains(t, out.stdout, "removed bbbb\n1 removed, ")
	require.Contains(t, succeed(t, "prune"), "2 removed, ")
	require.Equal(t, "[]", succeed(t, "snapshots", "--json"))
}

func TestRunAndBakeSayWhatIsMissing(t *testing.T) {
	t.Setenv(core.HomeEnv, t.TempDir())
	t.Setenv(core.AssetsEnv, t.TempDir())
	host := ocitest.NewRegistry(t, nil)
	require.NoError(t, tiny().Push(t.Context(), host, "app", "v1"))
	require.NoError(t, ocitest.NewImage(v1.Config{}, ocitest.Gzip(ocitest.File("x", "x"))).Push(t.Context(), host, "app", "empty"))

	out := cli(t, "run", "-q", "--snapshot", "nothing", host+"/app:v1")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "nothing")
	require.Contains(t, out.stderr, "see supermachine snapshots")
	for _, flag := range []string{"--cold", "-d"} {
		out = cli(t, "run", "-q", flag, host+"/app:empty")
		require.Contains(t, out.stderr, "say what to run")
	}
	out = cli(t, "bake", host+"/app:v1")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "only the boot is baked")
	require.Contains(t, out.stderr, host+"/app:v1")
	require.Empty(t, out.stdout)
	out = cli(t, "bake", "-q", "--port", "80", host+"/app:empty")
	require.Equal(t, exitFailure, out.status)
	require.Contains(t, out.stderr, "has none of its own")
	require.Equal(t, 1, strings.Count(out.stderr, "\n"), out.stderr)
	require.Equal(t, "[]", succeed(t, "snapshots", "--json"))
}

func TestSnapshotsTable(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, printSnapshots(&out, []core.SnapshotInfo{
		{
			ID: strings.Repeat("0", 32), Name: "web", Created: time.Now().Add(-3 * time.Hour), LastUsed: time.Now(), Bytes: 43e6,
			SnapshotMeta: core.SnapshotMeta{
				Image: "nginx", MemoryMiB: 512, VCPUs: 2, Workload: true, Command: []string{"sh", "-c", "a\n\tb" + strings.Repeat("c", 50)},
			},
		},
		{ID: "1", SnapshotMeta: core.SnapshotMeta{Image: "alpine", MemoryMiB: 256, VCPUs: 1}},
	}))
	lines := strings.Split(out.String(), "\n")
	require.Len(t, lines, 4, out.String())
	require.NotContains(t, lines[0], "PROBLEM")
	for _, text := range []string{"000000000000 ", "web", "nginx", "sh -c a bccc", "…", "512 MiB, 2 cpu", "3 hours ago", "now", "43.0 MB"} {
		require.Contains(t, lines[1], text)
	}
	require.Contains(t, lines[2], "(boot only)")
}

// parsed is run with its flags read, up to the point where a snapshot is looked for.
func parsed(t *testing.T, img *core.Image, line ...string) *want {
	t.Helper()
	var f runFlags
	cmd := &cobra.Command{}
	f.register(cmd)
	require.NoError(t, cmd.ParseFlags(line))
	cfg, _, err := f.config()
	require.NoError(t, err)
	w := f.want(cmd, "app", img, cfg, cmd.Flags().Args())
	return &w
}

// The image serves when it is given nothing else.
func appImage() *core.Image {
	img := &core.Image{Ref: "app", Digest: "sha256:d"}
	img.Config.Entrypoint, img.Config.Cmd = []string{"serve"}, []string{"all"}
	return img
}

func snapshotOf(id string, change func(*core.SnapshotInfo)) core.SnapshotInfo {
	i := core.SnapshotInfo{ID: id, Fingerprint: "f", SnapshotMeta: core.SnapshotMeta{
		Image: "app", Digest: "sha256:d", Guest: "g", MemoryMiB: core.DefaultMemoryMiB, VCPUs: core.DefaultVCPUs, ScratchMiB: core.DefaultScratchMiB,
	}}
	change(&i)
	return i
}

func serves(i *core.SnapshotInfo) { i.Workload, i.Command = true, []string{"serve", "all"} }

func TestRunGoesOnFromTheBestSnapshot(t *testing.T) {
	all := []core.SnapshotInfo{
		snapshotOf("boot2", func(i *core.SnapshotInfo) {}),
		snapshotOf("used", func(i *core.SnapshotInfo) { serves(i); i.Fingerprint = "" }),
		snapshotOf("serve2", serves),
		snapshotOf("serve1", serves),
		snapshotOf("env", func(i *core.SnapshotInfo) { serves(i); i.Env = []string{"A=1", "B=2"} }),
		snapshotOf("dir", func(i *core.SnapshotInfo) { serves(i); i.Dir = "/srv" }),
		snapshotOf("user", func(i *core.SnapshotInfo) { serves(i); i.User = "1000" }),
		snapshotOf("shell", func(i *core.SnapshotInfo) { i.Workload, i.Command = true, []string{"sh"} }),
		snapshotOf("large", func(i *core.SnapshotInfo) { i.MemoryMiB = 1024 }),
		snapshotOf("two", func(i *core.SnapshotInfo) { i.VCPUs = 2 }),
		snapshotOf("small", func(i *core.SnapshotInfo) { i.ScratchMiB = 64 }),
		snapshotOf("other", func(i *core.SnapshotInfo) { i.Digest = "sha256:e" }),
		{ID: "broken", Fingerprint: "f", Problem: "no manifest"},
		snapshotOf("boot1", func(i *core.SnapshotInfo) {}),
		snapshotOf("old", func(i *core.SnapshotInfo) { serves(i); i.Guest = "h" }),
	}
	for line, ids := range map[string]string{
		"":                         "serve2 serve1 boot2 boot1",
		"all":                      "serve2 serve1 boot2 boot1",
		"--entrypoint serve all":   "serve2 serve1 boot2 boot1",
		"one":                      "boot2 boot1",
		"--entrypoint sh":          "shell boot2 boot1",
		"-i":                       "boot2 boot1",
		"-t":                       "boot2 boot1",
		"-e A=1 -e B=2":            "env boot2 boot1",
		"-e B=2 -e A=1":            "boot2 boot1",
		"-w /srv":                  "dir boot2 boot1",
		"-u 1000":                  "user boot2 boot1",
		"--memory 1g":              "large",
		"--cpus 2":                 "two",
		"--disk 64m":               "small",
		"--cpus 2 --memory 1g":     "",
		"-m 256m --cpus 1 -w /srv": "dir boot2 boot1",
	} {
		var got []string
		w := parsed(t, appImage(), strings.Fields(line)...)
		w.guest = "g"
		best, outdated := w.candidates(all)
		for _, i := range best {
			got = append(got, i.ID)
		}
		require.Equal(t, strings.HasPrefix(ids, "serve2"), len(outdated) == 1, line)
		require.Equal(t, ids, strings.Join(got, " "), line)
	}
}

func TestSnapshotByNameHasWhatNoFlagSays(t *testing.T) {
	snap := snapshotOf("x", func(i *core.SnapshotInfo) {
		i.Workload, i.Command, i.Env, i.Dir, i.User = true, []string{"serve", "one"}, []string{"A=1"}, "/srv", "1000"
		i.MemoryMiB, i.VCPUs, i.ScratchMiB, i.Fingerprint = 1024, 2, 64, ""
	})
	for line, problem := range map[string]string{
		"": "", "one": "", "--memory 1g --cpus 2 --disk 64m": "", "-e A=1 -w /srv -u 1000 one": "",
		"--memory 512m": "give --memory 1024m", "--cpus 1": "give --cpus 2", "--disk 1g": "give --disk 64m",
		"-e A=2": "leave out -e", "-w /": "leave out -w", "-u 0": "leave out -u", "-i": "leave out -i", "all": `"serve one" runs in it`,
		"--entrypoint sh": "runs in it",
	} {
		w := parsed(t, appImage(), strings.Fields(line)...)
		w.accept(snap)
		err := w.misfit(snap)
		if problem == "" {
			require.NoError(t, err, line)
			require.Equal(t, snap.Command, w.command)
			continue
		}
		require.ErrorContains(t, err, problem, line)
	}
	w := parsed(t, appImage())
	w.digest = "sha256:e"
	require.ErrorContains(t, w.misfit(snap), "not of this image")

	boot := snapshotOf("y", func(i *core.SnapshotInfo) { i.MemoryMiB = 64 })
	w = parsed(t, appImage(), "-it")
	w.accept(boot)
	require.NoError(t, w.misfit(boot))
	require.Equal(t, 64, w.cfg.MemoryMiB)
	w = parsed(t, &core.Image{Digest: "sha256:d"})
	w.accept(boot)
	require.ErrorContains(t, w.misfit(boot), "say what to run")
	w.accept(snap)
	require.NoError(t, w.misfit(snap), "the image needs no command where one runs")
}

func TestBakeFlagsMakeASpec(t *testing.T) {
	t.Setenv("PASSED", "on")
	for _, tt := range []struct {
		line  []string
		want  func(*core.BakeSpec)
		asked bool
	}{
		{line: nil, want: func(s *core.BakeSpec) {}},
		{line: []string{"--boot-only", "--name", "web"}, want: func(s *core.BakeSpec) { s.BootOnly, s.Name = true, "web" }},
		{[]string{"--port", "81", "--ready", "settle:2s"}, func(s *core.BakeSpec) { s.GuestPort, s.Ready = 81, core.ReadySettled(2*time.Second) }, true},
		{[]string{"--ready", "command:redis-cli ping"}, func(s *core.BakeSpec) { s.Ready = core.ReadyCommand("redis-cli", "ping") }, true},
		{[]string{"--entrypoint", "sh", "app", "-c", "x"}, func(s *core.BakeSpec) { s.Entrypoint, s.Cmd = []string{"sh"}, []string{"-c", "x"} }, true},
		{
			line: []string{"-e", "A=1", "-e", "PASSED", "-e", "ABSENT", "-w", "/srv", "-u", "1000"},
			want: func(s *core.BakeSpec) { s.Env, s.Dir, s.User = []string{"A=1", "PASSED=on"}, "/srv", "1000" },
		},
		{
			line: []string{"--cpus", "2", "-m", "1g", "--disk", "64m", "--timeout", "5s"},
			want: func(s *core.BakeSpec) { s.VCPUs, s.MemoryMiB, s.ScratchMiB, s.Timeout = 2, 1024, 64, 5*time.Second },
		},
		{line: []string{"--warmup", `python3 -c "import numpy"`, "--warmup", "true"}, want: func(s *core.BakeSpec) {
			s.Warmup = [][]string{{"/bin/sh", "-c", `python3 -c "import numpy"`}, {"/bin/sh", "-c", "true"}}
		}},
	} {
		var f bakeFlags
		cmd := &cobra.Command{}
		f.register(cmd)
		require.NoError(t, cmd.ParseFlags(tt.line))
		args := cmd.Flags().Args()
		got, err := f.spec(cmd, args[min(len(args), 1):])
		require.NoError(t, err, tt.line)
		want := core.BakeSpec{
			VCPUs: core.DefaultVCPUs, MemoryMiB: core.DefaultMemoryMiB, ScratchMiB: core.DefaultScratchMiB, Timeout: time.Minute, Cmd: []string{},
		}
		tt.want(&want)
		require.Equal(t, want, got, tt.line)
		require.Equal(t, tt.asked, f.asked(cmd, got.Cmd), tt.line)
	}
}

func TestStepsInALog(t *testing.T) {
	var out bytes.Buffer
	s := newSteps(&out, "app", false)
	s.step("boot")
	s.step("warm up: a\n  b")
	s.done()
	s.note("baked in 1.0 s")
	require.Equal(t, "app: boot\napp: warm up: a b\napp: baked in 1.0 s\n", out.String())

	s = newSteps(&out, "app", true)
	out.Reset()
	s.step("boot")
	s.note("baked")
	s.done()
	require.Empty(t, out.String())
}

func TestStepsOnATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		s := newSteps(&out, "app", false)
		s.width = func() int { return 20 }
		s.step("boot")
		time.Sleep(250 * time.Millisecond) // of the bubble's clock
		s.step("a step with a long name")
		s.done()
		s.done()
		require.Equal(t, "\r\x1b[Kapp: boot  0.0 s\r\x1b[Kapp: boot  0.1 s\r\x1b[Kapp: boot  0.2 s\r\x1b[Kapp: boot  0.2 s\n"+
			"\r\x1b[Kapp: a step…  0.0 s\r\x1b[Kapp: a step…  0.0 s\n", out.String())
		for line := range strings.SplitSeq(strings.ReplaceAll(out.String(), "\x1b[K", ""), "\r") {
			require.Less(t, len([]rune(strings.TrimSuffix(line, "\n"))), 20)
		}
	})
}
