package agent

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// freezer keeps the workload from running while the machine is saved. At most one connection holds it frozen.
type freezer struct {
	op sync.Mutex // held during a change, which may take a while

	mu         sync.Mutex
	holder     *conn
	thawed     chan struct{} // closed when holder lets go
	forks      int           // under way
	forked     chan struct{} // closed when forks is 0, nil if nobody waits for that
	generation uint64        // how often this guest's state was continued in a copy; of who holds op
}

// freezeTime is how long the workload's processes may take to stop: one that waits for a slow disk does so only after that.
const freezeTime = 10 * time.Second

// freeze stops the workload for connection c.
func (s *Server) freeze(c *conn, req *wire.Freeze) error {
	f := &s.freezer
	f.op.Lock()
	defer f.op.Unlock()
	f.mu.Lock()
	if f.holder != nil {
		f.mu.Unlock()
		return &wire.Error{Kind: wire.KindInvalid, Message: wire.FrozenAlready}
	}
	if c.hasEnded() { // its outlast has been or will wait for f.mu: nobody would end the freeze
		f.mu.Unlock()
		return errCanceled
	}
	f.holder, f.thawed = c, make(chan struct{})
	f.mu.Unlock()
	err := f.awaitForks(freezeTime)
	if err == nil {
		err = s.setFrozen(true)
	}
	if err == nil && s.cfg.Settle != nil {
		s.cfg.Settle(req.Lean)
	}
	if err != nil {
		s.release()
	}
	return err
}

// thaw lets the workload run again. In a copy of the guest that was frozen it does so as another guest. If that fails it stays frozen.
func (s *Server) thaw(c *conn, req *wire.Thaw) error {
	f := &s.freezer
	f.op.Lock()
	defer f.op.Unlock()
	if !f.heldBy(c) {
		return &wire.Error{Kind: wire.KindInvalid, Message: "the workload is not frozen by this connection"}
	}
	if req.Identity != nil {
		if err := s.adopt(*req.Identity); err != nil {
			return err
		}
		s.detachOthers(c)
		s.revokeMounts()
		if err := s.setUp(&req.Mount); err != nil {
			return err
		}
	}
	s.release()
	return nil
}

var errCanceled = &wire.Error{Kind: wire.KindUnavailable, Message: "nobody waits for the answer any more"}

// awaitThaw waits until nothing is frozen, and reports whether that was before gone was closed.
func (f *freezer) awaitThaw(gone <-chan struct{}) bool {
	for {
		f.mu.Lock()
		holder, thawed := f.holder, f.thawed
		f.mu.Unlock()
		select {
		case <-gone:
			return false
		default:
		}
		if holder == nil {
			return true
		}
		select {
		case <-thawed: // gone may be closed too: by a thaw in a copy, where what was not started before is not started any more
		case <-gone:
		}
	}
}

// beginFork reports whether the caller may fork into the cgroup; then endFork follows. A child that froze before its exec would stop the whole
// agent: until then Go's runtime waits for it (vfork), so that neither a garbage collection nor, on one CPU, anything else can run.
func (f *freezer) beginFork() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.holder != nil {
		return false
	}
	f.forks++
	return true
}

func (f *freezer) endFork() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forks--
	if f.forks == 0 && f.forked != nil {
		close(f.forked)
		f.forked = nil
	}
}

// awaitForks waits until no fork is under way. The caller has seen to it that none begins.
func (f *freezer) awaitForks(atMost time.Duration) error {
	f.mu.Lock()
	if f.forks == 0 {
		f.mu.Unlock()
		return nil
	}
	if f.forked == nil {
		f.forked = make(chan struct{})
	}
	forked := f.forked
	f.mu.Unlock()
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	select {
	case <-forked:
		return nil
	case <-timer.C:
		return &wire.Error{Kind: wire.KindIO, Message: fmt.Sprintf("a program that is being started did not get on within %v", atMost)}
	}
}

func (f *freezer) heldBy(c *conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.holder == c
}

// release ends the freeze. The caller holds op.
func (s *Server) release() {
	s.setFrozen(false)
	f := &s.freezer
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holder = nil
	close(f.thawed)
}

// outlast returns when connection c, which has ended, no longer matters to a freeze. Its own it ends; another's it waits for, as in a copy
// of this guest the programs of c run on.
func (s *Server) outlast(c *conn) {
	f := &s.freezer
	f.mu.Lock()
	holder, thawed := f.holder, f.thawed
	f.mu.Unlock()
	switch holder {
	case nil:
	case c:
		f.op.Lock()
		defer f.op.Unlock()
		if f.heldBy(c) {
			s.release()
		}
	default:
		<-thawed
	}
}

