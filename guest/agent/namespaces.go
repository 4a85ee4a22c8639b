package agent

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Container is where the workload lives.
type Container struct {
	// PID is the process whose namespaces the workload is in: PID 1 of its PID namespace. 0 is the agent's own namespaces.
	PID int
	// Cgroup is the descriptor of the workload's cgroup directory (v2), -1 for none.
	Cgroup int
}

// nsThread is an OS thread in the container's namespaces. What it forks and opens belongs to the container.
type nsThread struct {
	work chan func()
}

// newNSThread starts a thread in the container. The thread is never given back to the Go scheduler.
func newNSThread(c Container) (*nsThread, error) {
	t := &nsThread{work: make(chan func())}
	entered := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := c.enter()
		entered <- err
		if err != nil {
			return // the locked thread dies with the goroutine
		}
		for f := range t.work {
			f()
		}
	}()
	return t, <-entered
}

// do runs f on the thread and waits for it.
func (t *nsThread) do(f func()) {
	done := make(chan struct{})
	t.work <- func() { f(); close(done) }
	<-done
}

// enter moves the calling thread, which must be locked, into the container.
func (c Container) enter() error {
	if c.PID == 0 {
		return nil
	}
	// setns to a mount namespace needs a thread that shares its root and working directory with no other (setns(2)).
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leave the shared working directory: %w", err)
	}
	// All are opened first: /proc of the container looks different.
	names := []string{"ipc", "uts", "cgroup", "pid", "mnt"}
	fds := make([]int, len(names))
	for i, name := range names {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", c.PID, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: name + " namespace", Err: err}
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	for i, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("enter the %s namespace: %w", names[i], err)
		}
	}
	return unix.Chdir("/")
}
