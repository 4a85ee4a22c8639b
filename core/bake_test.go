package core

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/oci"
)

func server() *Image {
	return &Image{
		Ref: "server:1", Digest: "sha256:1", RootFSKey: "layers-1",
		Config: oci.Config{Entrypoint: []string{"serve"}, Cmd: []string{"--all"}, ExposedPorts: []string{"53/udp", "8080/tcp", "9090/tcp"}},
	}
}

func TestBakeTakesFromTheImageWhatTheSpecLeavesOut(t *testing.T) {
	for name, tt := range map[string]struct {
		spec    BakeSpec
		img     func(*Image)
		command []string
		port    uint16
		ready   string
	}{
		"all":       {command: []string{"serve", "--all"}, port: 8080, ready: "port:8080"},
		"arguments": {spec: BakeSpec{Cmd: []string{"--one"}}, command: []string{"serve", "--one"}, port: 8080, ready: "port:8080"},
		"entrypoint drops the image's arguments": {
			spec: BakeSpec{Entrypoint: []string{"sh"}}, command: []string{"sh"}, port: 8080, ready: "port:8080",
		},
		"no entrypoint, but a command": {
			spec: BakeSpec{Entrypoint: []string{}, Cmd: []string{"sh", "-c", "x"}}, command: []string{"sh", "-c", "x"}, port: 8080, ready: "port:8080",
		},
		"own port":               {spec: BakeSpec{GuestPort: 81}, command: []string{"serve", "--all"}, port: 81, ready: "port:81"},
		"readiness of that port": {spec: BakeSpec{GuestPort: 81, Ready: ReadyPort(0)}, command: []string{"serve", "--all"}, port: 81, ready: "port:81"},
		"readiness of another":   {spec: BakeSpec{Ready: ReadyPort(9090)}, command: []string{"serve", "--all"}, port: 8080, ready: "port:9090"},
		"no port": {
			img: func(i *Image) { i.Config.ExposedPorts = []string{"53/udp"} }, command: []string{"serve", "--all"}, ready: "settle:500ms",
		},
		"settling for a while":  {spec: BakeSpec{Ready: ReadySettled(time.Second)}, command: []string{"serve", "--all"}, port: 8080, ready: "settle:1s"},
		"boot only":             {spec: BakeSpec{BootOnly: true}, ready: "none"},
		"boot only, said twice": {spec: BakeSpec{BootOnly: true, Ready: ReadyNow()}, ready: "none"},
	} {
		t.Run(name, func(t *testing.T) {
			img := server()
			if tt.img != nil {
				tt.img(img)
			}
			got, command, err := tt.spec.complete(img)
			require.NoError(t, err)
			require.Equal(t, tt.command, command)
			require.Equal(t, tt.port, got.GuestPort)
			require.Equal(t, tt.ready, got.Ready.String())
			require.Equal(t, []int{DefaultMemoryMiB, DefaultVCPUs, DefaultScratchMiB}, []int{got.MemoryMiB, got.VCPUs, got.ScratchMiB})
			require.Equal(t, defaultBakeTimeout, got.Timeout)
			require.Equal(t, []string{"--all"}, img.Config.Cmd, "the image stays as it is")
			again, command, err := got.complete(img)
			require.NoError(t, err)
			require.Equal(t, got, again, "a complete spec is not completed further")
			require.Equal(t, tt.command, command)
		})
	}
}

