package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// detachedEnv tells a process that it is the background half of run -d. Its descriptor 3 is a pipe to the other half, which gets the
// VM's ID, or closes without one after an error was written to stderr.
const detachedEnv = "SUPERMACHINE_DETACHED"

func isDetached() bool { return os.Getenv(detachedEnv) != "" }

// detach runs this command again in a session of its own, waits until its program runs, and prints the VM's ID.
func detach(cmd *cobra.Command) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	child := exec.Command(self, os.Args[1:]...)
	child.Env = append(os.Environ(), detachedEnv+"=1")
	child.Stderr = os.Stderr // until the VM runs; then it points it elsewhere
	child.ExtraFiles = []*os.File{w}
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("start the background process: %w", err)
	}
	w.Close()
	id, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if len(id) > 0 {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(string(id)))
		return err
	}
	var status *exec.ExitError
	if errors.As(child.Wait(), &status) && status.ExitCode() > 0 {
		return exitStatus(status.ExitCode())
	}
	return exitStatus(exitFailure)
}

// reportDetached tells the foreground half that the VM runs, and lets go of its terminal.
func reportDetached(id string) error {
	if !isDetached() {
		return nil
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if err := syscall.Dup3(int(null.Fd()), 2, 0); err != nil {
		return err
	}
	pipe := os.NewFile(3, "parent")
	defer pipe.Close()
	_, err = fmt.Fprintln(pipe, id)
	return err
}
