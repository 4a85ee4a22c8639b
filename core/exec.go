package core

import (
	"context"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/trace"
)

// Exec says what to run in a VM and where its streams go. Only Args is required.
type Exec = agent.ExecRequest

// ExitStatus is how a program ended.
type ExitStatus = agent.ExitStatus

// Output is what a program wrote, and how it ended.
type Output = agent.Output

// Rlimit is a resource limit of one program: its name as in setrlimit(2), without RLIMIT_ and in small letters, and its values.
type Rlimit = agent.Rlimit

// Unlimited is the value of an Rlimit that does not limit.
const Unlimited = agent.Unlimited

// Process is a program running in a VM.
type Process struct {
	*agent.Process
	vm *VM
}

// Exec starts a program in the VM and returns once it runs. When ctx is done the program's whole process group is killed, unless it is detached.
// Errors: ErrCommandNotFound, ErrNotExecutable, ErrNotFound (working directory or user), ErrInvalidArgument (a limit that makes no sense),
// ErrLimit (too many detached programs), ErrVMEnded.
func (vm *VM) Exec(ctx context.Context, req Exec) (*Process, error) {
	op := trace.Begin(trace.Exec, vm.id)
	p, err := vm.agent.Exec(ctx, req)
	counters.execs.Add(1)
	op.Step("start %s", programName(req))
	if err != nil {
		return nil, vm.wrapEnded("exec "+programName(req)+" in VM", err)
	}
	vm.noteAnswer()
	return &Process{p, vm}, nil
}

// noteAnswer has the first VM of a snapshot show its working set, off the caller's path.
func (vm *VM) noteAnswer() {
	if vm.firstAnswer != nil {
		vm.answered.Do(func() { go vm.firstAnswer() })
	}
}

// Wait blocks until the program has ended and all its output is written. The error says that it could not be followed to its end, or that
// its output could not be written; a program that fails on its own account is told by the ExitStatus alone.
func (p *Process) Wait() (ExitStatus, error) {
	st, err := p.Process.Wait()
	return st, p.vm.wrapEnded("wait for a program in VM", err)
}

// Run runs a program to its end and collects its output: the beginning of each stream, up to req.MaxOutput bytes, and Output says what is missing. If
// MaxOutput is 0, more than 64 MiB are the error ErrLimit and the program's end: who does not say how much to expect gets all or nothing, and a program
// that floods its output is stopped. Stdout and Stderr of req must be nil.
func (vm *VM) Run(ctx context.Context, req Exec) (Output, error) {
	op := trace.Begin(trace.Exec, vm.id)
	out, err := vm.agent.Run(ctx, req)
	counters.execs.Add(1)
	op.Step("run %s: status %d", programName(req), out.Code)
	vm.noteAnswer()
	return out, vm.wrapEnded("run "+programName(req)+" in VM", err)
}

func programName(req Exec) string {
	if len(req.Args) == 0 {
		return "nothing"
	}
	return req.Args[0]
}
