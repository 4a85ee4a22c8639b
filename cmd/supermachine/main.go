// Command supermachine runs OCI images as microVMs from the command line. Everything it does is in package core; here are flags and text.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
)

// Exit statuses besides those of the program that ran, as docker has them.
const (
	exitTimeout       = 124
	exitFailure       = 125 // supermachine itself failed
	exitNotExecutable = 126
	exitNotFound      = 127
)

// exitStatus is an error that only carries an exit status: what is to be said has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	err := newRoot().ExecuteContext(context.Background())
	if err == nil {
		return
	}
	var status exitStatus
	if !errors.As(err, &status) {
		fmt.Fprintln(os.Stderr, "supermachine:", err)
		status = statusOf(err)
	}
	os.Exit(int(status))
}

func statusOf(err error) exitStatus {
	switch core.CodeOf(err) {
	case core.ErrCommandNotFound:
		return exitNotFound
	case core.ErrNotExecutable:
		return exitNotExecutable
	}
	return exitFailure
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "supermachine",
		Short: "Run OCI images as hardware-isolated microVMs",
		Example: `  supermachine run --rm alpine echo hello
  supermachine run -d --name web -p 8080:80 nginx
  supermachine exec -it web sh
  supermachine cp web:/var/log/nginx ./logs
  supermachine stop web
  supermachine bake nginx
  supermachine doctor`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       core.Version(),
	}
	root.AddCommand(
		newRun(), newExec(), newAttach(), newTop(), newCopy(), newPS(), newLogs(), newStop(), newPull(), newImages(), newBake(), newSnapshots(), newRemove(), newPrune(), newDoctor(),
	)
	return root
}

// interruptible returns a context that ends with Ctrl-C or SIGTERM, for commands that have no program to pass signals to.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
}
