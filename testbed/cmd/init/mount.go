//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/testbed/link"
)

// hostRoot is where the host's root stays reachable until it becomes the root here.
const hostRoot = "/host"

type mount struct {
	source, target, fstype, options string
	flags                           uintptr
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// mountEarly mounts what the ports need.
func mountEarly() error {
	return mountAll([]mount{
		{source: "sysfs", target: "/sys", fstype: "sysfs"},
		{source: "devtmpfs", target: "/dev", fstype: "devtmpfs"},
	})
}

// mountHost makes the host's root this machine's, with its own devices, processes and temporary directories.
func mountHost() error {
	err := mountAll([]mount{
		{source: "host", target: hostRoot, fstype: "9p", options: "trans=virtio,version=9p2000.L,msize=1048576,cache=loose"},
		{source: "/sys", target: hostRoot + "/sys", flags: unix.MS_MOVE},
		{source: "/dev", target: hostRoot + "/dev", flags: unix.MS_MOVE},
		{source: "proc", target: hostRoot + "/proc", fstype: "proc"},
	})
	if err != nil {
		return err
	}
	// Moving the mount to / rather than only changing the root lets commands make user namespaces.
	if err := os.Chdir(hostRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the host's root to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter the host's root: %w", err)
	}
	return os.Chdir("/")
}

// prepare makes the machine what cmd expects.
func prepare(cmd *link.Command) error {
	if err := unix.Settimeofday(&unix.Timeval{Sec: cmd.Now.Unix(), Usec: int64(cmd.Now.Nanosecond() / 1000)}); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	if err := unix.Sethostname([]byte(cmd.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	limit := unix.Rlimit{Cur: cmd.Files, Max: cmd.Files}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("set the limit of open files: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	shares, err := openShares(cmd.Shares)
	if err != nil {
		return err
	}
	err = mountAll([]mount{
		{source: "devpts", target: "/dev/pts", fstype: "devpts", options: "ptmxmode=0666,mode=0620,gid=5"},
		{source: "cgroup2", target: "/sys/fs/cgroup", fstype: "cgroup2"},
	})
	if err != nil {
		return err
	}
	for _, dir := range link.TempDirs {
		mode := "mode=1777"
		if dir == "/run" {
			mode = "mode=0755"
		}
		if err := mountAll([]mount{{source: "tmpfs", target: dir, fstype: "tmpfs", options: mode}}); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, "/dev/"+name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for _, s := range shares {
		if err := s.mount(); err != nil {
			return err
		}
	}
	return makeTempDir(cmd.Env)
}

// share is a path of the host's that a temporary directory would hide.
type share struct {
	path string
	fd   int // the host's file or directory
	dir  bool
}

// openShares opens the paths while they are still to be seen.
func openShares(paths []string) ([]share, error) {
	var shares []share
	for _, p := range paths {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", p, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("share %s: %w", p, err)
		}
		shares = append(shares, share{p, fd, st.Mode&unix.S_IFMT == unix.S_IFDIR})
	}
	return shares, nil
}

// mount shows the share in its old place.
func (s share) mount() error {
	defer unix.Close(s.fd)
	var err error
	if s.dir {
		err = os.MkdirAll(s.path, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(s.path), 0o755); err == nil {
		err = os.WriteFile(s.path, nil, 0o755)
	}
	if err == nil {
		err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", s.fd), s.path, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", s.path, err)
	}
	return nil
}

// makeTempDir makes the directory that TMPDIR names if it lies in a temporary one, so that programs find it here too.
func makeTempDir(env []string) error {
	for _, e := range env {
		dir, ok := strings.CutPrefix(e, "TMPDIR=")
		if !ok {
			continue
		}
		for _, temp := range link.TempDirs {
			if strings.HasPrefix(dir, temp+"/") {
				return os.MkdirAll(dir, 0o1777)
			}
		}
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// flush writes what the command wrote below the root to the host, which ends the machine without further notice.
func flush() error {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// killAll ends every process but this one and waits until all are gone.
func killAll() {
	unix.Kill(-1, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
			return // no children are left; orphans had become this process's
		}
	}
}
