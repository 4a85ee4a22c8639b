package core

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/virtio/console"
)

// NotReadyError is the cause of an ErrNotReady: what was waited for, and the last that the workload and the guest's console wrote.
type NotReadyError struct {
	Reason  string
	Output  string // of the workload, or of the warmup that failed; up to 4 KiB
	Console string // up to 4 KiB, whole lines
}

func (e *NotReadyError) Error() string {
	s := e.Reason
	for _, part := range []struct{ name, text string }{{"its output", e.Output}, {"the console", e.Console}} {
		if part.text == "" {
			s += "; " + part.name + " is empty"
		} else {
			s += "; the end of " + part.name + ":\n" + strings.TrimRight(part.text, "\n")
		}
	}
	return s
}

const quoted = 4 << 10

func (vm *VM) notReady(op, output, format string, args ...any) error {
	return &Error{Code: ErrNotReady, Op: op, Err: &NotReadyError{Reason: fmt.Sprintf(format, args...), Output: output, Console: vm.ConsoleTail(quoted)}}
}

// bringUp starts the workload and waits until it is ready.
func (vm *VM) bringUp(ctx context.Context, spec BakeSpec, command []string) error {
	const op = "wait for the workload"
	wait, cancel := context.WithTimeout(ctx, spec.Timeout)
	defer cancel()
	err := vm.StartWorkload(wait, Exec{Args: command, Env: spec.Env, Dir: spec.Dir, User: spec.User})
	if err != nil {
		return err
	}
	output := console.NewRing(quoted)
	workload, err := vm.Follow(wait, Attachment{Stdout: output, Stderr: output})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	var status ExitStatus
	go func() {
		defer close(ended)
		if status, err = workload.Wait(); err == nil {
			cancel() // the workload has ended
		}
	}()
	ready := spec.Ready.wait(wait, vm)
	cancel()
	<-ended
	tail := string(output.Tail(quoted))
	switch {
	case err == nil && (ready != nil || status.Code != 0):
		return vm.notReady(op, tail, "it ended with status %d before it was ready", status.Code)
	case err == nil:
		return vm.notReady(op, tail, "it has ended: a snapshot needs a workload that runs; bake without one to run programs later")
	case ready == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(ready, context.DeadlineExceeded):
		return vm.notReady(op, tail, "it was not ready within %v (%v)", spec.Timeout, spec.Ready)
	}
	return vm.wrapEnded(op, ready)
}

// How often readiness is looked at.
const (
	readyPoll  = 20 * time.Millisecond
	settlePoll = 100 * time.Millisecond
	quietShare = 50 // settled programs use less than one CPU divided by this
)

// wait blocks until the workload is ready or ctx ends.
func (r Readiness) wait(ctx context.Context, vm *VM) error {
	switch r.kind {
	case "port":
		return poll(ctx, readyPoll, func() (bool, error) {
			conn, err := vm.Connect(ctx, r.port)
			if err == nil {
				conn.Close()
				return true, nil
			}
			if CodeOf(err) == ErrRefused {
				return false, nil
			}
			return false, err
		})
	case "command":
		return poll(ctx, readyPoll, func() (bool, error) {
			out, err := vm.Run(ctx, Exec{Args: r.command})
			return err == nil && out.Code == 0, err
		})
	case "settle":
		return r.settled(ctx, vm)
	}
	return nil
}

func (r Readiness) settled(ctx context.Context, vm *VM) error {
	var last agent.Info
	var since time.Duration // of the guest's clock
	first := true
	return poll(ctx, settlePoll, func() (bool, error) {
		now, err := vm.agent.Info(ctx)
		if err != nil {
			return false, err
		}
		used, passed := now.CPU-last.CPU, now.Uptime-last.Uptime
		if first || used > passed/quietShare {
			since, first = now.Uptime, false
		}
		last = now
		return now.Uptime-since >= r.settle, nil
	})
}

// poll calls f until it says true or fails, with pauses in between. They are at least as long as f takes, so that asking does not keep the guest
// from getting ready.
func poll(ctx context.Context, pause time.Duration, f func() (bool, error)) error {
	for {
		begin := time.Now()
		done, err := f()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if done || err != nil {
			return err
		}
		timer := time.NewTimer(max(pause, time.Since(begin)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// warmUp runs one program to its end.
func (vm *VM) warmUp(ctx context.Context, spec BakeSpec, args []string) error {
	op := "warm up with " + strings.Join(args, " ")
	output := console.NewRing(quoted)
	p, err := vm.Exec(ctx, Exec{
		Args: args, Env: spec.Env, Dir: spec.Dir, User: spec.User, Timeout: spec.Timeout, Stdout: output, Stderr: output,
	})
	if err != nil {
		return err
	}
	st, err := p.Wait()
	tail := string(output.Tail(quoted))
	switch {
	case err != nil:
		return err
	case st.TimedOut:
		return vm.notReady(op, tail, "it did not end within %v", spec.Timeout)
	case st.Code != 0:
		return vm.notReady(op, tail, "it failed with status %d", st.Code)
	}
	return nil
}
