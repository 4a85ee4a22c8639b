package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// process is a running exec.
type process struct {
	s    *Server
	pid  int // in the agent's PID namespace
	term *os.File
}

func (p *process) kill() { p.s.reaper.signal(p.pid, syscall.SIGKILL) }

func (st *stream) signal(number int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.proc != nil && number > 0 && number <= 64 {
		st.c.s.reaper.signal(st.proc.pid, syscall.Signal(number))
	}
}

func (st *stream) resize(rows, cols uint16) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.proc != nil && st.proc.term != nil {
		unix.IoctlSetWinsize(int(st.proc.term.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	}
}

// drainTime is how long the result of an exec whose process has exited waits for output that others may still write.
const drainTime = 100 * time.Millisecond

// exec runs a program to its end.
func (st *stream) exec(req *wire.Exec) (wire.Result, error) {
	s := st.c.s
	cmd, err := s.prepare(req)
	if err != nil {
		return wire.Result{}, err
	}
	io, err := s.newStdio(req)
	if err != nil {
		return wire.Result{}, err
	}
	defer io.close()
	pid, exited, err := s.fork(cmd, io)
	io.closeChildEnds()
	if err != nil {
		return wire.Result{}, err
	}
	proc := &process{s: s, pid: pid, term: io.term}
	st.mu.Lock()
	st.proc = proc
	abandoned := st.abandoned
	st.mu.Unlock()
	if abandoned {
		proc.kill()
	}
	if req.Main {
		s.setMain(proc)
		defer s.setMain(nil)
	}
	st.reply(wire.Reply{PID: pid})

	var outputs sync.WaitGroup
	for _, o := range io.outputs(st) {
		outputs.Add(1)
		go func() {
			defer outputs.Done()
			o.copy()
		}()
	}
	if io.stdin != nil {
		go io.feed(st.in)
	}

	var timeout <-chan time.Time
	if req.Timeout > 0 {
		timer := time.NewTimer(req.Timeout)
		defer timer.Stop()
		timeout = timer.C
	}
	var result wire.Result
	var e exit
	select {
	case e = <-exited:
	case <-timeout:
		result.TimedOut = true
		proc.kill()
		e = <-exited
	}
	st.mu.Lock()
	st.proc = nil
	st.mu.Unlock()
	st.in.Discard()
	io.drain()
	outputs.Wait()
	result.Truncated = io.truncated()
	if e.status.Signaled() {
		result.Signal = int(e.status.Signal())
	} else {
		result.Code = e.status.ExitStatus()
	}
	result.User = time.Duration(e.usage.Utime.Nano())
	result.System = time.Duration(e.usage.Stime.Nano())
	result.MaxRSS = e.usage.Maxrss << 10
	return result, nil
}

// command is an exec with everything resolved.
type command struct {
	path string
	args []string
	env  []string
	dir  string
	cred *syscall.Credential
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// prepare looks user, program and directory up, inside the container.
func (s *Server) prepare(req *wire.Exec) (*command, error) {
	d := &s.cfg.Defaults
	if len(req.Args) == 0 || req.Args[0] == "" {
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: "no program is given"}
	}
	cmd := &command{args: req.Args, dir: firstOf(req.Dir, d.Dir, "/")}
	var err error
	s.spawner.do(func() {
		var u user
		if u, err = lookupUser(firstOf(req.User, d.User, "0")); err != nil {
			return
		}
		cmd.cred = &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
		cmd.env = mergeEnv([]string{"PATH=" + defaultPath, "HOME=" + u.home}, d.Env, req.Env)
		if req.TTY {
			cmd.env = mergeEnv([]string{"TERM=xterm"}, cmd.env)
		}
		var info unix.Stat_t
		if e := unix.Stat(cmd.dir, &info); e != nil || info.Mode&unix.S_IFMT != unix.S_IFDIR {
			if e == nil {
				e = unix.ENOTDIR
			}
			err = &wire.Error{Kind: wire.KindNotFound, Message: fmt.Sprintf("working directory %s: %v", cmd.dir, e)}
			return
		}
		cmd.path, err = lookPath(req.Args[0], cmd.dir, envValue(cmd.env, "PATH"))
	})
	return cmd, err
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// mergeEnv returns the variables of all lists; later ones replace earlier ones of the same name.
func mergeEnv(lists ...[]string) []string {
	var out []string
	index := map[string]int{}
	for _, list := range lists {
		for _, kv := range list {
			name, _, ok := strings.Cut(kv, "=")
			if !ok || name == "" || strings.IndexByte(kv, 0) >= 0 {
				continue // cannot be an environment variable
			}
			if i, dup := index[name]; dup {
				out[i] = kv
				continue
			}
			index[name] = len(out)
			out = append(out, kv)
		}
	}
	return out
}

func envValue(env []string, name string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// lookPath finds a program as execvp would.
func lookPath(name, dir, path string) (string, error) {
	absolute := func(p string) string {
		if strings.HasPrefix(p, "/") {
			return p
		}
		return dir + "/" + p
	}
	candidates := []string{absolute(name)}
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, d := range strings.Split(path, ":") {
			candidates = append(candidates, absolute(firstOf(d, "."))+"/"+name)
		}
	}
	kind := wire.KindCommandNotFound
	reason := "not found"
	if !strings.Contains(name, "/") {
		reason += " in PATH " + path
	}
	for _, c := range candidates {
		var info unix.Stat_t
		if unix.Stat(c, &info) != nil {
			continue
		}
		if info.Mode&unix.S_IFMT == unix.S_IFREG && info.Mode&0o111 != 0 {
			return c, nil
		}
		kind, reason = wire.KindNotExecutable, "not an executable file"
	}
	return "", &wire.Error{Kind: kind, Message: fmt.Sprintf("%s: %s", name, reason)}
}

// fork starts the program in the container.
func (s *Server) fork(cmd *command, io *stdio) (pid int, exited <-chan exit, err error) {
	attr := &syscall.ProcAttr{
		Dir: cmd.dir, Env: cmd.env, Files: io.childFDs(),
		Sys: &syscall.SysProcAttr{
			Credential: cmd.cred, Setsid: true, Setctty: io.term != nil,
			UseCgroupFD: s.cfg.Cgroup >= 0, CgroupFD: s.cfg.Cgroup,
		},
	}
	s.spawner.do(func() {
		pid, exited, err = s.reaper.start(func() (int, error) { return syscall.ForkExec(cmd.path, cmd.args, attr) })
	})
	if err != nil {
		return 0, nil, &wire.Error{Kind: execKind(err), Message: fmt.Sprintf("%s: %v", cmd.args[0], err)}
	}
	return pid, exited, nil
}

func execKind(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT): // of the interpreter in #! or of the dynamic loader
		return wire.KindCommandNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EPERM):
		return wire.KindNotExecutable
	case errors.Is(err, unix.E2BIG):
		return wire.KindInvalid
	}
	return kindOf(err)
}

func kindOf(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return wire.KindNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return wire.KindPermission
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return wire.KindNoSpace
	case errors.Is(err, unix.ECONNREFUSED):
		return wire.KindRefused
	case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENAMETOOLONG):
		return wire.KindInvalid
	}
	return wire.KindIO
}