func TestBakeRefusesSpecsThatMakeNoSense(t *testing.T) {
	bare := func(i *Image) { i.Config = oci.Config{} }
	for says, tt := range map[string]struct {
		spec BakeSpec
		img  func(*Image)
	}{
		"memory":                       {spec: BakeSpec{MemoryMiB: 1}},
		"cpus":                         {spec: BakeSpec{VCPUs: 99}},
		"scratch disk":                 {spec: BakeSpec{ScratchMiB: 1}},
		"negative":                     {spec: BakeSpec{Timeout: -1}},
		`"PATH" is not NAME=value`:     {spec: BakeSpec{Env: []string{"A=", "PATH"}}},
		`"=x" is not NAME=value`:       {spec: BakeSpec{Env: []string{"=x"}}},
		`"A=\x00" is not NAME=value`:   {spec: BakeSpec{Env: []string{"A=\x00"}}},
		"warmup: no program":           {spec: BakeSpec{Warmup: [][]string{{"true"}, {}}}},
		"there is no workload":         {spec: BakeSpec{BootOnly: true, Cmd: []string{"x"}}},
		"whose command or readiness":   {spec: BakeSpec{BootOnly: true, Ready: ReadyPort(80)}},
		"server:1 has none of its own": {img: bare},
		"or bake without a workload":   {spec: BakeSpec{Cmd: []string{""}}, img: bare},
		"the image exposes no port":    {spec: BakeSpec{Cmd: []string{"x"}, Ready: ReadyPort(0)}, img: bare},
	} {
		img := server()
		if tt.img != nil {
			tt.img(img)
		}
		_, _, err := tt.spec.complete(img)
		require.ErrorIs(t, err, ErrInvalidArgument, says)
		require.ErrorContains(t, err, says)
	}
}

func TestBakeRefusesBeforeItPulls(t *testing.T) {
	images, err := OpenImages(t.TempDir())
	require.NoError(t, err)
	s, err := OpenSnapshots(t.TempDir(), images)
	require.NoError(t, err)
	_, err = s.Bake(context.Background(), BakeSpec{Ref: "oci:/no/such/directory", MemoryMiB: 1})
	require.ErrorIs(t, err, ErrInvalidArgument)
	_, err = s.Bake(context.Background(), BakeSpec{Ref: "oci:/no/such/directory"})
	require.ErrorIs(t, err, ErrImageNotFound)
}

func TestExposedPortIsTheFirstOfTCP(t *testing.T) {
	for _, tt := range []struct {
		ports []string
		want  uint16
	}{
		{nil, 0}, {[]string{"80/tcp"}, 80}, {[]string{"80"}, 80}, {[]string{"53/udp"}, 0}, {[]string{"53/udp", "443/tcp", "80/tcp"}, 443},
		{[]string{"0/tcp", "99999/tcp", "x/tcp", "", "-1", "8000-8005/tcp", "65535/tcp"}, 65535}, {[]string{"1/sctp"}, 0},
	} {
		require.Equal(t, tt.want, exposedPort(&Image{Config: oci.Config{ExposedPorts: tt.ports}}), "%v", tt.ports)
	}
}

func TestReadinessIsReadAsItIsWritten(t *testing.T) {
	for s, want := range map[string]Readiness{
		"port": ReadyPort(0), "port:1": ReadyPort(1), "port:65535": ReadyPort(65535), "settle": ReadySettled(0), "settle:2s": ReadySettled(2 * time.Second),
		"settle:1m30s": ReadySettled(90 * time.Second), "none": ReadyNow(), "command:true": ReadyCommand("true"),
		"command:redis-cli -p 1:2 ping": ReadyCommand("redis-cli", "-p", "1:2", "ping"),
	} {
		got, err := ParseReadiness(s)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, s, got.String())
	}
	spaces, err := ParseReadiness("command:  a   b ")
	require.NoError(t, err)
	require.Equal(t, ReadyCommand("a", "b"), spaces)
	for _, s := range []string{
		"", "ports", "port:0", "port:65536", "port:-1", "port:+1", "port:x", "port: 80", "settle:0", "settle:-1s", "settle:5", "settle:x", "command", "command:",
		"command:  ", "none:1", "none:", "port:", "settle:", "Port:80",
	} {
		_, err := ParseReadiness(s)
		require.ErrorIs(t, err, ErrInvalidArgument, s)
		require.ErrorContains(t, err, "settle:2s", "it says what is possible")
	}
}

// fakeAssets returns a directory with the guest's files, which are none.
func fakeAssets(t *testing.T, kernel, initramfs string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "vmlinux-"+runtime.GOARCH), []byte(kernel), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "initramfs-"+runtime.GOARCH+".cpio"), []byte(initramfs), 0o600))
	return dir
}

