package agent

import (
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// command is an exec with everything resolved.
type command struct {
	path   string
	args   []string
	env    []string
	dir    string
	cred   *syscall.Credential
	limits limits
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// prepare looks user, directory and program up, on a thread in the container.
func (s *Server) prepare(req *wire.Exec) (*command, error) {
	d := &s.cfg.Defaults
	if len(req.Args) == 0 || req.Args[0] == "" {
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: "no program is given"}
	}
	for _, list := range [][]string{req.Args, {req.Dir}} {
		for _, arg := range list {
			if strings.IndexByte(arg, 0) >= 0 {
				return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%q has a NUL byte", arg)}
			}
		}
	}
	for _, kv := range req.Env {
		if !validEnv(kv) {
			return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%q is not NAME=value", kv)}
		}
	}
	limits, err := parseLimits(req.Limits)
	if err != nil {
		return nil, err
	}
	u, err := lookupUser(firstOf(req.User, d.User, "0"))
	if err != nil {
		return nil, err
	}
	cmd := &command{args: req.Args, dir: firstOf(req.Dir, d.Dir, "/"), limits: limits}
	cmd.cred = &syscall.Credential{Uid: u.uid, Gid: u.gid, Groups: u.groups}
	cmd.env = mergeEnv([]string{"PATH=" + defaultPath, "HOME=" + u.home}, d.Env, req.Env)
	if req.TTY {
		cmd.env = mergeEnv([]string{"TERM=xterm"}, cmd.env)
	}
	if !strings.HasPrefix(cmd.dir, "/") {
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("working directory %s is not an absolute path", cmd.dir)}
	}
	if err := checkDir(cmd.dir); err != nil {
		return nil, &wire.Error{Kind: wire.KindNotFound, Message: fmt.Sprintf("working directory %s: %v", cmd.dir, err)}
	}
	cmd.path, err = lookPath(req.Args[0], cmd.dir, envValue(cmd.env, "PATH"))
	if err == nil && len(cmd.limits) > 0 && u.uid != 0 && gainsPrivileges(cmd.path) {
		const why = ": a program with set-user-ID or capabilities gets limits only by way of another, such as a shell that executes it"
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: cmd.path + why}
	}
	return cmd, err
}

func checkDir(dir string) error {
	var info unix.Stat_t
	if err := unix.Stat(dir, &info); err != nil {
		return err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	return nil
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
			if !validEnv(kv) {
				continue // an image may say anything
			}
			name, _, _ := strings.Cut(kv, "=")
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

func validEnv(kv string) bool {
	return strings.IndexByte(kv, '=') > 0 && strings.IndexByte(kv, 0) < 0
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
	reason := "not found"
	if !strings.Contains(name, "/") {
		candidates = nil
		for _, d := range strings.Split(path, ":") {
			candidates = append(candidates, absolute(firstOf(d, "."))+"/"+name)
		}
		reason += " in PATH " + path
	}
	kind := wire.KindCommandNotFound
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
