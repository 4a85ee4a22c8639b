package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/instances"
)

// dial connects to the agent of a running VM.
func dial(ctx context.Context, name string) (*agent.Client, error) {
	info, err := instances.Find(instances.Dir(), name)
	if err != nil {
		return nil, err
	}
	return instances.Dial(ctx, info)
}

// spawn starts a program that runs by itself.
func spawn(cmd *cobra.Command, client *agent.Client, req agent.ExecRequest, stdin bool) error {
	req.Stdin, req.Stdout, req.Stderr, req.Detach, req.OpenStdin = nil, nil, nil, true, stdin
	p, err := client.Exec(cmd.Context(), req)
	if err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), p.ID())
	return nil
}

func newAttach() *cobra.Command {
	flags := execFlags{}
	cmd := &cobra.Command{
		Use:   "attach [flags] VM NUMBER",
		Short: "Attach to a program that exec -d started",
		Long: `Attach to a program that exec -d started: what the guest has kept of its output, 256 KiB,
comes first, then what it writes. The exit status is the program's. exec -d and top print
its number.`,
		Example: "  supermachine attach web 7",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[1], 10, 64)
			if err != nil {
				return fmt.Errorf("%q is not a program's number: see top", args[1])
			}
			client, err := dial(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer client.Close()
			to := agent.AttachRequest{Stdout: os.Stdout, Stderr: os.Stderr}
			if flags.interactive {
				to.Stdin = os.Stdin
			}
			var p *agent.Process
			return flags.follow(cmd.Context(), func(ctx context.Context) (program, error) {
				if p, err = client.Attach(ctx, id, to); err != nil {
					return nil, err
				}
				return p, nil
			}, func() { p.Kill() })
		},
	}
	cmd.Flags().BoolVarP(&flags.interactive, "interactive", "i", false, "pass on standard input, if it was started with -i")
	return cmd
}

// programRow is a program as top --json prints it.
type programRow struct {
	ID       uint64   `json:"id"`
	PID      int      `json:"pid"`
	UID      uint32   `json:"uid"`
	Args     []string `json:"args"`
	Started  string   `json:"started"`
	Detached bool     `json:"detached"`
	Ended    bool     `json:"ended"`
}

func newTop() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "top [flags] VM",
		Short:   "List the programs that were started in a VM",
		Example: "  supermachine top web\n  supermachine top --json web",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd)
			defer stop()
			client, err := dial(ctx, args[0])
			if err != nil {
				return err
			}
			defer client.Close()
			all, more, err := client.Programs(ctx)
			if err != nil {
				return err
			}
			if asJSON {
				var rows []programRow
				for _, p := range all {
					rows = append(rows, programRow{p.ID, p.PID, p.UID, p.Args, p.StartTime().UTC().Format("2006-01-02T15:04:05.000Z"), p.Detached || p.Main, p.Ended})
				}
				return printJSON(cmd.OutOrStdout(), rows)
			}
			var rows [][]string
			for _, p := range all {
				rows = append(rows, []string{fmt.Sprint(p.ID), fmt.Sprint(p.PID), fmt.Sprint(p.UID), ago(p.StartTime()), programState(p), strings.Join(p.Args, " ")})
			}
			if err := printTable(cmd.OutOrStdout(), []string{"NUMBER", "PID", "UID", "STARTED", "STATE", "COMMAND"}, rows); err != nil {
				return err
			}
			if more {
				fmt.Fprintln(cmd.ErrOrStderr(), "supermachine: there are more")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func programState(p agent.Program) string {
	switch {
	case p.Ended:
		return "ended"
	case p.Main:
		return "workload"
	case p.Detached:
		return "detached"
	}
	return "running"
}
