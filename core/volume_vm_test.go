package core_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

func volume(t *testing.T) core.Volume {
	return core.Volume{File: filepath.Join(t.TempDir(), "data.img"), Path: "/var/lib/data", SizeMiB: 64}
}

// fsck has e2fsck repair what a journal leaves open, and then fails unless the file system is whole.
func fsck(t *testing.T, file string) {
	t.Helper()
	out, err := exec.Command("/usr/sbin/e2fsck", "-p", file).CombinedOutput()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit, "%s", out)
		require.Equal(t, 1, exit.ExitCode(), "%s", out)
	}
	out, err = exec.Command("/usr/sbin/e2fsck", "-fn", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// A volume keeps what is written over boots and restores, belongs to whom the image says, and is left clean.
func TestVolumesOutliveTheirVMs(t *testing.T) {
	t.Parallel()
	v := volume(t)
	store := openSnapshots(t)
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	booted, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Volumes: []core.Volume{v}})
	require.NoError(t, err)
	defer booted.Close()
	require.Equal(t, "0", vmtest.Shell(t, booted, "ls /var/lib/data | wc -l"), "nothing is in the way of programs that want an empty directory")
	vmtest.Shell(t, booted, "echo first > /var/lib/data/log; grep -q ' /var/lib/data ext4 rw,nodev' /proc/mounts")
	_, err = snap.Start(t.Context(), core.StartOptions{Volumes: []core.Volume{v}})
	require.ErrorIs(t, err, core.ErrInUse)
	require.NoError(t, booted.Stop(t.Context(), 0))
	booted.Close()
	out, err := exec.Command("/usr/sbin/e2fsck", "-fn", v.File).CombinedOutput()
	require.NoError(t, err, "it was unmounted, so there is nothing to repair: %s", out)

	for i := range 2 {
		vm, err := snap.Start(t.Context(), core.StartOptions{Volumes: []core.Volume{v}})
		require.NoError(t, err)
		defer vm.Close()
		vmtest.Shell(t, vm, fmt.Sprintf("echo restored %d >> /var/lib/data/log", i))
		vm.Close()
	}
	ro := v
	ro.ReadOnly = true
	vm, err := snap.Start(t.Context(), core.StartOptions{Volumes: []core.Volume{ro}})
	require.NoError(t, err)
	defer vm.Close()
	require.Equal(t, "first\nrestored 0\nrestored 1", vmtest.Shell(t, vm, "cat /var/lib/data/log"))
	require.Equal(t, "Read-only file system", vmtest.Shell(t, vm, "echo x 2>&1 >/var/lib/data/x | sed 's/.*: //'"))
}

// Copies of a VM have nothing of its volume, not even what they had open, and may get another in its place, again and again.
func TestVolumesStayWithTheirVM(t *testing.T) {
	t.Parallel()
	store := openSnapshots(t)
	v := volume(t)
	v.Path = "/data"
	snap := bake(t, store, core.BakeSpec{Ref: imageRef(t, "busybox"), BootOnly: true})
	vm, err := snap.Start(t.Context(), core.StartOptions{Volumes: []core.Volume{v}})
	require.NoError(t, err)
	defer vm.Close()
	vmtest.Shell(t, vm, "echo parent > /data/who; sync")
	require.NoError(t, vm.StartWorkload(t.Context(), core.Exec{Args: []string{
		"sh", "-c", "exec 3>>/data/who; touch /tmp/open; while :; do if echo more >&3; then echo ok; else echo failed; fi; sleep 1; done 2>&1",
	}}))
	vmtest.Shell(t, vm, "while ! [ -e /tmp/open ]; do sleep 0.1; done")
	who := "parent"
	for generation := range 3 {
		children, err := vm.Fork(t.Context(), 1, core.ForkOptions{})
		require.NoError(t, err)
		child := children[0]
		defer child.Close()
		require.Equal(t, "0", vmtest.Shell(t, child, "grep -c ' /data ' /proc/mounts; ls /data"), "generation %d", generation)
		child.Close()
		other := volume(t)
		other.Path = "/data"
		children, err = vm.Fork(t.Context(), 1, core.ForkOptions{Child: func(int) core.StartOptions {
			return core.StartOptions{Volumes: []core.Volume{other}}
		}})
		require.NoError(t, err)
		next := children[0]
		defer next.Close()
		require.Equal(t, "", vmtest.Shell(t, next, "cat /data/* 2>/dev/null; true"))
		vmtest.Shell(t, next, fmt.Sprintf("echo child %d > /data/who", generation))
		require.Equal(t, who, vmtest.Shell(t, vm, "head -n 1 /data/who"))
		vm.Close()
		vm, who = next, fmt.Sprintf("child %d", generation)
	}
}