// setFrozen writes the cgroup's switch and waits until it has taken effect on all processes (cgroup v2, "cgroup.freeze").
func (s *Server) setFrozen(on bool) error {
	dir := s.cfg.Cgroup
	if dir < 0 {
		return &wire.Error{Kind: wire.KindInvalid, Message: "the workload has no cgroup"}
	}
	value, state := "0", []byte("frozen 0")
	if on {
		value, state = "1", []byte("frozen 1")
	}
	if err := writeAt(dir, "cgroup.freeze", value); err != nil {
		return fmt.Errorf("freeze the workload: %w", err)
	}
	if !on {
		return nil
	}
	fd, err := unix.Openat(dir, "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("freeze the workload: %w", err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 256)
	for end := time.Now().Add(freezeTime); ; {
		n, err := unix.Pread(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("freeze the workload: %w", err)
		}
		if bytes.Contains(buf[:n], state) {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return &wire.Error{Kind: wire.KindIO, Message: fmt.Sprintf("a process of the workload did not stop within %v", freezeTime)}
		}
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, int(left.Milliseconds())+1)
	}
}

func writeAt(dir int, name, value string) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// maxIdentityField bounds the texts of an identity.
const maxIdentityField = 64

// adopt makes this guest another than the one it was copied from, while nothing of the workload runs.
func (s *Server) adopt(id wire.Identity) error {
	if len(id.Entropy) != wire.EntropySize || id.ID == "" || len(id.ID) > maxIdentityField || len(id.Hostname) > maxIdentityField {
		return &wire.Error{Kind: wire.KindInvalid, Message: "the identity is incomplete"}
	}
	if s.cfg.Adopt != nil {
		if err := s.cfg.Adopt(id); err != nil {
			return err
		}
	}
	if id.Hostname != "" {
		var err error
		s.threads.do(func() { err = unix.Sethostname([]byte(id.Hostname)) })
		if err != nil {
			return fmt.Errorf("set the host name: %w", err)
		}
	}
	s.freezer.generation++
	s.publish(id.ID) // whatever the workload has done to the directory harms nobody else
	return nil
}

// openPublic opens the public directory before the workload can put anything in its place, and makes its files.
func (s *Server) openPublic() error {
	if s.cfg.PublicDir == "" {
		return nil
	}
	var err error
	s.threads.do(func() {
		s.public, err = unix.Open(s.cfg.PublicDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: s.cfg.PublicDir, Err: err}
	}
	return s.publish("")
}

// publish tells the workload in which guest it is. The identifier comes first: who sees the new generation finds the new identifier.
func (s *Server) publish(id string) error {
	if s.public < 0 {
		return nil
	}
	return errors.Join(s.publishFile("restore-id", id), s.publishFile("generation", strconv.FormatUint(s.freezer.generation, 10)))
}

// publishFile replaces a file of the public directory. The workload may have put anything there, so nothing in it is followed or waited for.
// A directory in the file's place is moved away, and stays if it cannot be removed.
func (s *Server) publishFile(name, content string) error {
	tmp := "." + name + "." + rand.Text() // a name at which nothing can lie in wait
	fd, err := unix.Openat(s.public, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	_, err = unix.Write(fd, []byte(content+"\n"))
	unix.Close(fd)
	if err == nil {
		if err = unix.Renameat(s.public, tmp, s.public, name); err == unix.EISDIR {
			err = unix.Renameat2(s.public, tmp, s.public, name, unix.RENAME_EXCHANGE)
			unix.Unlinkat(s.public, tmp, unix.AT_REMOVEDIR)
		}
	}
	if err != nil {
		unix.Unlinkat(s.public, tmp, 0)
		return &os.PathError{Op: "write", Path: name, Err: err}
	}
	return nil
}

// detachOthers lets the programs of all other connections run on without them: those connections led to another machine.
func (s *Server) detachOthers(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.conns {
		if other == c {
			continue
		}
		other.mu.Lock()
		other.detached = true
		streams := make([]*stream, 0, len(other.streams))
		for _, st := range other.streams {
			streams = append(streams, st)
		}
		other.mu.Unlock()
		for _, st := range streams {
			st.detach()
		}
		other.nc.Close()
	}
}
