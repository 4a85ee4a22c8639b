package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/oci"
)

// pullFlags are the flags of every command that may pull.
type pullFlags struct {
	policy   string
	platform string
	insecure []string
	quiet    bool
}

func (f *pullFlags) register(cmd *cobra.Command, policy string) {
	cmd.Flags().StringVar(&f.policy, "pull", policy, "when to pull: always, missing or never")
	cmd.Flags().StringVar(&f.platform, "platform", "", "platform, such as linux/amd64 (default: this machine's)")
	cmd.Flags().StringSliceVar(&f.insecure, "insecure-registry", nil, "registry that may use plain HTTP or any certificate")
	cmd.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
}

// pull makes the image available, with progress on stderr.
func (f *pullFlags) pull(cmd *cobra.Command, ref string) (*core.Image, error) {
	policy, err := oci.ParsePolicy(f.policy)
	if err != nil {
		return nil, err
	}
	store, err := core.OpenImages("")
	if err != nil {
		return nil, err
	}
	opts := core.PullOptions{Policy: policy, Platform: f.platform, Insecure: f.insecure}
	if !f.quiet {
		p := newProgress(cmd.ErrOrStderr(), ref)
		defer p.done()
		opts.Progress = p.event
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	return store.Pull(ctx, ref, opts)
}

func newPull() *cobra.Command {
	var flags pullFlags
	cmd := &cobra.Command{
		Use:   "pull [flags] IMAGE",
		Short: "Pull an image and convert it into a root file system",
		Long: `Pull an image and convert it into a root file system.

IMAGE is a reference to a registry (nginx, host:5000/app:tag, name@sha256:…), or
oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], or a path that
begins with . or /. Credentials come from the Docker config.`,
		Example: `  supermachine pull python:3.12-slim
  supermachine pull localhost:5000/app
  supermachine pull docker-archive:app.tar`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			img, err := flags.pull(cmd, args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), img.Digest)
			return err
		},
	}
	flags.register(cmd, "always")
	return cmd
}

func newImages() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "images [flags]",
		Short:   "List the images that are ready to run",
		Example: "  supermachine images\n  supermachine images --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := core.OpenImages("")
			if err != nil {
				return err
			}
			all, err := store.List()
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), imageList(all))
			}
			var rows [][]string
			for _, img := range all {
				rows = append(rows, []string{img.Ref, shortDigest(img.Digest), img.Platform, ago(img.Created), size(img.Size)})
			}
			return printTable(cmd.OutOrStdout(), []string{"IMAGE", "DIGEST", "PLATFORM", "CREATED", "SIZE"}, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// listedImage is an image in JSON: what oci.Image keeps on disk, with the reference and the path.
type listedImage struct {
	Ref string `json:"ref"`
	*core.Image
	RootFS string `json:"rootfs_path"`
}

func imageList(all []*core.Image) []listedImage {
	var out []listedImage
	for _, img := range all {
		out = append(out, listedImage{img.Ref, img, img.RootFS})
	}
	return out
}