func TestVolumesThatCannotBeAttached(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	v := volume(t)
	v.Path = "/etc/hostname"
	_, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Volumes: []core.Volume{v}})
	require.ErrorIs(t, err, core.ErrNotFound)
	require.ErrorContains(t, err, "mount volume /etc/hostname")
	v.Path = "relative"
	_, err = core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Volumes: []core.Volume{v}})
	require.ErrorIs(t, err, core.ErrInvalidArgument)
}

// A volume whose host's disk is full gives its guest errors, and nothing else stops.
func TestVolumeOnAFullDisk(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a small file system")
	}
	dir := t.TempDir()
	require.NoError(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=12m"))
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Volumes: []core.Volume{{File: filepath.Join(dir, "v"), Path: "/data", SizeMiB: 64}}})
	require.NoError(t, err)
	defer vm.Close()
	require.Contains(t, vmtest.Shell(t, vm, "dd if=/dev/urandom of=/data/x bs=1M count=30 conv=fsync 2>&1; true"), "error")
	require.Equal(t, "alive", vmtest.Shell(t, vm, "echo alive > /tmp/x; cat /tmp/x"), "the rest of the VM goes on")
	_, err = core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Volumes: []core.Volume{{File: filepath.Join(dir, "w"), Path: "/data", SizeMiB: 1 << 20}}})
	require.ErrorIs(t, err, core.ErrDiskFull)
}

const volumeHostEnv = "SUPERMACHINE_TEST_VOLUME"

// TestVolumeHost is not a test of its own: it is the host process that TestVolumeSurvivesItsHost kills.
func TestVolumeHost(t *testing.T) {
	file := os.Getenv(volumeHostEnv)
	if file == "" {
		t.Skip("runs only as a child of TestVolumeSurvivesItsHost")
	}
	vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Volumes: []core.Volume{{File: file, Path: "/data", SizeMiB: 128}}})
	require.NoError(t, err)
	defer vm.Close()
	script := `i=0; while :; do mkdir -p /data/d$((i%7)); dd if=/dev/urandom of=/data/d$((i%7))/f$i bs=4k count=8 2>/dev/null; rm -f /data/d$((i%7))/f$((i-20))
		sync /data; echo $i > /data/done.new; sync /data; mv /data/done.new /data/done; sync /data; i=$((i+1)); echo $i; done`
	p, err := vm.Exec(t.Context(), core.Exec{Args: []string{"sh", "-c", script}, Stdout: os.Stdout})
	require.NoError(t, err)
	p.Wait()
}

// A host process that is killed under load leaves a volume that is whole, with everything that the guest was told is on disk.
func TestVolumeSurvivesItsHost(t *testing.T) {
	t.Parallel()
	vmtest.RequireKVM(t)
	vmtest.ImagesDir(t)
	v := volume(t)
	for range vmtest.Times(2, 10) {
		host := exec.Command(os.Args[0], "-test.run", "^TestVolumeHost$", "-test.v")
		host.Env = append(os.Environ(), volumeHostEnv+"="+v.File)
		host.Stderr = os.Stderr
		out, err := host.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, host.Start())
		last := -1
		for s := bufio.NewScanner(out); last < 12 && s.Scan(); {
			fmt.Sscan(s.Text(), &last)
		}
		require.Equal(t, 12, last)
		require.NoError(t, host.Process.Signal(syscall.SIGKILL))
		host.Wait()
		fsck(t, v.File)
		vm, err := core.Start(t.Context(), vmtest.Image(t, "busybox"), core.Config{Volumes: []core.Volume{{File: v.File, Path: "/data"}}})
		require.NoError(t, err)
		done := 0
		_, err = fmt.Sscan(strings.TrimSpace(vmtest.Shell(t, vm, "cat /data/done")), &done)
		require.NoError(t, err)
		require.GreaterOrEqual(t, done, last-1, "what was said to be on disk is there")
		vm.Close()
	}
}
