package agent

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// exit is how a child ended.
type exit struct {
	status syscall.WaitStatus
	usage  syscall.Rusage
}

// reaper waits for every child of this process: those it was told of, and, as PID 1, the strays that others left.
type reaper struct {
	mu       sync.Mutex // held over a fork, so that no child is reaped before it is known
	children map[int]*child
}

// child is a process that is not reaped yet.
type child struct {
	exited chan exit     // gets its exit
	gone   chan struct{} // closed after that
}

func startReaper() *reaper {
	r := &reaper{children: map[int]*child{}}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	go func() {
		for range died {
			r.reap()
		}
	}()
	return r
}

func (r *reaper) reap() {
	for {
		var e exit
		r.mu.Lock()
		pid, err := syscall.Wait4(-1, &e.status, syscall.WNOHANG, &e.usage)
		if err == syscall.EINTR {
			r.mu.Unlock()
			continue
		}
		if err != nil || pid <= 0 {
			r.mu.Unlock()
			return
		}
		if c := r.children[pid]; c != nil {
			delete(r.children, pid)
			c.exited <- e
			close(c.gone)
		}
		r.mu.Unlock()
	}
}

// start calls fork and returns the child's PID and a channel that gets its exit.
func (r *reaper) start(fork func() (int, error)) (int, <-chan exit, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return 0, nil, err
	}
	c := &child{exited: make(chan exit, 1), gone: make(chan struct{})}
	r.children[pid] = c
	return pid, c.exited, nil
}

// notify returns a channel that is closed once the child is gone.
func (r *reaper) notify(pid int) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.children[pid]; c != nil {
		return c.gone
	}
	gone := make(chan struct{})
	close(gone)
	return gone
}

// signal sends a signal to a child's process group if the child is not reaped yet, so that it never hits a stranger.
func (r *reaper) signal(pid int, sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[pid] != nil {
		syscall.Kill(-pid, sig)
	}
}
