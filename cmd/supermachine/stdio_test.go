package main

import (
	"context"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
)

// signaled is a program that ends with the number of the first signal.
type signaled struct{ got chan syscall.Signal }

func (s signaled) Wait() (agent.ExitStatus, error) { return agent.ExitStatus{Code: int(<-s.got)}, nil }
func (s signaled) Signal(sig syscall.Signal) error { s.got <- sig; return nil }
func (s signaled) Resize(rows, cols uint16) error  { return nil }

func TestSignalsThatComeBeforeTheProgramRunsReachIt(t *testing.T) {
	f := &execFlags{}
	err := f.follow(t.Context(), func(context.Context) (program, error) {
		require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGUSR1))
		time.Sleep(10 * time.Millisecond) // it has written something, and its start has yet to return
		return signaled{make(chan syscall.Signal, 1)}, nil
	}, nil)
	require.Equal(t, exitStatus(syscall.SIGUSR1), err)
}

func TestProgramsThatDoNotStartAreGivenUp(t *testing.T) {
	f := &execFlags{}
	err := f.follow(t.Context(), func(ctx context.Context) (program, error) {
		for {
			require.NoError(t, syscall.Kill(syscall.Getpid(), syscall.SIGINT))
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}, nil)
	require.ErrorIs(t, err, context.Canceled)
}

// stubborn is a program that is interrupted again and again, and ends only when it is killed.
type stubborn struct{ killed chan struct{} }

func (s stubborn) Wait() (agent.ExitStatus, error) {
	for {
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
			return agent.ExitStatus{}, err
		}
		select {
		case <-s.killed:
			return agent.ExitStatus{Code: 137}, nil
		case <-time.After(time.Millisecond):
		}
	}
}
func (s stubborn) Signal(syscall.Signal) error    { return nil }
func (s stubborn) Resize(rows, cols uint16) error { return nil }

func TestProgramsThatIgnoreInterruptsAreKilled(t *testing.T) {
	f := &execFlags{}
	p := stubborn{make(chan struct{})}
	kill := sync.OnceFunc(func() { close(p.killed) })
	err := f.follow(t.Context(), func(context.Context) (program, error) { return p, nil }, kill)
	require.Equal(t, exitStatus(137), err)
}
