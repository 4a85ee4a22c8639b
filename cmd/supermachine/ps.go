package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core/instances"
)

func newPS() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:     "ps [flags]",
		Short:   "List the running VMs",
		Example: "  supermachine ps\n  supermachine ps --json\n  supermachine stop $(supermachine ps -q)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := instances.List(instances.Dir())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case asJSON:
				return printJSON(out, all)
			case quiet:
				for _, vm := range all {
					fmt.Fprintln(out, vm.ID)
				}
				return nil
			}
			var rows [][]string
			for _, vm := range all {
				rows = append(rows, []string{
					vm.ID, vm.Name, vm.Image, strings.Join(vm.Command, " "), ago(vm.Created),
					fmt.Sprintf("%d MiB, %d cpu", vm.MemoryMiB, vm.VCPUs), strings.Join(vm.Ports, ", "),
				})
			}
			return printTable(out, []string{"ID", "NAME", "IMAGE", "COMMAND", "STARTED", "SIZE", "PORTS"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	return cmd
}

func newStop() *cobra.Command {
	var seconds float64
	var force bool
	cmd := &cobra.Command{
		Use:   "stop [flags] VM…",
		Short: "Stop running VMs",
		Long: `Stop running VMs by ID, the beginning of an ID, or name: the image's command gets its
stop signal and some time to end, then the guest is powered off.`,
		Example: "  supermachine stop web\n  supermachine stop -t 0 3f2a\n  supermachine stop --force web",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := interruptible(cmd)
			defer stop()
			failed := false
			for _, name := range args {
				err := instances.Stop(ctx, instances.Dir(), name, time.Duration(seconds*float64(time.Second)), force)
				if err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "supermachine: stop", err)
					failed = true
					continue
				}
				fmt.Fprintln(cmd.OutOrStdout(), name)
			}
			if failed {
				return exitStatus(exitFailure)
			}
			return nil
		},
	}
	cmd.Flags().Float64VarP(&seconds, "time", "t", 10, "seconds that the image's command has to end")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask the guest")
	return cmd
}

func newLogs() *cobra.Command {
	return &cobra.Command{
		Use:     "logs VM",
		Short:   "Print what the program of a VM in the background has written",
		Example: "  supermachine logs web",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := instances.Find(instances.Dir(), args[0])
			if err != nil {
				return err
			}
			log, err := instances.OpenLog(instances.Dir(), info)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("VM %s does not run in the background: its program writes to its terminal", info.Name)
			}
			if err != nil {
				return err
			}
			defer log.Close()
			_, err = io.Copy(cmd.OutOrStdout(), log)
			return err
		},
	}
}
