package core

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/supermachine/supermachine/core/agent"
)

// Chain is a number of files and the programs that work with them.
type Chain struct {
	Files    []ChainFile // written first, in this order
	Commands []Exec      // run after that, one after another, each to its end; Stdout and Stderr must be nil

	ContinueOnError bool          // a command that fails does not keep the others from running
	Timeout         time.Duration // of all together; 0 = none. What runs then is killed
}

// ChainFile is a file that a chain writes, like WriteFile.
type ChainFile struct {
	Path  string
	Data  io.Reader   // nil: empty. A blocked Read delays the end of the chain, not its Timeout
	Mode  os.FileMode // permission bits; 0 is 0644
	Owner string      // NAME|UID[:GROUP|GID]; default: root
}

// RunChain writes files and runs programs until one of them fails: exits with another status than 0, or cannot be run. outputs are of the commands that
// were run, by their place in the chain. failed is the place of the first that failed, -1 if none did. err says why a file was not
// written or the first command that could not be run was not; a program that fails on its own account is no error. Nothing is run when a file cannot
// be written. With ContinueOnError a command that cannot be run (ErrCommandNotFound and the like) has an empty Output and the
// chain goes on; when ctx, the Timeout (ErrTimeout) or the VM has ended it does not.
func (vm *VM) RunChain(ctx context.Context, c Chain) (outputs []Output, failed int, err error) {
	return c.run(ctx, chainSteps{
		write: func(ctx context.Context, f ChainFile, mode os.FileMode) error {
			var options []agent.WriteOption
			if f.Owner != "" {
				options = append(options, agent.Owner(f.Owner))
			}
			return vm.wrapEnded("write "+f.Path+" in VM", vm.agent.WriteFile(ctx, f.Path, f.Data, uint32(mode), options...))
		},
		run: vm.Run,
	})
}

// chainSteps are what a chain does.
type chainSteps struct {
	write func(context.Context, ChainFile, os.FileMode) error
	run   func(context.Context, Exec) (Output, error)
}

func (c Chain) run(ctx context.Context, do chainSteps) (outputs []Output, failed int, err error) {
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	failed = -1
	for i, f := range c.Files {
		mode := f.Mode.Perm()
		if f.Mode == 0 {
			mode = 0o644
		}
		if f.Data == nil {
			f.Data = empty{}
		}
		if err := do.write(ctx, f, mode); err != nil {
			return nil, failed, wrap(fmt.Sprintf("chain: file %d", i), "", err)
		}
	}
	for i, req := range c.Commands {
		out, runErr := do.run(ctx, req)
		outputs = append(outputs, out)
		if runErr == nil && out.Code == 0 {
			continue
		}
		if failed < 0 {
			failed = i
		}
		if runErr != nil && err == nil {
			err = wrap(fmt.Sprintf("chain: command %d", i), "", runErr)
		}
		if !c.ContinueOnError || runErr != nil && (ctx.Err() != nil || endsChain(runErr)) {
			break
		}
	}
	return outputs, failed, err
}

// endsChain reports whether an error of one command is that of all that follow.
func endsChain(err error) bool {
	switch CodeOf(err) {
	case ErrVMEnded, ErrAgent, ErrClosed, ErrCanceled, ErrTimeout:
		return true
	}
	return false
}

// empty is a reader of nothing.
type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, io.EOF }
