package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
)

func newSnapshots() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "snapshots [flags]",
		Short: "List the snapshots",
		Long: `List the snapshots, the newest first, with the command that runs in each. Those that
cannot be used say why; prune removes them.`,
		Example: "  supermachine snapshots\n  supermachine snapshots --json\n  supermachine rm $(supermachine snapshots -q)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := core.OpenSnapshots("", nil)
			if err != nil {
				return err
			}
			all, err := store.List()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case asJSON:
				return printJSON(out, all)
			case quiet:
				for _, i := range all {
					fmt.Fprintln(out, i.ID)
				}
				return nil
			}
			return printSnapshots(out, all)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print IDs only")
	cmd.AddCommand(newInspect())
	return cmd
}

func newInspect() *cobra.Command {
	return &cobra.Command{
		Use:     "inspect SNAPSHOT",
		Short:   "Describe a snapshot in JSON",
		Long:    "Describe a snapshot, named by its ID, the beginning of its ID, or its name, in JSON.",
		Example: "  supermachine snapshots inspect web\n  supermachine snapshots inspect 3f2a",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := core.OpenSnapshots("", nil)
			if err != nil {
				return err
			}
			info, err := store.Inspect(args[0])
			if err != nil {
				return err
			}
			return printObject(cmd.OutOrStdout(), info)
		},
	}
}

// commandWidth is how much of a command a table shows: some are whole scripts.
const commandWidth = 40

func printSnapshots(w io.Writer, all []core.SnapshotInfo) error {
	header := []string{"ID", "NAME", "IMAGE", "COMMAND", "SIZE", "CREATED", "USED", "DISK"}
	var rows [][]string
	broken := false
	for _, i := range all {
		command, vm := "(boot only)", fmt.Sprintf("%d MiB, %d cpu", i.MemoryMiB, i.VCPUs)
		if i.Workload {
			command = cut(oneLine(strings.Join(i.Command, " ")), commandWidth)
		}
		if i.MemoryMiB == 0 { // its description cannot be read
			command, vm = "-", "-"
		}
		row := []string{shortID(i.ID), i.Name, i.Image, command, vm, ago(i.Created), ago(i.LastUsed), size(i.Bytes)}
		if i.Problem != "" {
			broken = true
			row = append(row, oneLine(i.Problem))
		}
		rows = append(rows, row)
	}
	if broken {
		header = append(header, "PROBLEM")
	}
	return printTable(w, header, rows)
}

func newRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "rm SNAPSHOT…",
		Short: "Remove snapshots",
		Long: `Remove snapshots by ID, the beginning of an ID, or name (of several the newest). VMs that
go on from them are not disturbed.`,
		Example: "  supermachine rm web\n  supermachine rm $(supermachine snapshots -q)",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := core.OpenSnapshots("", nil)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			var removed []core.SnapshotInfo
			failed := false
			for _, name := range args {
				info, err := store.Inspect(name)
				if err == nil {
					err = store.Remove(ctx, info.ID)
				}
				if err != nil {
					fmt.Fprintln(cmd.ErrOrStderr(), "supermachine:", err)
					failed = true
					continue
				}
				removed = append(removed, info)
			}
			if err := printRemoved(cmd.OutOrStdout(), removed); err != nil {
				return err
			}
			if failed {
				return exitStatus(exitFailure)
			}
			return nil
		},
	}
}

func newPrune() *cobra.Command {
	var o core.PruneOptions
	var maxSize string
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove snapshots that are not needed",
		Long: `Remove snapshots that any of the flags gives up. Without flags these are the ones that no
VM can go on from: those of images that are gone, and broken ones.`,
		Example: `  supermachine prune
  supermachine prune --older-than 72h
  supermachine prune --max-size 10g --unreferenced`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := cmd.Flags().Changed
			if given("max-size") {
				mib, err := parseSize("max-size", maxSize)
				if err != nil {
					return err
				}
				if mib == 0 {
					return fmt.Errorf("--max-size %q is less than 1 MiB: use --all to keep nothing", maxSize)
				}
				o.MaxBytes = int64(mib) << 20
			}
			switch {
			case given("older-than") && o.OlderThan <= 0:
				return fmt.Errorf("--older-than %v: give some time, such as 72h", o.OlderThan)
			case o.All && (o.Unreferenced || o.OlderThan > 0 || o.MaxBytes > 0):
				return errors.New("--all removes every snapshot: leave out the other flags, or --all")
			case !o.All && o.OlderThan == 0 && o.MaxBytes == 0:
				o.Unreferenced = true
			}
			store, err := core.OpenSnapshots("", nil)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			removed, err := store.Prune(ctx, o)
			return errors.Join(printRemoved(cmd.OutOrStdout(), removed), err)
		},
	}
	fl := cmd.Flags()
	fl.DurationVar(&o.OlderThan, "older-than", 0, "give up what was not used for so long, such as 72h")
	fl.StringVar(&maxSize, "max-size", "", "give up the least recently used until the rest takes no more on disk, with unit: 10g")
	fl.BoolVar(&o.Unreferenced, "unreferenced", false, "give up what no VM can go on from; this is the default")
	fl.BoolVar(&o.All, "all", false, "give up all")
	return cmd
}

// printRemoved says which snapshots were removed and what that freed.
func printRemoved(w io.Writer, removed []core.SnapshotInfo) error {
	var total int64
	for _, i := range removed {
		name := ""
		if i.Name != "" {
			name = " (" + i.Name + ")"
		}
		fmt.Fprintf(w, "removed %s%s\n", shortID(i.ID), name)
		total += i.Bytes
	}
	_, err := fmt.Fprintf(w, "%d removed, %s freed\n", len(removed), size(total))
	return err
}
