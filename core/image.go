package core

import (
	"context"
	"path/filepath"

	"github.com/supermachine/supermachine/core/oci"
	"github.com/supermachine/supermachine/core/trace"
)

// Image is an image in a store, with its root file system ready to boot.
type Image = oci.Image

// PullOptions says how an image is pulled; the zero value pulls what is missing, for this host's architecture.
type PullOptions = oci.PullOptions

// The pull policies of PullOptions.
const (
	PullMissing = oci.PullMissing
	PullAlways  = oci.PullAlways
	PullNever   = oci.PullNever
)

// Images is a store of images. Any number of processes may use the same directory at once.
type Images struct {
	store *oci.Store
}

// OpenImages opens the store in dir, or the user's own in HomeDir if dir is empty. The directory is made if it is missing.
func OpenImages(dir string) (*Images, error) {
	if dir == "" {
		home, err := HomeDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(home, "images")
	}
	store, err := oci.OpenStore(dir)
	if err != nil {
		return nil, wrap("open image store", dir, err)
	}
	return &Images{store}, nil
}

// Pull makes an image available: from a registry, an OCI layout directory or an archive, as ref says (see package oci).
func (s *Images) Pull(ctx context.Context, ref string, opts PullOptions) (*Image, error) {
	op := trace.Begin(trace.OCI, ref)
	img, err := s.store.Pull(ctx, ref, opts)
	op.Step("pull")
	counters.pulls.Add(1)
	return img, wrap("", "", err) // the cause names operation and reference
}

// List returns the images of the store, one entry for each reference.
func (s *Images) List() ([]*Image, error) {
	all, err := s.store.List()
	return all, wrap("list images", "", err)
}

// Remove forgets a reference; its files go when nothing else needs them. VMs that run it keep running.
func (s *Images) Remove(ctx context.Context, ref string) error {
	return wrap("", "", s.store.Remove(ctx, ref, "")) // as in Pull
}

// Command returns what the image runs when it is given args: its entrypoint with args, or with its default command if there are none.
func Command(img *Image, args []string) []string {
	if len(args) == 0 {
		args = img.Config.Cmd
	}
	return append(append([]string(nil), img.Config.Entrypoint...), args...)
}
