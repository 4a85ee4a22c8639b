//go:build linux

package oci_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/oci"
	. "github.com/supermachine/supermachine/core/oci/ocitest"
)

// mountImage mounts a root filesystem with the kernel's own driver, or skips the test.
func mountImage(t *testing.T, image *oci.Image) string {
	t.Helper()
	drivers, err := os.ReadFile("/proc/filesystems")
	if os.Getuid() != 0 || err != nil || !strings.Contains(string(drivers), "\terofs\n") {
		t.Skip("needs root and a kernel with EROFS")
	}
	dir := filepath.Join(t.TempDir(), "mnt")
	require.NoError(t, os.Mkdir(dir, 0o755))
	out, err := exec.Command("mount", "-t", "erofs", "-o", "ro,loop", image.RootFS, dir).CombinedOutput()
	if err != nil {
		if _, missing := os.Stat("/dev/loop-control"); missing != nil || strings.Contains(string(out), "loop") {
			t.Skipf("no loop devices here: %s", out)
		}
		require.NoError(t, err, "%s", out)
	}
	t.Cleanup(func() { require.NoError(t, exec.Command("umount", dir).Run()) })
	return dir
}

func TestKernelMountsTheImage(t *testing.T) {
	long := strings.Repeat("x", 3000)
	many := []Entry{Dir("many")}
	for i := range 3000 {
		many = append(many, File("many/"+strings.Repeat("n", i%40)+string(rune('a'+i%26))+"-"+strings.Repeat("z", i/26), "content"))
	}
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	image, err := pullLayers(t, oci.PullOptions{},
		Gzip(append(many,
			File("plain", strings.Repeat("0123456789", 100000)),
			File("su", "x").Mode(0o4755).Owner(1000, 70000).Xattr("security.capability", capability).Xattr("user.long", long),
			Link("su2", "su"),
			Sparse("sparse", 1<<30, Piece{Offset: 512 << 20, Data: "middle"}),
			Char("null", 1, 3), FIFO("pipe"), Symlink("link", long), Symlink("grüße", "plain"),
			File("gone", "x"))...),
		Gzip(Whiteout("gone"), Link("su3", "su2")))
	require.NoError(t, err)
	root := mountImage(t, image)

	content, err := os.ReadFile(filepath.Join(root, "grüße"))
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("0123456789", 100000), string(content))

	var su, su3, null unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(root, "su"), &su))
	require.NoError(t, unix.Stat(filepath.Join(root, "su3"), &su3))
	require.NoError(t, unix.Stat(filepath.Join(root, "null"), &null))
	require.Equal(t, su.Ino, su3.Ino)
	require.EqualValues(t, 3, su.Nlink)
	require.EqualValues(t, syscall.S_IFREG|0o4755, su.Mode)
	require.Equal(t, []uint32{1000, 70000}, []uint32{su.Uid, su.Gid})
	require.EqualValues(t, MTime.Unix(), su.Mtim.Sec)
	require.EqualValues(t, unix.Mkdev(1, 3), null.Rdev)

	for name, want := range map[string]string{"security.capability": capability, "user.long": long} {
		buf := make([]byte, 8192)
		n, err := unix.Getxattr(filepath.Join(root, "su"), name, buf)
		require.NoError(t, err)
		require.Equal(t, want, string(buf[:n]))
	}
	target, err := os.Readlink(filepath.Join(root, "link"))
	require.NoError(t, err)
	require.Equal(t, long, target)

	f, err := os.Open(filepath.Join(root, "sparse"))
	require.NoError(t, err)
	defer f.Close()
	piece := make([]byte, 10)
	_, err = f.ReadAt(piece, 512<<20-2)
	require.NoError(t, err)
	require.Equal(t, "\x00\x00middle\x00\x00", string(piece))
	n, err := io.Copy(io.Discard, f)
	require.NoError(t, err)
	require.EqualValues(t, 1<<30, n)

	names, err := os.ReadDir(filepath.Join(root, "many"))
	require.NoError(t, err)
	distinct := map[string]bool{}
	for _, e := range many[1:] {
		distinct[filepath.Base(e.Header.Name)] = true
	}
	require.Len(t, names, len(distinct))
	for name := range distinct {
		_, err := os.Stat(filepath.Join(root, "many", name))
		require.NoError(t, err)
	}
	_, err = os.Stat(filepath.Join(root, "gone"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestOddImagesFromInside(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a static busybox")
	}
	content, err := os.ReadFile(busybox)
	require.NoError(t, err)
	entries := []Entry{File("bin/busybox", string(content)).Mode(0o755), Char("dev/null", 1, 3)}
	for _, tool := range []string{"sh", "ls", "cat", "stat", "head", "dd", "find", "wc", "id", "test"} {
		entries = append(entries, Symlink("bin/"+tool, "busybox"))
	}
	for _, odd := range Odd(Gzip(entries...)) {
		t.Run(odd.Name, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, WriteLayout(dir, map[string]*Image{"v1": odd.Image}))
			image, err := newStore(t).Pull(context.Background(), dir, oci.PullOptions{})
			require.NoError(t, err)
			fsck(t, image)
			cmd := exec.Command("/bin/sh", "-ec", odd.Check)
			cmd.Dir, cmd.Env = "/", []string{"PATH=/bin"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: mountImage(t, image)}
			if image.Config.User != "" {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 1234, Gid: 5678}
			}
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}
