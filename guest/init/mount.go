package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// mount is one file system to mount. Its target is made if it is missing.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

const hardened = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// earlyMounts are what init itself needs.
var earlyMounts = []mount{
	{"proc", "/proc", "proc", hardened, ""},
	{"sysfs", "/sys", "sysfs", hardened, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", hardened, ""},
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s (%s) on %s: %w", m.source, m.fstype, m.target, err)
		}
	}
	return nil
}

const (
	lowerDir   = "/run/image"
	scratchDir = "/run/scratch"
	rootDir    = "/newroot"
)

// mountRoot puts a writable overlay over the image.
func mountRoot(cfg wire.BootConfig) error {
	err := mountAll([]mount{
		{cfg.Root, lowerDir, "erofs", unix.MS_RDONLY, ""},
		// Bitmaps and tables of blocks that nobody uses stay off the memory: a thread of ext4's would read and make them in the minutes
		// after the mount, in each copy of the VM anew.
		{cfg.Scratch, scratchDir, "ext4", unix.MS_NOATIME, "no_prefetch_block_bitmaps,noinit_itable"},
	})
	if err != nil {
		return err
	}
	upper, work := filepath.Join(scratchDir, "upper"), filepath.Join(scratchDir, "work")
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	// The merged root takes owner and mode from the upper directory.
	var st unix.Stat_t
	if unix.Stat(lowerDir, &st) == nil {
		unix.Chown(upper, int(st.Uid), int(st.Gid))
		unix.Chmod(upper, st.Mode&0o7777)
	}
	return mountAll([]mount{{
		"overlay", rootDir, "overlay", 0,
		fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lowerDir, upper, work),
	}})
}

// containerMounts are what a workload finds besides its image, below its root.
func containerMounts(root string) []mount {
	at := func(p string) string { return filepath.Join(root, p) }
	return []mount{
		{"proc", at("proc"), "proc", hardened, ""},
		{"sysfs", at("sys"), "sysfs", hardened | unix.MS_RDONLY, ""},
		{"cgroup2", at("sys/fs/cgroup"), "cgroup2", hardened, ""},
		{"tmpfs", at("dev"), "tmpfs", unix.MS_NOSUID, "mode=0755,size=64m"},
		{"devpts", at("dev/pts"), "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", at("dev/shm"), "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"mqueue", at("dev/mqueue"), "mqueue", hardened, ""},
	}
}

// publicDir is where the workload finds out that it goes on in another guest.
const publicDir = "/run/supermachine"

// mountPublic runs inside the root, so that no link of the image leads out of it.
func mountPublic() error {
	// An image may have anything here; a link to another directory is as good as one.
	for _, dir := range []string{"/run", publicDir} {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			os.Remove(dir)
		}
	}
	return mountAll([]mount{{"tmpfs", publicDir, "tmpfs", hardened, "mode=0755,size=64k"}})
}

// deviceNodes are what every container has in /dev (OCI runtime specification, "Default Devices").
var deviceNodes = []struct {
	name         string
	major, minor uint32
}{
	{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0},
}

// optionalNodes are made where the kernel has them: for docker, FUSE file systems and VPNs inside the guest.
var optionalNodes = []string{"fuse", "net/tun", "loop-control", "kmsg"}

func makeDevices(dev string) error {
	unix.Umask(0)
	defer unix.Umask(0o022)
	for _, d := range deviceNodes {
		if err := unix.Mknod(filepath.Join(dev, d.name), unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.name, err)
		}
	}
	for _, name := range optionalNodes {
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/dev", name), &st) == nil {
			os.MkdirAll(filepath.Dir(filepath.Join(dev, name)), 0o755)
			unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o600, int(st.Rdev))
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	return nil
}

// writeEtc makes the files that container runtimes make, where the image has none or an empty one. It runs inside the root, so that no
// link leads out of it.
func writeEtc(hostname string) {
	os.Mkdir("/etc", 0o755)
	replaceFile("/etc/hostname", hostname+"\n")
	for name, content := range map[string]string{
		"/etc/hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t" + hostname + "\n",
		"/etc/resolv.conf": "",
	} {
		if st, err := os.Stat(name); err != nil || st.Mode().IsRegular() && st.Size() == 0 {
			replaceFile(name, content)
		}
	}
}

// replaceFile leaves alone what is no regular file: an image may hold a FIFO there, which never opens.
func replaceFile(name, content string) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && f.Truncate(0) == nil {
		f.WriteString(content)
	}
}
