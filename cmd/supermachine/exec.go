package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/instances"
)

func newExec() *cobra.Command {
	var flags execFlags
	var timeout time.Duration
	var detach bool
	cmd := &cobra.Command{
		Use:   "exec [flags] VM PROGRAM [ARG…]",
		Short: "Run a program in a running VM",
		Long: `Run a program in a running VM, named by its ID, the beginning of its ID, or its name.

The exit status is the program's; 124 if it ran into --timeout, 125 if supermachine
failed, 126 if the program cannot be executed, 127 if there is none, 128+N after signal N.`,
		Example: "  supermachine exec web nginx -s reload\n  supermachine attach web $(supermachine exec -d web make)\n  supermachine exec -it web sh\n  tar c . | supermachine exec -i web tar x -C /srv",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := instances.Find(instances.Dir(), args[0])
			if err != nil {
				return err
			}
			req, err := flags.request(args[1:])
			if err != nil {
				return err
			}
			req.Timeout = timeout
			client, err := instances.Dial(cmd.Context(), info)
			if err != nil {
				return err
			}
			defer client.Close()
			if detach {
				return spawn(cmd, client, req, flags.interactive)
			}
			var p *agent.Process
			return flags.follow(cmd.Context(), func(ctx context.Context) (program, error) {
				p, err = client.Exec(ctx, req)
				if err != nil {
					return nil, err
				}
				return p, nil
			}, func() { p.Kill() })
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "let it run by itself and print its number, for attach")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "kill the program after this time, such as 30s (default: never)")
	return cmd
}
