package core_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/oci/ocitest"
	"github.com/supermachine/supermachine/core/vmtest"
)

func TestVMRunsBusybox(t *testing.T) {
	vm := vmtest.Shared(t)
	require.Equal(t, "hello", vmtest.Shell(t, vm, "echo hello"))
	require.Equal(t, "shared", vmtest.Shell(t, vm, "hostname"), "the VM's name is its host name")
	require.Equal(t, "127.0.1.1", vmtest.Shell(t, vm, "awk '$2 == \"shared\" { print $1 }' /etc/hosts"))
	require.Equal(t, "rw", vmtest.Shell(t, vm, "touch /written && rm /written && echo rw"))
}

// TestDebianFromARegistry pulls from a registry process over HTTP what most images are like, and uses its servers.
func TestDebianFromARegistry(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	img := vmtest.Pull(t, serveImages(t)+"/debian:bookworm")
	vm := vmtest.Start(t, img, core.Config{Name: "debian", VCPUs: 2})

	t.Run("python", func(t *testing.T) {
		out, err := vm.Run(t.Context(), core.Exec{Args: []string{"python3", "-c", "import platform, sys; print(sys.version_info[0], platform.node()); sys.exit(3)"}})
		require.NoError(t, err)
		require.Equal(t, "3 debian\n", string(out.Stdout), string(out.Stderr))
		require.Equal(t, 3, out.Code)
	})

	t.Run("nginx, the image's own command", func(t *testing.T) {
		p, err := vm.Exec(t.Context(), core.Exec{Args: core.Command(img, nil), Main: true})
		require.NoError(t, err)
		defer p.Kill()
		byConnect := http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return vm.Connect(ctx, 80) },
		}}
		defer byConnect.CloseIdleConnections()
		eventually(t, func() bool {
			resp, err := byConnect.Get("http://guest/")
			if err != nil {
				return false
			}
			resp.Body.Close()
			return true
		}, "nginx does not answer")
		page := get(t, &byConnect, "http://guest/")
		require.NotEmpty(t, page)

		for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "web")} {
			f, err := vm.Forward(network, address, 80)
			require.NoError(t, err)
			byForward := http.Client{Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, f.Addr().String())
				},
			}}
			for range 3 {
				require.Equal(t, page, get(t, &byForward, "http://guest/"))
				byForward.CloseIdleConnections()
			}
			require.NoError(t, f.Close())
			require.NoError(t, f.Close(), "closing twice is allowed")
			_, err = net.Dial(network, f.Addr().String())
			require.Error(t, err)
		}
	})

	t.Run("redis", func(t *testing.T) {
		p, err := vm.Exec(t.Context(), core.Exec{Args: []string{"redis-server", "--save", ""}})
		require.NoError(t, err)
		defer p.Kill()
		eventually(t, func() bool {
			out, err := vm.Run(t.Context(), core.Exec{Args: []string{"redis-cli", "ping"}})
			require.NoError(t, err)
			return string(out.Stdout) == "PONG\n"
		}, "redis does not answer")
	})
}

func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

// serveImages runs a registry with the test images until the test's end and returns its address.
func serveImages(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(vmtest.Root(), "images", "serve"), "--port", "0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	for s := bufio.NewScanner(out); s.Scan(); {
		if address, ok := strings.CutPrefix(s.Text(), "registry ready at "); ok {
			return address
		}
	}
	require.Fail(t, "the registry did not start")
	return ""
}

func TestOddImagesKeepEverything(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	dir := t.TempDir()
	images := map[string]*ocitest.Image{}
	odd := ocitest.Odd(busyboxLayer(t))
	for _, o := range odd {
		images[o.Name] = o.Image
	}
	require.NoError(t, ocitest.WriteLayout(dir, images))
	for _, o := range odd {
		t.Run(o.Name, func(t *testing.T) {
			t.Parallel()
			vm := vmtest.Start(t, vmtest.Pull(t, "oci:"+dir+":"+o.Name), core.Config{MemoryMiB: 128})
			out, err := vm.Run(t.Context(), sh("set -x; "+o.Check))
			require.NoError(t, err)
			require.Zero(t, out.Code, "%s", out.Stderr)
		})
	}
}

// busyboxLayer returns the one layer of the busybox image, for images on top of it.
func busyboxLayer(t *testing.T) ocitest.Layer {
	t.Helper()
	index, err := layout.ImageIndexFromPath(filepath.Join(vmtest.ImagesDir(t), "busybox"))
	require.NoError(t, err)
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	img, err := index.Image(manifest.Manifests[0].Digest)
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	require.Len(t, layers, 1)
	r, err := layers[0].Compressed()
	require.NoError(t, err)
	defer r.Close()
	blob, err := io.ReadAll(r)
	require.NoError(t, err)
	l := ocitest.Layer{Size: int64(len(blob)), Blob: blob}
	l.DiffID, err = layers[0].DiffID()
	require.NoError(t, err)
	l.Digest, err = layers[0].Digest()
	require.NoError(t, err)
	l.MediaType, err = layers[0].MediaType()
	require.NoError(t, err)
	return l
}

// busyboxWith returns a busybox image with another configuration.
func busyboxWith(t *testing.T, config v1.Config) *core.Image {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, ocitest.WriteLayout(dir, map[string]*ocitest.Image{"latest": ocitest.NewImage(config, busyboxLayer(t))}))
	return vmtest.Pull(t, "oci:"+dir+":latest")
}

func TestScratchDiskFullIsTheProgramsMatterAlone(t *testing.T) {
	t.Parallel()
	vm := vmtest.Start(t, vmtest.Image(t, "busybox"), core.Config{MemoryMiB: 128, ScratchMiB: 16})
	out, err := vm.Run(t.Context(), sh("dd if=/dev/zero of=/large bs=1M count=64"))
	require.NoError(t, err)
	require.NotZero(t, out.Code)
	require.Contains(t, string(out.Stderr), "No space left on device")
	err = vm.WriteFile(t.Context(), "/more", bytes.NewReader(make([]byte, 1<<20)), 0o600)
	require.ErrorIs(t, err, core.ErrDiskFull)
	require.Equal(t, "room again", vmtest.Shell(t, vm, "rm /large; dd if=/dev/zero of=/small bs=1M count=4 2>/dev/null && echo room again"))
	require.NoError(t, vm.WriteFile(t.Context(), "/more", bytes.NewReader(make([]byte, 1<<20)), 0o600))
}
