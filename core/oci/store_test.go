package oci_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/oci"
	. "github.com/supermachine/supermachine/core/oci/ocitest"
)

func TestGetListRemove(t *testing.T) {
	ctx := context.Background()
	host := NewRegistry(t, nil)
	image := sample()
	sameLayers := NewImage(v1.Config{User: "other"}, Gzip(File("etc/hostname", "one")), Zstd(File("etc/hosts", "two")), Plain(File("bin/app", "three").Mode(0o755)))
	require.NoError(t, image.Push(ctx, host, "a", "v1"))
	require.NoError(t, image.Push(ctx, host, "b", "v1"))
	require.NoError(t, sameLayers.Push(ctx, host, "c", "v1"))
	s := newStore(t)
	list, err := s.List()
	require.NoError(t, err)
	require.Empty(t, list)

	for _, name := range []string{"/c:v1", "/b:v1", "/a:v1"} {
		_, err := s.Pull(ctx, host+name, fast)
		require.NoError(t, err)
	}
	list, err = s.List()
	require.NoError(t, err)
	require.Equal(t, []string{host + "/a:v1", host + "/b:v1", host + "/c:v1"}, []string{list[0].Ref, list[1].Ref, list[2].Ref})
	require.Equal(t, list[0].RootFS, list[2].RootFS)
	require.NotEqual(t, list[0].Digest, list[2].Digest)

	hex := image.Digest().Hex
	for _, name := range []string{"sha256:" + hex, hex, hex[:12], list[0].ConfigDigest, strings.TrimPrefix(list[0].ConfigDigest, "sha256:")[:8]} {
		got, err := s.Get(name, "")
		require.NoError(t, err, name)
		require.Equal(t, image.Digest().String(), got.Digest)
	}
	for _, name := range []string{"nope", hex[:5], strings.Repeat("0", 64), host + "/a:v2"} {
		_, err := s.Get(name, "")
		require.ErrorIs(t, err, oci.ErrNotPulled, name)
	}
	_, err = s.Get("NOT A NAME", "")
	require.ErrorIs(t, err, oci.ErrInvalidReference)
	_, err = s.Get(host+"/a:v1", "linux/mips")
	require.ErrorIs(t, err, oci.ErrNotPulled)

	require.NoError(t, s.Remove(ctx, host+"/a:v1", ""))
	_, err = s.Get(host+"/a:v1", "")
	require.ErrorIs(t, err, oci.ErrNotPulled)
	got, err := s.Get(host+"/b:v1", "")
	require.NoError(t, err)
	require.FileExists(t, got.RootFS)
	require.NoError(t, s.Remove(ctx, hex[:12], ""))
	require.FileExists(t, got.RootFS, "the third image still has it")
	require.NoError(t, s.Remove(ctx, host+"/c:v1", ""))
	require.ErrorIs(t, s.Remove(ctx, host+"/c:v1", ""), oci.ErrNotPulled)
	requireEmptyStore(t, s)
}

func TestPrune(t *testing.T) {
	ctx := context.Background()
	host := NewRegistry(t, nil)
	s := newStore(t)
	for _, content := range []string{"old", "new"} {
		require.NoError(t, NewImage(v1.Config{}, Plain(File("a", content))).Push(ctx, host, "app", "latest"))
		_, err := s.Pull(ctx, host+"/app", oci.PullOptions{Policy: oci.PullAlways})
		require.NoError(t, err)
	}
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Empty(t, list[0].Ref, "what the reference meant before")
	for _, name := range []string{"tmp/left", "blobs/sha256/left", "rootfs/left.erofs", "locks/left"} {
		require.NoError(t, os.WriteFile(filepath.Join(s.Dir(), name), nil, 0o600))
	}
	require.NoError(t, s.Prune(ctx))
	list, err = s.List()
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.Len(t, storeFiles(t, s), 3)
}

func TestDamagedStore(t *testing.T) {
	ctx := context.Background()
	host := NewRegistry(t, nil)
	require.NoError(t, sample().Push(ctx, host, "app", "v1"))
	s := newStore(t)
	image, err := s.Pull(ctx, host+"/app:v1", fast)
	require.NoError(t, err)

	// A lost or cut root filesystem is as good as an image that was never pulled.
	require.NoError(t, os.Remove(image.RootFS))
	_, err = s.Get(host+"/app:v1", "")
	require.ErrorIs(t, err, oci.ErrNotPulled)
	_, err = s.Pull(ctx, host+"/app:v1", fast)
	require.NoError(t, err)
	require.Equal(t, sampleTree, tree(t, openImage(t, image)))

	// Blobs that an earlier run left are checked before they are used.
	require.NoError(t, s.Remove(ctx, host+"/app:v1", ""))
	blob := filepath.Join(s.Dir(), "blobs", "sha256", Gzip(File("etc/hostname", "one")).Digest.Hex)
	require.NoError(t, os.WriteFile(blob, []byte("junk"), 0o600))
	_, err = s.Pull(ctx, host+"/app:v1", fast)
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(filepath.Join(s.Dir(), "images", image.Digest[7:]+".json"), []byte("{"), 0o600))
	_, err = s.Get(host+"/app:v1", "")
	require.ErrorIs(t, err, oci.ErrStore)
	_, err = s.Pull(ctx, host+"/app:v1", fast)
	require.NoError(t, err)
	_, err = s.Get(host+"/app:v1", "")
	require.NoError(t, err)
}

func TestStoreCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := oci.OpenStore(filepath.Join(file, "store"))
	require.ErrorIs(t, err, oci.ErrStore)
	require.ErrorContains(t, err, "open store "+file)
}

func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 || runtime.GOOS != "linux" {
		t.Skip("needs root to mount a small tmpfs")
	}
	ctx := context.Background()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a tmpfs: %s", out)
	}
	t.Cleanup(func() { require.NoError(t, exec.Command("umount", dir).Run()) })
	s, err := oci.OpenStore(filepath.Join(dir, "store"))
	require.NoError(t, err)
	host := NewRegistry(t, nil)
	image := NewImage(v1.Config{}, noise(2<<20)) // the blob fits, the image then does not
	require.NoError(t, image.Push(ctx, host, "app", "fits"))
	require.NoError(t, NewImage(v1.Config{}, noise(5<<20)).Push(ctx, host, "app", "larger"))
	layout := t.TempDir()
	require.NoError(t, WriteLayout(layout, map[string]*Image{"v1": NewImage(v1.Config{}, noise(5<<20))}))
	for _, ref := range []string{host + "/app:fits", host + "/app:larger", layout} {
		_, err := s.Pull(ctx, ref, fast)
		require.ErrorIs(t, err, oci.ErrDiskFull)
		require.ErrorContains(t, err, "no space left for the image store")
		requireEmptyStore(t, s)
	}
}

// A child of the next test pulls, says so and exits; its parent kills it before that.
func TestMain(m *testing.M) {
	if dir := os.Getenv("OCI_TEST_STORE"); dir != "" {
		s, err := oci.OpenStore(dir)
		if err == nil {
			_, err = s.Pull(context.Background(), os.Getenv("OCI_TEST_REF"), oci.PullOptions{RetryDelay: time.Millisecond})
		}
		if err != nil {
			io.WriteString(os.Stderr, err.Error())
			os.Exit(1)
		}
		io.WriteString(os.Stdout, "pulled\n")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestKilledPull kills pulls at many points, from the first instant to the last,
// and checks each time that the next pull gets everything right and cleans up.
func TestKilledPull(t *testing.T) {
	ctx := context.Background()
	host := NewRegistry(t, nil)
	image := NewImage(v1.Config{}, Gzip(File("a/low", "1"), File("gone", "")), noise(4<<20), Gzip(Whiteout("gone"), File("a/up", "2")))
	require.NoError(t, image.Push(ctx, host, "app", "v1"))
	self, err := os.Executable()
	require.NoError(t, err)
	child := func(dir string) *exec.Cmd {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "OCI_TEST_STORE="+dir, "OCI_TEST_REF="+host+"/app:v1")
		return cmd
	}
	// How long an undisturbed pull takes tells where the points are.
	start := time.Now()
	line, cmd := startChild(t, child(t.TempDir()))
	require.Equal(t, "pulled\n", line())
	whole := time.Since(start)
	require.NoError(t, cmd.Wait())

	const points = 40
	dir := t.TempDir()
	killed := 0
	for i := range points {
		if i%4 == 0 {
			dir = t.TempDir() // the others find what several killed pulls left
		}
		line, cmd := startChild(t, child(dir))
		timer := time.AfterFunc(whole*time.Duration(i+1)/points, func() { cmd.Process.Kill() })
		said := line()
		err = cmd.Wait()
		timer.Stop()
		if said == "" {
			status := cmd.ProcessState.Sys().(syscall.WaitStatus)
			require.True(t, status.Signaled(), "%v", err)
			killed++
		}
		if i%4 < 3 {
			continue
		}
		s, err := oci.OpenStore(dir)
		require.NoError(t, err)
		got, err := s.Pull(ctx, host+"/app:v1", oci.PullOptions{Policy: oci.PullAlways})
		require.NoError(t, err)
		names := tree(t, openImage(t, got))
		require.Len(t, names["noise"], 4<<20)
		delete(names, "noise")
		require.Equal(t, map[string]string{"a": "/", "a/low": "1", "a/up": "2"}, names)
		fsck(t, got)
		require.Len(t, storeFiles(t, s), 3, "no more than the image and its records")
	}
	require.NotZero(t, killed)
	t.Logf("%d of %d pulls were killed before their end", killed, points)
}

// startChild starts a command and returns what waits for its first line, "" if it ends without one.
func startChild(t *testing.T, cmd *exec.Cmd) (line func() string, started *exec.Cmd) {
	pipe, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return func() string {
		line, _ := bufio.NewReader(pipe).ReadString('\n')
		return line
	}, cmd
}

func TestTwoProcessesPullTheSameImage(t *testing.T) {
	ctx := context.Background()
	var seen requests
	host := NewRegistry(t, seen.wrap)
	require.NoError(t, NewImage(v1.Config{}, noise(1<<20)).Push(ctx, host, "app", "v1"))
	self, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	var all []*exec.Cmd
	for range 3 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "OCI_TEST_STORE="+dir, "OCI_TEST_REF="+host+"/app:v1")
		require.NoError(t, cmd.Start())
		all = append(all, cmd)
	}
	for _, cmd := range all {
		require.NoError(t, cmd.Wait())
	}
	require.LessOrEqual(t, seen.take()["blobs"], 3+1, "three configs, one layer")
	s, err := oci.OpenStore(dir)
	require.NoError(t, err)
	require.Len(t, storeFiles(t, s), 3)
}
