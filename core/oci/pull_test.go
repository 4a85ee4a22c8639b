package oci_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/oci"
	. "github.com/supermachine/supermachine/core/oci/ocitest"
)

func newStore(t testing.TB) *oci.Store {
	t.Helper()
	s, err := oci.OpenStore(t.TempDir())
	require.NoError(t, err)
	return s
}

// openImage reads an image's root filesystem with an independent implementation of EROFS.
func openImage(t testing.TB, image *oci.Image) fs.FS {
	t.Helper()
	f, err := os.Open(image.RootFS)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	img, err := goerofs.Open(f)
	require.NoError(t, err)
	return img
}

// requireEmptyStore checks that nothing at all is left of a failed pull.
func requireEmptyStore(t testing.TB, s *oci.Store) {
	t.Helper()
	require.Empty(t, storeFiles(t, s))
}

// storeFiles lists the files of a store, except for its own locks.
func storeFiles(t testing.TB, s *oci.Store) []string {
	t.Helper()
	var files []string
	require.NoError(t, fs.WalkDir(os.DirFS(s.Dir()), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && path != "locks/store" && path != "locks/records" {
			files = append(files, path)
		}
		return err
	}))
	return files
}

// fast makes failures quick.
var fast = oci.PullOptions{RetryDelay: time.Millisecond}

// sample is an image with all three compressions.
func sample() *Image {
	return NewImage(v1.Config{
		User: "app", Env: []string{"A=b"}, Entrypoint: []string{"/bin/app"}, Cmd: []string{"-v"}, WorkingDir: "/srv",
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}}, Volumes: map[string]struct{}{"/data": {}},
		StopSignal: "SIGQUIT", Labels: map[string]string{"k": "v"},
	},
		Gzip(File("etc/hostname", "one")),
		Zstd(File("etc/hosts", "two")),
		Plain(File("bin/app", "three").Mode(0o755)))
}

var sampleTree = map[string]string{
	"etc": "/", "etc/hostname": "one", "etc/hosts": "two", "bin": "/", "bin/app": "three",
}

// requests counts the requests that a registry gets, by a classification of the path.
type requests struct {
	mu     sync.Mutex
	counts map[string]int
}

func (r *requests) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			r.mu.Lock()
			if r.counts == nil {
				r.counts = map[string]int{}
			}
			r.counts[filepath.Base(filepath.Dir(req.URL.Path))]++
			r.mu.Unlock()
		}
		h.ServeHTTP(w, req)
	})
}

func (r *requests) take() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := r.counts
	r.counts = nil
	return counts
}

func TestPullFromRegistry(t *testing.T) {
	ctx := context.Background()
	host := NewRegistry(t, nil)
	image := sample()
	require.NoError(t, image.Push(ctx, host, "my/app", "v1"))

	s := newStore(t)
	var events []oci.Event
	got, err := s.Pull(ctx, host+"/my/app:v1", oci.PullOptions{Progress: func(e oci.Event) { events = append(events, e) }})
	require.NoError(t, err)
	require.Equal(t, sampleTree, tree(t, openImage(t, got)))
	require.Equal(t, &oci.Image{
		Ref: host + "/my/app:v1", Digest: image.Digest().String(), ConfigDigest: got.ConfigDigest,
		Platform: "linux/" + runtime.GOARCH,
		Config: oci.Config{
			User: "app", Env: []string{"A=b"}, Entrypoint: []string{"/bin/app"}, Cmd: []string{"-v"}, WorkingDir: "/srv",
			ExposedPorts: []string{"443/tcp", "80/tcp"}, Volumes: []string{"/data"}, StopSignal: "SIGQUIT", Labels: map[string]string{"k": "v"},
		},
		RootFS: got.RootFS, Size: got.Size, Created: MTime.UTC(), RootFSKey: got.RootFSKey,
	}, got)
	require.Equal(t, oci.EventResolved, events[0].Kind)
	require.Equal(t, 3, events[0].Layers)
	last := events[len(events)-1]
	require.Equal(t, oci.EventDone, last.Kind)
	require.Equal(t, last.Total, last.Done)
	for _, kind := range []oci.EventKind{oci.EventFetch, oci.EventConvert} {
		done := map[int]bool{}
		for _, e := range events {
			if e.Kind == kind && e.Done == e.Total {
				done[e.Layer] = true
			}
		}
		require.Len(t, done, 3)
	}
	// Blobs, locks and temporary files are gone; the root filesystem, the image and its reference stay.
	require.Len(t, storeFiles(t, s), 3)
}

