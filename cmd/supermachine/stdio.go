package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/agent"
)

// programFlags are the flags of every command that starts a program.
type programFlags struct {
	env     []string
	workdir string
	user    string
}

func (f *programFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.SetInterspersed(false) // what follows the first argument belongs to the program
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set an environment variable: NAME=VALUE, or NAME to pass on yours")
	fl.StringVarP(&f.workdir, "workdir", "w", "", "working directory")
	fl.StringVarP(&f.user, "user", "u", "", "user: NAME|UID[:GROUP|GID]")
}

// execFlags are the flags of every command that runs a program here, with its streams.
type execFlags struct {
	programFlags
	interactive bool
	tty         bool
	limits      []string
}

func (f *execFlags) register(cmd *cobra.Command) {
	f.programFlags.register(cmd)
	fl := cmd.Flags()
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "pass on standard input")
	fl.BoolVarP(&f.tty, "tty", "t", false, "give the program a terminal")
	fl.StringArrayVar(&f.limits, "ulimit", nil, "limit a resource of the program: NAME=SOFT[:HARD], such as nofile=1024")
}

// request builds what to run with this process's streams.
func (f *execFlags) request(args []string) (agent.ExecRequest, error) {
	req := agent.ExecRequest{Args: args, Env: f.environment(), Dir: f.workdir, User: f.user, TTY: f.tty, Stdout: os.Stdout, Stderr: os.Stderr}
	var err error
	if req.Limits, err = f.parseLimits(); err != nil {
		return req, err
	}
	if f.interactive {
		req.Stdin = os.Stdin
	}
	if f.tty {
		if f.interactive && !term.IsTerminal(int(os.Stdin.Fd())) {
			return req, errors.New("standard input is not a terminal: leave out -t, or -i")
		}
		if cols, rows, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
			req.Rows, req.Cols = uint16(rows), uint16(cols)
		}
		if t := os.Getenv("TERM"); t != "" {
			req.Env = append([]string{"TERM=" + t}, req.Env...)
		}
	}
	return req, nil
}

func (f *execFlags) parseLimits() (all []core.Rlimit, err error) {
	for _, s := range f.limits {
		l, err := core.ParseRlimit(s)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

func (f *programFlags) environment() []string {
	var env []string
	for _, e := range f.env {
		if strings.Contains(e, "=") {
			env = append(env, e)
		} else if v, ok := os.LookupEnv(e); ok {
			env = append(env, e+"="+v)
		}
	}
	return env
}

// program is a running program, in our own VM or in another process's.
type program interface {
	Wait() (agent.ExitStatus, error)
	Signal(syscall.Signal) error
	Resize(rows, cols uint16) error
}

// limited is a program that this side ends, as the guest does it only for programs that it was given the time with.
type limited struct {
	program
	expired atomic.Bool
}

// limit ends the program after some time, never if that is 0.
func limit(p interface {
	program
	Kill() error
}, after time.Duration) program {
	if after <= 0 {
		return p
	}
	l := &limited{program: p}
	time.AfterFunc(after, func() {
		l.expired.Store(true)
		p.Kill() // does nothing after the program's end
	})
	return l
}

func (l *limited) Wait() (agent.ExitStatus, error) {
	st, err := l.program.Wait()
	st.TimedOut = st.Signal == syscall.SIGKILL && l.expired.Load()
	return st, err
}

// impatience is how many interrupts in a row end a program that does not react to them.
const impatience = 3

// follow starts a program and waits for it as if it ran here: signals and the terminal's size go to it, its exit status is ours. One that
// does not react to interrupts is ended by kill; one that does not start is given up.
func (f *execFlags) follow(ctx context.Context, start func(context.Context) (program, error), kill func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Before the program starts: it can have written something, and so be sent a signal, before start returns.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	running := make(chan program, 1)
	go f.passSignals(signals, running, cancel, kill)
	p, err := start(ctx)
	if err != nil {
		return err
	}
	running <- p
	if f.tty && f.interactive {
		if state, err := term.MakeRaw(int(os.Stdin.Fd())); err == nil {
			defer term.Restore(int(os.Stdin.Fd()), state)
		}
	}
	st, err := p.Wait()
	switch {
	case err != nil:
		return err
	case st.TimedOut:
		return exitStatus(exitTimeout)
	case st.Code != 0:
		return exitStatus(st.Code)
	}
	return nil
}

// passSignals gives signals to the program, those that come before it runs once it does.
func (f *execFlags) passSignals(signals <-chan os.Signal, running <-chan program, giveUp, kill func()) {
	var p program
	var early []syscall.Signal
	interrupts := 0
	pass := func(sig syscall.Signal) {
		switch {
		case p == nil && len(early) < cap(signals):
			early = append(early, sig)
		case p == nil:
		case sig != syscall.SIGWINCH:
			p.Signal(sig)
		case f.tty:
			if cols, rows, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
				p.Resize(uint16(rows), uint16(cols))
			}
		}
	}
	for {
		select {
		case p = <-running:
			for _, sig := range early {
				pass(sig)
			}
		case s := <-signals:
			sig := s.(syscall.Signal)
			if sig == syscall.SIGINT || sig == syscall.SIGTERM {
				if interrupts++; interrupts >= impatience {
					if p == nil {
						giveUp()
					} else {
						kill()
					}
					continue
				}
			}
			pass(sig)
		}
	}
}
