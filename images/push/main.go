// Command push copies the images of an OCI image layout to a registry over HTTP, each to the tag its index names.
//
//	push LAYOUT HOST:PORT/REPOSITORY
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: push LAYOUT HOST:PORT/REPOSITORY")
		os.Exit(2)
	}
	if err := push(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "push:", err)
		os.Exit(1)
	}
}

func push(dir, repository string) error {
	repo, err := name.NewRepository(repository, name.Insecure)
	if err != nil {
		return err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return fmt.Errorf("open the layout %s: %w", dir, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("read the index of %s: %w", dir, err)
	}
	for _, d := range manifest.Manifests {
		tag := d.Annotations["org.opencontainers.image.ref.name"]
		if tag == "" {
			return errors.New("an image of " + dir + " has no tag")
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			return fmt.Errorf("open the image %s of %s: %w", tag, dir, err)
		}
		if err := remote.Write(repo.Tag(tag), img); err != nil {
			return fmt.Errorf("push %s to %s: %w", tag, repo, err)
		}
	}
	return nil
}
