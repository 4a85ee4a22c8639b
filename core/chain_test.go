package core

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// steps notes what a chain does. A command's name is its exit status, or the kind of the error that it fails with; "hang" lasts until it is given up.
type steps struct {
	done []string
	fail error // of writing
}

func (s *steps) do() chainSteps {
	return chainSteps{
		write: func(_ context.Context, f ChainFile, mode os.FileMode) error {
			b, err := io.ReadAll(f.Data)
			s.done = append(s.done, strings.Join([]string{f.Path, string(b), mode.String(), f.Owner}, " "))
			return errors.Join(err, s.fail)
		},
		run: func(ctx context.Context, req Exec) (Output, error) {
			name := req.Args[0]
			s.done = append(s.done, name)
			out := Output{Stdout: []byte(name)}
			switch name {
			case "0", "3":
				out.Code = int(name[0] - '0')
				return out, nil
			case "hang":
				<-ctx.Done()
				return Output{}, ctx.Err()
			}
			return Output{}, &agent.Error{Kind: name, Message: name}
		},
	}
}

func commands(names ...string) (all []Exec) {
	for _, name := range names {
		all = append(all, Exec{Args: []string{name}})
	}
	return all
}

func TestAChainStopsAtTheFirstFailure(t *testing.T) {
	for name, test := range map[string]struct {
		commands []string
		goesOn   bool
		ran      int
		failed   int
		code     Code
	}{
		"nothing":                     {nil, false, 0, -1, 0},
		"success":                     {[]string{"0", "0"}, false, 2, -1, 0},
		"a status":                    {[]string{"0", "3", "0"}, false, 2, 1, 0},
		"goes on after a status":      {[]string{"3", "0", "3"}, true, 3, 0, 0},
		"cannot be run":               {[]string{"0", wire.KindCommandNotFound, "0"}, false, 2, 1, ErrCommandNotFound},
		"goes on":                     {[]string{wire.KindCommandNotFound, wire.KindNotExecutable, "0"}, true, 3, 0, ErrCommandNotFound},
		"a status, then an error":     {[]string{"3", wire.KindNotFound, "0"}, true, 3, 0, ErrNotFound},
		"the VM's end is the chain's": {[]string{"0", wire.KindUnavailable, "0"}, true, 2, 1, ErrVMEnded},
		"the time is over":            {[]string{"0", "hang", "0"}, true, 2, 1, ErrTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			s := &steps{}
			c := Chain{Commands: commands(test.commands...), ContinueOnError: test.goesOn}
			if test.code == ErrTimeout {
				c.Timeout = time.Millisecond
			}
			outputs, failed, err := c.run(t.Context(), s.do())
			require.Len(t, outputs, test.ran)
			require.Len(t, s.done, test.ran)
			require.Equal(t, test.failed, failed)
			if test.code == 0 {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, test.code)
			require.ErrorContains(t, err, "command ")
		})
	}
}

func TestAChainWritesItsFilesFirst(t *testing.T) {
	s := &steps{}
	c := Chain{Files: []ChainFile{{Path: "/a", Data: strings.NewReader("x"), Mode: 0o600, Owner: "app"}, {Path: "/b"}}, Commands: commands("0")}
	outputs, failed, err := c.run(t.Context(), s.do())
	require.NoError(t, err)
	require.Equal(t, -1, failed)
	require.Equal(t, "0", string(outputs[0].Stdout))
	require.Equal(t, []string{"/a x -rw------- app", "/b  -rw-r--r-- ", "0"}, s.done)

	s = &steps{fail: syscall.EIO}
	c.ContinueOnError = true
	outputs, failed, err = c.run(t.Context(), s.do())
	require.ErrorIs(t, err, syscall.EIO)
	require.ErrorContains(t, err, "file 0")
	require.Empty(t, outputs)
	require.Equal(t, -1, failed)
	require.Len(t, s.done, 1, "nothing is run")
}

func TestSignalsByName(t *testing.T) {
	for name, want := range map[string]syscall.Signal{
		"TERM": 15, "SIGTERM": 15, "sigterm": 15, "15": 15, "kill": 9, "1": 1, "64": 64,
		"RTMIN": 34, "SIGRTMIN+3": 37, "rtmax-1": 63, "RTMAX": 64, "RTMAX-30": 34,
	} {
		sig, err := ParseSignal(name)
		require.NoError(t, err, name)
		require.Equal(t, want, sig, name)
	}
	for _, name := range []string{
		"", "SIG", "0", "65", "-1", "TERMX", "SIGSIGTERM", "15.0", "é",
		"RTMIN-1", "RTMIN3", "RTMIN+31", "RTMAX+1", "RTMAX-31", "RTMIN+", "RTMIN+x",
	} {
		_, err := ParseSignal(name)
		require.ErrorIs(t, err, ErrInvalidArgument, name)
	}
}
