package agent

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Container is where the workload lives.
type Container struct {
	// PID is the process whose namespaces the workload is in: PID 1 of its PID namespace and a child of this process. 0 is the agent's
	// own namespaces.
	PID int
	// Cgroup is the descriptor of the workload's cgroup directory (v2), -1 for none.
	Cgroup int
}

// nsThreads are OS threads in the container's namespaces. What they fork and open belongs to the container. One for each CPU does, made when there is
// work for it, as long as nothing blocks them; but the workload can make file systems that never answer, so others take over.
type nsThreads struct {
	container Container
	work      chan func()
	files     chan struct{} // holds a token for each operation on files

	mu    sync.Mutex
	count int
}

const (
	maxThreads = 32
	maxFileOps = 24                   // as many threads may be lost to file systems that hang; the others stay for programs
	stalled    = 5 * time.Millisecond // how long a job waits for a busy thread before another is started
)

// newNSThreads starts the first thread.
func newNSThreads(c Container) (*nsThreads, error) {
	t := &nsThreads{container: c, work: make(chan func()), files: make(chan struct{}, maxFileOps)}
	_, err := t.start()
	return t, err
}

// start adds a thread, which is never given back to the Go scheduler. It reports false if there are as many as there may be.
func (t *nsThreads) start() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count == maxThreads {
		return false, nil
	}
	entered := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := t.container.enter()
		entered <- err
		if err != nil {
			return // the locked thread dies with the goroutine
		}
		for f := range t.work {
			f()
		}
	}()
	err := <-entered
	if err == nil {
		t.count++
	}
	return true, err
}

// do runs f on one of the threads and waits for it.
func (t *nsThreads) do(f func()) {
	done := make(chan struct{})
	job := func() { f(); close(done) }
	select {
	case t.work <- job:
	default:
		t.queue(job)
	}
	<-done
}

// inside runs an operation on files on one of the container's threads. A client that gives up frees its place in the queue, but not the thread once
// the operation has one.
func (st *stream) inside(f func() error) (err error) {
	t := st.c.s.threads
	select {
	case t.files <- struct{}{}:
	case <-st.gone:
		return errCanceled
	}
	defer func() { <-t.files }()
	t.do(func() { err = f() })
	return err
}

// stopped returns an error once the client has given up.
func (st *stream) stopped() error {
	select {
	case <-st.gone:
		return errCanceled
	default:
		return nil
	}
}

// queue hands the job to the first thread that is free. It adds threads until the job is taken: the one it adds may take another's job, which
// then adds none itself.
func (t *nsThreads) queue(job func()) {
	if t.spare() {
		t.start() // if it fails, another thread will come free
	}
	timer := time.NewTicker(stalled)
	defer timer.Stop()
	for {
		select {
		case t.work <- job:
			return
		case <-timer.C:
			if more, _ := t.start(); !more { // if it fails, another thread may come free before the next try
				t.work <- job
				return
			}
		}
	}
}

// spare reports whether there are fewer threads than CPUs: forking keeps a CPU busy, mostly with the child's exec, which the thread waits for.
func (t *nsThreads) spare() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count < min(runtime.GOMAXPROCS(0), maxThreads)
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
		fd, err := c.open(name)
		if err != nil {
			return err
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

// open opens one of the container's namespaces.
func (c Container) open(name string) (int, error) {
	path := fmt.Sprintf("/proc/%d/ns/%s", c.PID, name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// pidIn translates a process ID into the PID namespace behind ns, -1 for this one's own; 0 if that fails.
func pidIn(ns, pid int) int {
	if ns < 0 {
		return pid
	}
	const getPIDInPIDNS = 0x8004b708 // NS_GET_PID_IN_PIDNS, linux/nsfs.h, since Linux 6.11
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ns), getPIDInPIDNS, uintptr(pid))
	if errno != 0 {
		return 0
	}
	return int(r)
}
