package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/supermachine/supermachine/core"
)

func newDoctor() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "doctor [flags]",
		Short:   "Say what this host can do and what is missing",
		Long:    "Say what this host can do and what is missing. The exit status is 1 if no VM can run here.",
		Example: "  supermachine doctor\n  supermachine doctor --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks := core.Doctor()
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), checks); err != nil {
					return err
				}
			} else {
				printChecks(cmd, checks)
			}
			for _, c := range checks {
				if c.Status == core.CheckFailed {
					return exitStatus(1)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printChecks(cmd *cobra.Command, checks []core.Check) {
	colours := map[core.CheckStatus]string{core.CheckOK: "\x1b[32m", core.CheckWarning: "\x1b[33m", core.CheckFailed: "\x1b[31m"}
	out := cmd.OutOrStdout()
	f, isFile := out.(*os.File)
	tty := isFile && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
	for _, c := range checks {
		status := fmt.Sprintf("%-8s", c.Status)
		if tty {
			status = colours[c.Status] + status + "\x1b[0m"
		}
		fmt.Fprintf(out, "%s %-16s %s\n", status, c.Name, c.Detail)
		if c.Fix != "" {
			fmt.Fprintf(out, "%25s → %s\n", "", c.Fix)
		}
	}
}