func TestSources(t *testing.T) {
	ctx := context.Background()
	image := sample()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, content []byte) { require.NoError(t, os.WriteFile(in(name), content, 0o644)) }
	host := NewRegistry(t, nil)
	require.NoError(t, image.Push(ctx, host, "app", "v1"))
	other := NewImage(v1.Config{}, Plain(File("other", "")))
	require.NoError(t, WriteLayout(in("one"), map[string]*Image{"v1": image}))
	require.NoError(t, WriteLayout(in("two"), map[string]*Image{"v1": image, "v2": other}))
	write("oci.tar", Archive(map[string]*Image{"v1": image, "v2": other}))
	write("docker.tar", DockerArchive(map[string]*Image{"app:v1": image}))
	write("docker2.tar", DockerArchive(map[string]*Image{"app:v1": image, "host:5000/other:v2": other}))
	var compressed bytes.Buffer
	z := gzip.NewWriter(&compressed)
	_, err := z.Write(DockerArchive(map[string]*Image{"app:v1": image}))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	write("docker.tar.gz", compressed.Bytes())

	s := newStore(t)
	var rootfs string
	for _, tt := range []struct {
		ref      string
		noDigest bool // docker's archives have no manifest
	}{
		{ref: host + "/app:v1"},
		{ref: "docker://" + host + "/app:v1"},
		{ref: host + "/app@" + image.Digest().String()},
		{ref: host + "/app:ignored@" + image.Digest().String()},
		{ref: "oci:" + in("one")},
		{ref: "oci:" + in("one") + ":v1"},
		{ref: "oci:" + in("two") + ":v1"},
		{ref: "oci:" + in("two") + "@" + image.Digest().String()},
		{ref: in("one")},
		{ref: in("two") + ":v1"},
		{ref: "oci-archive:" + in("oci.tar") + ":v1"},
		{ref: in("oci.tar") + ":v1"},
		{ref: "docker-archive:" + in("docker.tar"), noDigest: true},
		{ref: "docker-archive:" + in("docker2.tar") + ":v1", noDigest: true},
		{ref: "docker-archive:" + in("docker2.tar") + ":app:v1", noDigest: true},
		{ref: in("docker.tar"), noDigest: true},
		{ref: in("docker.tar.gz"), noDigest: true},
	} {
		t.Run(tt.ref, func(t *testing.T) {
			got, err := s.Pull(ctx, tt.ref, fast)
			require.NoError(t, err)
			require.Equal(t, sampleTree, tree(t, openImage(t, got)))
			if !tt.noDigest {
				require.Equal(t, image.Digest().String(), got.Digest)
			}
			if rootfs == "" {
				rootfs = got.RootFS
			}
			require.Equal(t, rootfs, got.RootFS, "images of equal layers share one file")
			again, err := s.Get(tt.ref, "")
			require.NoError(t, err)
			require.Equal(t, got, again)
		})
	}

	write("junk.tar", Tar(File("a", "b")))
	write("text", []byte("hello"))
	write("broken.tar.gz", compressed.Bytes()[:compressed.Len()/2])
	require.NoError(t, os.Mkdir(in("empty"), 0o755))
	for ref, want := range map[string]struct {
		kind error
		text string
	}{
		"oci:" + in("none"):                   {oci.ErrNotFound, "no such file"},
		in("none"):                            {oci.ErrNotFound, "no such file"},
		in("empty"):                           {oci.ErrNotFound, "index.json"},
		"oci:" + in("two") + ":v3":            {oci.ErrNotFound, "holds the images v1, v2"},
		"oci:" + in("two"):                    {oci.ErrNotFound, "holds the images v1, v2"},
		"docker-archive:" + in("docker2.tar"): {oci.ErrNotFound, "app:v1, host:5000/other:v2"},
		"docker-archive:" + in("one"):         {oci.ErrInvalidImage, "is a directory"},
		"oci:" + in("docker.tar"):             {oci.ErrInvalidImage, "is not a directory"},
		in("junk.tar"):                        {oci.ErrInvalidImage, "not an image archive"},
		in("text"):                            {oci.ErrInvalidImage, "not an image archive"},
		in("broken.tar.gz"):                   {oci.ErrInvalidImage, "bad compressed data"},
	} {
		t.Run(ref, func(t *testing.T) {
			_, err := s.Pull(ctx, ref, fast)
			require.ErrorIs(t, err, want.kind)
			require.ErrorContains(t, err, want.text)
			require.ErrorContains(t, err, "pull "+ref)
		})
	}
}

