package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/vmtest"
)

// cliEnv makes this test program the command line itself, so that tests run the real thing in processes of its own.
const cliEnv = "SUPERMACHINE_TEST_CLI"

func TestMain(m *testing.M) {
	if os.Getenv(cliEnv) != "" {
		main()
		os.Exit(0)
	}
	// VMs of other tests and of this machine's user are none of our business.
	dir, err := os.MkdirTemp("", "sm")
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_RUNTIME_DIR", dir)
	status := vmtest.Main(m)
	os.RemoveAll(dir)
	os.Exit(status)
}

// command prepares a run of the command line; the context's end kills it.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), cliEnv+"=1")
	return cmd
}

type output struct {
	stdout, stderr string
	status         int // -1 if a signal ended it
}

// cli runs the command line to its end, with nothing on its standard input.
func cli(t testing.TB, args ...string) output {
	t.Helper()
	return cliWith(t, nil, args...)
}

func cliWith(t testing.TB, stdin io.Reader, args ...string) output {
	t.Helper()
	cmd := command(context.WithoutCancel(t.Context()), args...) // cleanups use it too
	cmd.Stdin = stdin
	return finish(t, cmd)
}

// finish runs a prepared command.
func finish(t testing.TB, cmd *exec.Cmd) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		require.NoError(t, err, "%v", cmd.Args[1:])
	}
	return output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// succeed runs the command line, requires success and returns what it wrote to stdout, without the last newline.
func succeed(t testing.TB, args ...string) string {
	t.Helper()
	out := cli(t, args...)
	require.Zero(t, out.status, "%v: %s", args, out.stderr)
	return strings.TrimSuffix(out.stdout, "\n")
}

// image names one of the test images, for commands that pull what is missing.
func image(t testing.TB, name string) string {
	t.Helper()
	return "oci:" + filepath.Join(vmtest.ImagesDir(t), name) + ":latest"
}
