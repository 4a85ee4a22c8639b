package core

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// ErrDetached is matched (errors.Is) by what Process.Wait and Process.Signal return for a program that runs on by itself.
var ErrDetached = agent.ErrDetached

// Attachment says where the streams of a detached program go.
type Attachment = agent.AttachRequest

// Program describes a program in a VM. What it says is the guest's claim.
type Program = agent.Program

// Attach follows a detached program (Exec.Detach) by its Process.ID, from any process that has the VM and in every VM that was restored or forked while
// the program ran: first what the guest has kept of its output, then what it writes. The Process ends with the program, and signals and sizes of the
// terminal go to it; when ctx is done only the attachment ends. Any number may be attached at once; the program waits for none of them, and
// ExitStatus.Lost says how much one has missed. When one has got the exit status, the guest forgets the program. Errors: ErrNotFound,
// ErrInvalidArgument (the program is not detached), ErrVMEnded.
func (vm *VM) Attach(ctx context.Context, id uint64, to Attachment) (*Process, error) {
	p, err := vm.agent.Attach(ctx, id, to)
	if err != nil {
		return nil, vm.wrapEnded(fmt.Sprintf("attach to program %d in VM", id), err)
	}
	vm.noteAnswer()
	return &Process{p, vm}, nil
}

// Detach makes the program run on by itself: Wait ends with ErrDetached, and what the program writes from now on is kept for VM.Attach. Of what Attach
// returned it ends the attachment alone.
func (p *Process) Detach(ctx context.Context) error {
	return p.vm.wrapEnded(fmt.Sprintf("detach program %d in VM", p.ID()), p.Process.Detach(ctx))
}

// Programs returns the programs that run in the VM by Exec, Run or as the workload, and the detached ones that have ended and whose exit status nobody
// has got, oldest first: at most 4096, and whether there are more.
func (vm *VM) Programs(ctx context.Context) (programs []Program, more bool, err error) {
	programs, more, err = vm.agent.Programs(ctx)
	return programs, more, vm.wrapEnded("list the programs of VM", err)
}

// ParseRlimit reads NAME=SOFT[:HARD], where NAME is a resource of setrlimit(2) in small letters, such as nofile, and the others are numbers in that
// resource's unit or "unlimited". Without HARD it is SOFT.
func ParseRlimit(s string) (Rlimit, error) {
	bad := &Error{Code: ErrInvalidArgument, Op: "read limit", Object: strconv.Quote(s), Err: errors.New("give NAME=SOFT[:HARD], such as nofile=1024")}
	name, values, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return Rlimit{}, bad
	}
	soft, hard, both := strings.Cut(values, ":")
	if !both {
		hard = soft
	}
	var err1, err2 error
	l := Rlimit{Name: name}
	l.Soft, err1 = parseLimit(soft)
	l.Hard, err2 = parseLimit(hard)
	if err1 != nil || err2 != nil {
		return Rlimit{}, bad
	}
	return l, nil
}

func parseLimit(s string) (uint64, error) {
	if s == "unlimited" {
		return Unlimited, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// ParseSignal returns Linux's signal of a name, with or without SIG, in any case ("TERM", "SIGTERM", "RTMIN+3"), or of a decimal number. The error's
// code is ErrInvalidArgument.
func ParseSignal(name string) (syscall.Signal, error) {
	n, ok := wire.ParseSignal(name)
	if !ok {
		return 0, &Error{Code: ErrInvalidArgument, Op: "send a signal", Err: fmt.Errorf("there is no signal %q", name)}
	}
	return syscall.Signal(n), nil
}
