package agent

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// exit is how a child ended.
type exit struct {
	status syscall.WaitStatus
	usage  syscall.Rusage
}

// child is a process that this one started. Each is waited for on its own, by a pidfd: there are no strays to reap, as orphans belong to
// the container's PID 1.
type child struct {
	pid      int
	pidfd    *os.File
	sessions *sessionKiller

	mu   sync.Mutex
	gone bool // reaped: the number may belong to a stranger
}

// newChild follows a child by its pidfd, which it takes over.
func newChild(pid, pidfd int, sessions *sessionKiller) *child {
	unix.SetNonblock(pidfd, true) // makes NewFile use the runtime's poller
	return &child{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), sessions: sessions}
}

// wait blocks until the child has ended and reaps it. It is called once.
func (c *child) wait() exit {
	var e exit
	defer c.pidfd.Close()
	reap := func(uintptr) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for {
			pid, err := syscall.Wait4(c.pid, &e.status, syscall.WNOHANG, &e.usage)
			if err == syscall.EINTR {
				continue
			}
			c.gone = pid == c.pid || err != nil
			return c.gone
		}
	}
	raw, err := c.pidfd.SyscallConn()
	if err == nil {
		err = raw.Read(reap)
	}
	for err != nil { // no poller: an OS thread waits
		unix.Waitid(unix.P_PID, c.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if reap(0) {
			break
		}
	}
	return e
}

// signal sends a signal to the child's process group, SIGKILL also to the rest of its session, a moment later. It reports whether the child was still there.
func (c *child) signal(sig syscall.Signal) bool { return c.signalAfter(sig, nil) }

// signalAfter is signal, and calls first before, if the child is still there: who waits for its end sees what that did.
func (c *child) signalAfter(sig syscall.Signal, first func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return false
	}
	if first != nil {
		first()
	}
	syscall.Kill(-c.pid, sig)
	if sig == syscall.SIGKILL {
		c.sessions.kill(c.pid)
	}
	return true
}

func (c *child) kill() bool { return c.signal(syscall.SIGKILL) }

// sessionKiller kills whole sessions: a shell puts its jobs into process groups of their own. As it has to look at every process there is, it
// does so for many sessions at once.
type sessionKiller struct {
	mu      sync.Mutex
	pending map[int]bool // session IDs
	running bool
}

func (k *sessionKiller) kill(sid int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pending == nil {
		k.pending = map[int]bool{}
	}
	k.pending[sid] = true
	if !k.running {
		k.running = true
		go k.run()
	}
}

func (k *sessionKiller) run() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.pending) > 0 {
		sids := k.pending
		k.pending = nil
		k.mu.Unlock()
		for range 5 { // a process may fork while the list is read
			if !killSessions(sids) {
				break
			}
		}
		k.mu.Lock()
	}
	k.running = false
}

// killSessions kills every process of the sessions but their leaders, and reports whether there was one.
func killSessions(sids map[int]bool) (killed bool) {
	dir, err := os.Open("/proc")
	if err != nil {
		return false
	}
	names, _ := dir.Readdirnames(-1)
	dir.Close()
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || sids[pid] {
			continue
		}
		stat, _ := os.ReadFile("/proc/" + name + "/stat")
		if state, session := parseStat(stat); sids[session] && state != 'Z' && state != 'X' {
			killed = syscall.Kill(pid, syscall.SIGKILL) == nil || killed
		}
	}
	return killed
}

// parseStat returns state and session of /proc/PID/stat (proc_pid_stat(5)). The name before them is the program's and may hold anything.
func parseStat(stat []byte) (state byte, session int) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, 0
	}
	fields := bytes.Fields(stat[i+1:])
	if len(fields) < 4 {
		return 0, 0
	}
	session, err := strconv.Atoi(string(fields[3]))
	if err != nil {
		return 0, 0
	}
	return fields[0][0], session
}