func TestPlatforms(t *testing.T) {
	ctx := context.Background()
	host := NewRegistry(t, nil)
	forPlatform := func(os, arch, variant string) *Image {
		p := v1.Platform{OS: os, Architecture: arch, Variant: variant}
		return NewImageFor(p, v1.Config{}, Plain(File("platform", p.String())))
	}
	attestation := NewImage(v1.Config{}, Plain())
	attestation.Platform = v1.Platform{OS: "unknown", Architecture: "unknown"}
	index := NewIndex(attestation, forPlatform("linux", "amd64", ""), forPlatform("linux", "arm64", "v8"),
		forPlatform("linux", "arm", "v6"), forPlatform("linux", "arm", "v7"), forPlatform("windows", "amd64", ""))
	require.NoError(t, index.Push(ctx, host, "multi", "v1"))
	require.NoError(t, NewIndex(index).Push(ctx, host, "nested", "v1"))
	require.NoError(t, forPlatform("linux", "s390x", "").Push(ctx, host, "single", "v1"))

	s := newStore(t)
	for platform, want := range map[string]string{
		"": "linux/" + runtime.GOARCH, "linux/amd64": "linux/amd64", "linux/arm64": "linux/arm64/v8", "linux/arm64/v8": "linux/arm64/v8",
		"linux/arm": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "windows/amd64": "windows/amd64",
	} {
		image, err := s.Pull(ctx, host+"/multi:v1", oci.PullOptions{Platform: platform})
		require.NoError(t, err, platform)
		content, err := fs.ReadFile(openImage(t, image), "platform")
		require.NoError(t, err)
		if platform != "" || runtime.GOARCH == "amd64" {
			require.Equal(t, want, string(content))
			require.Equal(t, want, image.Platform)
		}
	}
	image, err := s.Pull(ctx, host+"/nested:v1", oci.PullOptions{Platform: "linux/arm"})
	require.NoError(t, err)
	require.Equal(t, "linux/arm/v7", image.Platform)

	var missing *oci.PlatformError
	_, err = s.Pull(ctx, host+"/multi:v1", oci.PullOptions{Platform: "linux/riscv64"})
	require.ErrorIs(t, err, oci.ErrPlatform)
	require.ErrorAs(t, err, &missing)
	require.Equal(t, &oci.PlatformError{
		Want:      "linux/riscv64",
		Available: []string{"linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "windows/amd64"},
	}, missing)

	_, err = s.Pull(ctx, host+"/single:v1", oci.PullOptions{Platform: "linux/amd64"})
	require.ErrorIs(t, err, oci.ErrPlatform)
	require.ErrorContains(t, err, "available: linux/s390x")

	_, err = s.Pull(ctx, host+"/multi:v1", oci.PullOptions{Platform: "amd64"})
	require.ErrorIs(t, err, oci.ErrPlatform)
	require.ErrorContains(t, err, "expected OS/ARCH")
}

func TestPolicies(t *testing.T) {
	ctx := context.Background()
	var seen requests
	host := NewRegistry(t, seen.wrap)
	require.NoError(t, sample().Push(ctx, host, "app", "latest"))
	ref := host + "/app"
	s := newStore(t)
	pull := func(p oci.Policy) (*oci.Image, error) {
		return s.Pull(ctx, ref, oci.PullOptions{Policy: p})
	}
	_, err := pull(oci.PullNever)
	require.ErrorIs(t, err, oci.ErrNotPulled)
	require.Empty(t, seen.take())

	first, err := pull(oci.PullMissing)
	require.NoError(t, err)
	require.Equal(t, 4, seen.take()["blobs"], "three layers and a config")
	for _, p := range []oci.Policy{oci.PullMissing, oci.PullNever} {
		again, err := pull(p)
		require.NoError(t, err)
		require.Equal(t, first, again)
		require.Empty(t, seen.take())
	}
	_, err = pull(oci.PullAlways)
	require.NoError(t, err)
	require.Equal(t, 1, seen.take()["blobs"], "only the config: the image is the same")

	changed := NewImage(v1.Config{}, Plain(File("new", "")))
	require.NoError(t, changed.Push(ctx, host, "app", "latest"))
	missing, err := pull(oci.PullMissing)
	require.NoError(t, err)
	require.Equal(t, first.Digest, missing.Digest)
	second, err := pull(oci.PullAlways)
	require.NoError(t, err)
	require.Equal(t, changed.Digest().String(), second.Digest)

	for text, want := range map[string]oci.Policy{"": oci.PullMissing, "missing": oci.PullMissing, "always": oci.PullAlways, "never": oci.PullNever} {
		got, err := oci.ParsePolicy(text)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err = oci.ParsePolicy("sometimes")
	require.Error(t, err)
}

func TestPullsAtOnceShareTheWork(t *testing.T) {
	ctx := context.Background()
	var seen requests
	host := NewRegistry(t, seen.wrap)
	base := Gzip(File("base", string(bytes.Repeat([]byte("0123456789abcdef"), 1<<16))))
	require.NoError(t, NewImage(v1.Config{}, base, Gzip(File("a", ""))).Push(ctx, host, "app", "a"))
	require.NoError(t, NewImage(v1.Config{}, base, Gzip(File("b", ""))).Push(ctx, host, "app", "b"))
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s, err := oci.OpenStore(dir)
			if err == nil {
				_, err = s.Pull(ctx, host+"/app:"+[]string{"a", "b"}[i%2], oci.PullOptions{})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s, err := oci.OpenStore(dir)
	require.NoError(t, err)
	require.Len(t, storeFiles(t, s), 6)
	// A config for each of eight pulls; each layer once, and the shared one perhaps twice.
	require.LessOrEqual(t, seen.take()["blobs"], 8+4)
}

func TestBadManifests(t *testing.T) {
	ctx := context.Background()
	good := sample()
	with := func(change func(i *Image)) *Image {
		i := *good
		change(&i)
		return &i
	}
	manifest := func(text string) *Image {
		return with(func(i *Image) { i.Manifest = []byte(text) })
	}
	fewer := NewImage(v1.Config{}, Plain())
	fewer.Manifest = bytes.Replace(fewer.Manifest, []byte(`"layers":[`), []byte(`"layers":[`+string(layerJSON(Plain(File("x", ""))))+`,`), 1)
	odd := Plain()
	odd.MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	for name, tt := range map[string]struct {
		image *Image
		text  string
	}{
		"no JSON":             {manifest("hello"), "manifest"},
		"no manifest":         {manifest(`{"schemaVersion":2}`), "manifest"},
		"schema 1":            {manifest(`{"schemaVersion":1}`), "schema version 1"},
		"both":                {manifest(`{"schemaVersion":2,"layers":[],"manifests":[]}`), "both"},
		"no config":           {manifest(`{"schemaVersion":2,"layers":[]}`), "config"},
		"bad digest":          {manifest(`{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1},"layers":[]}`), "manifest"},
		"more layers":         {fewer, "2 layers, but the config names 1"},
		"not an image":        {NewImage(v1.Config{}, odd), "cannot be read"},
		"other kind of thing": {manifest(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.example","digest":"sha256:` + good.Digest().Hex + `","size":1},"layers":[]}`), "not a container image"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tt.image.MediaType = types.OCIManifestSchema1
			require.NoError(t, WriteLayout(dir, map[string]*Image{"v1": tt.image}))
			s := newStore(t)
			_, err := s.Pull(ctx, dir, oci.PullOptions{})
			require.ErrorIs(t, err, oci.ErrInvalidImage)
			require.ErrorContains(t, err, tt.text)
			requireEmptyStore(t, s)
		})
	}
	t.Run("too large", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, WriteLayout(dir, map[string]*Image{"v1": good}))
		_, err := newStore(t).Pull(ctx, dir, oci.PullOptions{Limits: oci.Limits{ManifestBytes: 100}})
		require.ErrorIs(t, err, oci.ErrLimit)
	})
}

func layerJSON(l Layer) []byte {
	return []byte(`{"mediaType":"` + string(l.MediaType) + `","size":1,"digest":"` + l.Digest.String() + `"}`)
}
