package agent

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// resources are Linux's, by the names that ulimits go by.
var resources = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
	"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// limits are the resource limits of one program.
type limits []limit

type limit struct {
	name     string
	resource int
	value    unix.Rlimit
}

// maxFiles is the kernel's own limit on RLIMIT_NOFILE (fs.nr_open), which no program is exempt from.
const maxFiles = 1 << 20

func parseLimits(asked []wire.Rlimit) (limits, error) {
	if len(asked) > len(resources) {
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%d limits, there are %d resources", len(asked), len(resources))}
	}
	var all limits
	seen := map[string]bool{}
	for _, l := range asked {
		resource, ok := resources[l.Name]
		switch {
		case !ok:
			return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("there is no resource %q to limit", l.Name)}
		case seen[l.Name]:
			return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("%s is limited twice", l.Name)}
		case l.Soft > l.Hard:
			return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("the soft limit %d of %s is above the hard limit %d", l.Soft, l.Name, l.Hard)}
		}
		seen[l.Name] = true
		value := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		if resource == unix.RLIMIT_NOFILE {
			if l.Soft == wire.Unlimited {
				value.Cur = maxFiles
			}
			if l.Hard == wire.Unlimited {
				value.Max = maxFiles
			}
			value.Cur = min(value.Cur, value.Max)
		}
		all = append(all, limit{l.Name, resource, value})
	}
	return all, nil
}

// gainsPrivileges reports whether a file's execution may give others than root more privileges. The kernel does not give them to a process
// that is traced, since PTRACE_TRACEME counts as the tracee's own doing (kernel/ptrace.c, ptrace_link).
func gainsPrivileges(path string) bool {
	var info unix.Stat_t
	if unix.Stat(path, &info) == nil && info.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		return true
	}
	n, err := unix.Getxattr(path, "security.capability", nil)
	return err == nil && n > 0
}

// forkExec is syscall.ForkExec for a program that is to have the limits from its first instruction on. Limits are inherited and belong to whole
// processes, so the agent cannot set them around a fork; instead the program stops after its exec, for this thread to set them (ptrace(2)). The
// calling thread must be locked.
//
// Errors are those of ForkExec, and *wire.Error for a limit that the kernel refuses.
func (l limits) forkExec(path string, args []string, attr *syscall.ProcAttr) (int, error) {
	// A signal that came after PTRACE_TRACEME and before the exec would stop the child for its tracer: for this thread, which waits for the exec
	// (vfork), and the Go runtime with it. So the child blocks all signals but the exec's own, and gets them when its mask is put right.
	var blocked, mask unix.Sigset_t
	for i := range blocked.Val {
		blocked.Val[i] = ^blocked.Val[i]
	}
	blocked.Val[0] &^= 1 << (unix.SIGTRAP - 1)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &blocked, &mask); err != nil {
		return 0, err
	}
	attr.Sys.Ptrace = true
	pid, err := syscall.ForkExec(path, args, attr)
	unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil)
	if err != nil {
		return 0, err
	}
	err = l.set(pid, &mask)
	if err == nil || errors.Is(err, unix.ESRCH) { // killed meanwhile: whoever waits for the program will see
		return pid, nil
	}
	syscall.Kill(pid, syscall.SIGKILL)
	for {
		if _, werr := syscall.Wait4(pid, nil, 0, nil); werr != syscall.EINTR {
			break
		}
	}
	unix.Close(*attr.Sys.PidFD)
	return 0, err
}

// set waits for a new program to stop at its first instruction, sets the limits and lets it run. It reaps nothing.
func (l limits) set(pid int, mask *unix.Sigset_t) error {
	for {
		sig, err := awaitStop(pid)
		if err != nil {
			return err
		}
		if sig == syscall.SIGTRAP {
			break
		}
		if err := unix.PtraceCont(pid, int(sig)); err != nil {
			return err
		}
	}
	for _, limit := range l {
		if err := unix.Prlimit(pid, limit.resource, &limit.value, nil); err != nil {
			if err == unix.ESRCH {
				return err
			}
			return &wire.Error{Kind: kindOf(err), Message: fmt.Sprintf("limit %s to %d:%d: %v", limit.name, limit.value.Cur, limit.value.Max, err)}
		}
	}
	const sigsetSize = 8 // the kernel's sigset_t
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SETSIGMASK, uintptr(pid), sigsetSize, uintptr(unsafe.Pointer(mask)), 0, 0)
	if errno != 0 {
		return errno
	}
	return unix.PtraceDetach(pid)
}

// childState is the beginning of siginfo_t as waitid(2) fills it in.
type childState struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
}

// awaitStop waits until a traced child has stopped and returns the signal that it stopped for; ESRCH if it has ended, which is left to others to take
// note of.
func awaitStop(pid int) (syscall.Signal, error) {
	const trapped, stopped = 4, 5 // CLD_TRAPPED and CLD_STOPPED, asm-generic/siginfo.h
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		state := (*childState)(unsafe.Pointer(&info))
		if state.code != trapped && state.code != stopped {
			return 0, unix.ESRCH
		}
		return syscall.Signal(state.status), nil
	}
}