// Each field of BakeSpec, Image and its Config is here: a new one must be decided upon. What matters to the guest changes the fingerprint.
func TestFingerprintChangesWithEachInput(t *testing.T) {
	if _, err := openHypervisor(); err != nil {
		t.Skipf("the CPU is an input, and needs KVM (testbed/run brings it): %v", err)
	}
	state := t.TempDir()
	base := BakeSpec{Ref: "server:1", Assets: fakeAssets(t, "kernel", "initramfs"), StateDir: state, Env: []string{"A=1"}}
	print := func(spec BakeSpec, img *Image) string {
		t.Helper()
		spec, command, err := spec.complete(img)
		require.NoError(t, err)
		guest, err := GuestDigest(spec.config())
		require.NoError(t, err)
		fp, err := spec.fingerprint(img, guest, command)
		require.NoError(t, err)
		require.Regexp(t, "^[0-9a-f]{64}$", fp)
		return fp
	}
	want := print(base, server())
	require.Equal(t, want, print(base, server()))

	seen := map[string]bool{want: true} // no two are the same, either
	type change = func(*BakeSpec, *Image)
	check := func(typ reflect.Type, changes map[string][]change, same map[string]change) {
		for i := range typ.NumField() {
			name := typ.Field(i).Name
			if c, ok := same[name]; ok {
				spec, img := base, server()
				c(&spec, img)
				require.Equal(t, want, print(spec, img), "%v.%s does not matter", typ, name)
				continue
			}
			require.NotEmpty(t, changes[name], "%v.%s: does it matter to the snapshot?", typ, name)
			for _, c := range changes[name] {
				spec, img := base, server()
				c(&spec, img)
				fp := print(spec, img)
				require.NotContains(t, seen, fp, "%v.%s", typ, name)
				seen[fp] = true
			}
		}
	}
	check(reflect.TypeFor[BakeSpec](), map[string][]change{
		"Name":       {func(s *BakeSpec, _ *Image) { s.Name = "x" }},
		"Entrypoint": {func(s *BakeSpec, _ *Image) { s.Entrypoint = []string{"x"} }},
		"Cmd":        {func(s *BakeSpec, _ *Image) { s.Cmd = []string{"x", "y"} }, func(s *BakeSpec, _ *Image) { s.Cmd = []string{"x y"} }},
		"Env":        {func(s *BakeSpec, _ *Image) { s.Env = []string{"A=2"} }, func(s *BakeSpec, _ *Image) { s.Env = nil }},
		"User":       {func(s *BakeSpec, _ *Image) { s.User = "x" }},
		"Dir":        {func(s *BakeSpec, _ *Image) { s.Dir = "x" }},
		"BootOnly":   {func(s *BakeSpec, _ *Image) { s.BootOnly = true }},
		"MemoryMiB":  {func(s *BakeSpec, _ *Image) { s.MemoryMiB = 257 }},
		"VCPUs":      {func(s *BakeSpec, _ *Image) { s.VCPUs = 2 }},
		"ScratchMiB": {func(s *BakeSpec, _ *Image) { s.ScratchMiB = 257 }},
		"GuestPort":  {func(s *BakeSpec, _ *Image) { s.GuestPort = 1 }},
		"Ready": {
			func(s *BakeSpec, _ *Image) { s.Ready = ReadyPort(1) }, func(s *BakeSpec, _ *Image) { s.Ready = ReadyNow() },
			func(s *BakeSpec, _ *Image) { s.Ready = ReadySettled(time.Second) }, func(s *BakeSpec, _ *Image) { s.Ready = ReadyCommand("a", "b") },
			func(s *BakeSpec, _ *Image) { s.Ready = ReadyCommand("a b") },
		},
		"Warmup": {
			func(s *BakeSpec, _ *Image) { s.Warmup = [][]string{{"a", "b"}} }, func(s *BakeSpec, _ *Image) { s.Warmup = [][]string{{"a"}, {"b"}} },
			func(s *BakeSpec, _ *Image) { s.Warmup = [][]string{{"a b"}} },
		},
		"Assets": {
			func(s *BakeSpec, _ *Image) { s.Assets = fakeAssets(t, "other", "initramfs") },
			func(s *BakeSpec, _ *Image) { s.Assets = fakeAssets(t, "kernel", "other") },
			func(s *BakeSpec, _ *Image) { s.Assets = fakeAssets(t, "initramfs", "kernel") },
		},
	}, map[string]change{
		"Ref":      func(s *BakeSpec, _ *Image) { s.Ref = "another name of the same" },
		"Pull":     func(s *BakeSpec, _ *Image) { s.Pull = PullOptions{Policy: PullAlways} },
		"Timeout":  func(s *BakeSpec, _ *Image) { s.Timeout = time.Second },
		"StateDir": func(s *BakeSpec, _ *Image) { s.StateDir = t.TempDir() },
		"Progress": func(s *BakeSpec, _ *Image) { s.Progress = func(string) {} },
	})
	same := func(*BakeSpec, *Image) {}
	check(reflect.TypeFor[Image](), map[string][]change{
		"Digest":    {func(_ *BakeSpec, i *Image) { i.Digest = "sha256:2" }},
		"RootFSKey": {func(_ *BakeSpec, i *Image) { i.RootFSKey = "layers-2" }},
	}, map[string]change{
		"Ref": func(_ *BakeSpec, i *Image) { i.Ref = "x" }, "ConfigDigest": same, "Platform": same, "Config": same, // see below; the digest covers them
		"RootFS": func(_ *BakeSpec, i *Image) { i.RootFS = "/elsewhere" }, "Size": same, "Created": same,
	})
	check(reflect.TypeFor[oci.Config](), map[string][]change{
		"User":         {func(_ *BakeSpec, i *Image) { i.Config.User = "x" }},
		"Env":          {func(_ *BakeSpec, i *Image) { i.Config.Env = []string{"X=1"} }},
		"Entrypoint":   {func(_ *BakeSpec, i *Image) { i.Config.Entrypoint = []string{"x"} }},
		"Cmd":          {func(_ *BakeSpec, i *Image) { i.Config.Cmd = []string{"x"} }},
		"WorkingDir":   {func(_ *BakeSpec, i *Image) { i.Config.WorkingDir = "/x" }},
		"ExposedPorts": {func(_ *BakeSpec, i *Image) { i.Config.ExposedPorts = []string{"1/tcp"} }},
		"Volumes":      {func(_ *BakeSpec, i *Image) { i.Config.Volumes = []string{"/x"} }},
		"StopSignal":   {func(_ *BakeSpec, i *Image) { i.Config.StopSignal = "SIGINT" }},
		"Labels":       {func(_ *BakeSpec, i *Image) { i.Config.Labels = map[string]string{"x": "y"} }},
	}, nil)
}

// A kernel that was built anew is another, even if it has the length and the times of the old one.
func TestFileDigestsAreForgottenWithTheFile(t *testing.T) {
	state, path := t.TempDir(), filepath.Join(t.TempDir(), "kernel")
	write := func(text string) {
		t.Helper()
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		require.NoError(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	}
	digest := func() string {
		t.Helper()
		sum, err := fileDigest(state, path)
		require.NoError(t, err)
		return sum
	}
	write("one")
	first := digest()
	require.NoDirExists(t, filepath.Join(state, "digests"), "the file may change yet within its clock's tick")
	write("two")
	require.NotEqual(t, first, digest())

	defer func(d time.Duration) { settled = d }(settled)
	settled = 0
	second := digest()
	known, err := os.ReadDir(filepath.Join(state, "digests"))
	require.NoError(t, err)
	require.Len(t, known, 1, "no temporary file is left")
	name := filepath.Join(state, "digests", known[0].Name())
	require.NoError(t, os.WriteFile(name, []byte(first), 0o600))
	require.Equal(t, first, digest(), "it is not read again")
	require.NoError(t, os.Remove(name))
	require.Equal(t, second, digest())
	_, err = fileDigest(state, path+"-missing")
	require.ErrorIs(t, err, ErrAssets)
}
