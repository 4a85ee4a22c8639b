// Package vmtest helps tests that run real guests: it finds the guest's files and the test images, and keeps one VM for all the tests that
// only run programs. A package that uses it calls Main from its TestMain.
package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/kvm"
)

// RequireKVMEnv names the environment variable that, when it is 1, turns the skipping of tests without usable KVM into a failure.
const RequireKVMEnv = "SUPERMACHINE_REQUIRE_KVM"

// ImagesEnv names the environment variable that holds the directory that images/build prints. Without it the tests run images/build.
const ImagesEnv = "SUPERMACHINE_TEST_IMAGES"

// SoakEnv names the environment variable that, when it is 1, runs the tests that take minutes, and others longer.
const SoakEnv = "SUPERMACHINE_SOAK"

// Soak reports whether tests may take their time.
func Soak() bool { return os.Getenv(SoakEnv) == "1" }

// RequireSoak skips the test unless tests may take minutes.
func RequireSoak(t testing.TB) {
	t.Helper()
	if !Soak() {
		t.Skipf("takes minutes in an emulated host: needs %s=1, as make soak sets it", SoakEnv)
	}
}

// Times returns few, or many where tests may take their time.
func Times(few, many int) int {
	if Soak() {
		return many
	}
	return few
}

var shared struct {
	once sync.Once
	vm   *core.VM
	err  error
}

// Main runs the tests with a home directory of their own and the guest's files of this repository's build, and returns the status to
// exit with.
func Main(m *testing.M) int {
	home, err := os.MkdirTemp("", "supermachine-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(home)
	os.Setenv(core.HomeEnv, home)
	if os.Getenv(core.AssetsEnv) == "" {
		os.Setenv(core.AssetsEnv, filepath.Join(Root(), "build", "share", "supermachine"))
	}
	defer func() {
		if shared.vm != nil {
			shared.vm.Close()
		}
	}()
	return m.Run()
}

// Root returns the repository's directory: the nearest one above the working directory that holds go.mod.
func Root() string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			panic("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

// RequireKVM skips the test where no VM can run, or fails it if the environment demands that one can.
func RequireKVM(t testing.TB) {
	t.Helper()
	_, err := kvm.Open()
	switch {
	case err == nil:
	case os.Getenv(RequireKVMEnv) == "1":
		t.Fatalf("%s is set and KVM does not work: %v", RequireKVMEnv, err)
	default:
		t.Skipf("needs KVM (testbed/run brings it): %v", err)
	}
}

var imagesDir = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(ImagesEnv); dir != "" {
		return dir, nil
	}
	cmd := exec.Command(filepath.Join(Root(), "images", "build"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], err
})

// ImagesDir returns the directory of the test images: the OCI layouts busybox and debian, and a registry's storage.
func ImagesDir(t testing.TB) string {
	t.Helper()
	dir, err := imagesDir()
	require.NoError(t, err, "images/build")
	return dir
}

// Image returns one of the test images, "busybox" or "debian", from its OCI layout.
func Image(t testing.TB, name string) *core.Image {
	t.Helper()
	return Pull(t, "oci:"+filepath.Join(ImagesDir(t), name)+":latest")
}

// Pull makes an image available in the tests' store.
func Pull(t testing.TB, ref string) *core.Image {
	t.Helper()
	store, err := core.OpenImages("")
	require.NoError(t, err)
	img, err := store.Pull(t.Context(), ref, core.PullOptions{Policy: core.PullMissing})
	require.NoError(t, err)
	return img
}

// Start boots an image and closes the VM at the test's end. If the test fails, the guest's console is logged.
func Start(t testing.TB, img *core.Image, cfg core.Config) *core.VM {
	t.Helper()
	RequireKVM(t)
	vm, err := core.Start(t.Context(), img, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of VM %s:\n%s", vm.Name(), vm.ConsoleTail(4<<10))
		}
		vm.Close()
	})
	return vm
}

// Shared returns a busybox VM that all tests of the package use together. Tests must not change what others could notice.
func Shared(t testing.TB) *core.VM {
	t.Helper()
	RequireKVM(t)
	img := Image(t, "busybox")
	shared.once.Do(func() {
		shared.vm, shared.err = core.Start(context.Background(), img, core.Config{Name: "shared"})
	})
	require.NoError(t, shared.err)
	return shared.vm
}

// Shell runs a script with /bin/sh in the VM, requires that it succeeds without a word on stderr and returns its output without the
// last newline.
func Shell(t testing.TB, vm *core.VM, script string) string {
	t.Helper()
	out, err := vm.Run(t.Context(), core.Exec{Args: []string{"/bin/sh", "-c", script}})
	require.NoError(t, err, script)
	require.Zero(t, out.Code, "%s\n%s%s", script, out.Stdout, out.Stderr)
	require.Empty(t, string(out.Stderr), script)
	return string(bytes.TrimSuffix(out.Stdout, []byte("\n")))
}

// CopyAssets returns a directory with links to the guest's kernel and initramfs, except those that are replaced by other contents: the keys
// are "vmlinux" and "initramfs", nil leaves a file out.
func CopyAssets(t testing.TB, replaced map[string][]byte) string {
	t.Helper()
	assets, err := core.FindAssets("")
	require.NoError(t, err)
	dir := t.TempDir()
	for key, original := range map[string]string{"vmlinux": assets.Kernel, "initramfs": assets.Initramfs} {
		path := filepath.Join(dir, filepath.Base(original))
		content, ok := replaced[key]
		switch {
		case !ok:
			require.NoError(t, os.Symlink(original, path))
		case content != nil:
			require.NoError(t, os.WriteFile(path, content, 0o644))
		}
	}
	return dir
}

// Stacks returns the stacks of all goroutines, for leaks.
func Stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
