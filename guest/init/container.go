package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// reaperArg is the argument that makes this program the container's PID 1.
const reaperArg = "reaper"

const workloadCgroup = "/sys/fs/cgroup/workload"

// makeCgroup returns the descriptor of the workload's cgroup. Its memory is limited to a little less than the guest has: when the
// workload runs out of memory the kernel ends one of its processes and never the agent.
func makeCgroup() (int, error) {
	if err := os.Mkdir(workloadCgroup, 0o755); err != nil {
		return -1, err
	}
	for _, controller := range []string{"+cpu", "+memory", "+pids", "+io", "+cpuset"} {
		write("/sys/fs/cgroup/cgroup.subtree_control", controller)
	}
	if total := memTotal(); total > 0 {
		reserve := max(total/32, 8<<20)
		write(workloadCgroup+"/memory.max", strconv.FormatInt(total-reserve, 10))
	}
	fd, err := unix.Open(workloadCgroup, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: workloadCgroup, Err: err}
	}
	return fd, nil
}

func memTotal() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// startContainer starts the container's PID 1 in its own namespaces and waits until it has its root and its mounts. The agent stays
// outside, where the workload neither sees nor reaches it.
func startContainer(cfg wire.BootConfig, cgroup int) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"supermachine-init", reaperArg, cfg.Hostname}, &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{0, 1, 2, w.Fd()},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
			Setsid:      true,
			UseCgroupFD: true, CgroupFD: cgroup,
		},
	})
	w.Close()
	if err != nil {
		return 0, fmt.Errorf("start the container: %w", err)
	}
	msg, _ := io.ReadAll(io.LimitReader(r, 4096))
	if string(msg) != "ready" {
		return 0, fmt.Errorf("start the container: %s", msg)
	}
	return pid, nil
}

// runReaper is the container's PID 1: it enters the root, tells its parent and then lets the kernel reap orphans for ever.
func runReaper() {
	status := os.NewFile(3, "status")
	// All signals are ignored, or Go's handlers would end this process, and the container with it, at a "kill 1" from inside. Ignoring
	// SIGCHLD makes the kernel reap (wait(2), Notes).
	signal.Ignore()
	write("/proc/self/oom_score_adj", "-1000") // as for the same reason it must outlive the container's shortage of memory
	if err := enterRoot(os.Args[2]); err != nil {
		fmt.Fprint(status, err)
		os.Exit(1)
	}
	fmt.Fprint(status, "ready")
	status.Close()
	for {
		unix.Pause()
	}
}

// enterRoot makes the overlay the root of this mount namespace, with the mounts of a container.
func enterRoot(hostname string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// An image may have made a symbolic link of a mount point, to have something mounted elsewhere.
	for _, dir := range []string{"proc", "sys", "dev"} {
		p := filepath.Join(rootDir, dir)
		if st, err := os.Lstat(p); err == nil && !st.IsDir() {
			if err := os.Remove(p); err != nil {
				return err
			}
		}
	}
	for _, m := range containerMounts(rootDir) {
		if err := mountAll([]mount{m}); err != nil {
			return err
		}
		if m.fstype == "tmpfs" && strings.HasSuffix(m.target, "/dev") {
			if err := makeDevices(m.target); err != nil {
				return err
			}
		}
	}
	// What init has mounted is nothing for the container, even if it should get below its root.
	for _, dir := range []string{"/proc", "/sys", "/dev", "/run"} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	// The initramfs cannot be pivoted away from (it is the kernel's first root): the overlay is moved over it instead.
	if err := unix.Chdir(rootDir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	writeEtc(hostname)
	return mountPublic()
}
