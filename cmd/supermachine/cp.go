package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/agent"
)

func newCopy() *cobra.Command {
	var owner string
	var archive bool
	cmd := &cobra.Command{
		Use:   "cp [flags] SOURCE TARGET",
		Short: "Copy files and directories to or from a running VM",
		Long: `Copy a file or a directory with everything in it between this machine and a running VM,
whose paths are written VM:PATH. If the target is a directory, the copy is put into it; a
source that ends in "/." means what is in the directory.

Whatever is in the VM, nothing outside of the copy is written here. Files that are copied
out belong to you, those that are copied in to root, unless --owner or --archive say
otherwise.`,
		Example: "  supermachine cp app.conf web:/etc/app/\n  supermachine cp web:/var/log/nginx ./logs\n  supermachine cp --owner www-data ./site/. web:/srv",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, source := vmPath(args[0])
			to, target := vmPath(args[1])
			if (from == "") == (to == "") {
				return errors.New("cp: give one of source and target as VM:PATH")
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			client, err := dial(ctx, from+to)
			if err != nil {
				return err
			}
			defer client.Close()
			if to != "" {
				return client.CopyIn(ctx, source, target, agent.UnpackOptions{Owner: owner, Owners: archive, Setuid: archive})
			}
			if owner != "" {
				return &core.Error{Code: core.ErrInvalidArgument, Op: "cp", Err: errors.New("--owner is for files that are copied into a VM")}
			}
			return client.CopyOut(ctx, source, target, agent.CopyOutOptions{Owners: archive, Setuid: archive})
		},
	}
	cmd.Flags().StringVar(&owner, "owner", "", "who owns what is copied into the VM: NAME|UID[:GROUP|GID] (default: root)")
	cmd.Flags().BoolVarP(&archive, "archive", "a", false, "keep owners by number, and set-user-ID bits")
	return cmd
}

// vmPath takes VM:PATH apart. What has a slash before the colon is a path of this machine, so ./a:b is too.
func vmPath(s string) (vm, path string) {
	if name, path, ok := strings.Cut(s, ":"); ok && name != "" && !strings.Contains(name, "/") {
		return name, path
	}
	return "", s
}
