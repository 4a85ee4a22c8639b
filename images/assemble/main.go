// Command assemble writes an OCI image layout from tar archives of a root file system.
//
// Each --stage is a whole root file system at one moment of its making. The first becomes the first layer; every
// later one becomes a layer of what was added, changed or removed since the stage before.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// refName is the annotation by which a layout's index names an image: its tag (OCI image layout, "index.json file").
const refName = "org.opencontainers.image.ref.name"

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

type options struct {
	out     string
	arch    string
	created time.Time
	stages  list
	exclude list
	names   list
	env     list
	cmd     list
	ports   list
	workdir string
}

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = assemble(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "assemble:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("assemble", flag.ContinueOnError)
	f.StringVar(&o.out, "out", "", "layout directory to make")
	f.StringVar(&o.arch, "arch", "amd64", "architecture of the image, by its Go name")
	created := f.String("created", "0", "time of creation, in seconds since 1970")
	f.Var(&o.stages, "stage", "tar archive of the root file system, earliest first (repeatable)")
	f.Var(&o.exclude, "exclude", "`PATTERN` of paths left out together with what lies below them (repeatable)")
	f.Var(&o.names, "name", "tag of the image (repeatable)")
	f.Var(&o.env, "env", "`NAME=VALUE` (repeatable)")
	f.Var(&o.cmd, "cmd", "next word of the command (repeatable)")
	f.Var(&o.ports, "port", "exposed port as `PORT/tcp` (repeatable)")
	f.StringVar(&o.workdir, "workdir", "", "working directory")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.out == "" || len(o.stages) == 0 || len(o.names) == 0 || f.NArg() > 0 {
		return o, errors.New("need --out, --stage and --name, and nothing besides flags")
	}
	for _, p := range o.exclude {
		if _, err := path.Match(p, ""); err != nil {
			return o, fmt.Errorf("--exclude %s: %w", p, err)
		}
	}
	seconds, err := strconv.ParseInt(*created, 10, 64)
	if err != nil {
		return o, fmt.Errorf("--created: %w", err)
	}
	o.created = time.Unix(seconds, 0).UTC()
	return o, nil
}

func assemble(o options) error {
	work, err := os.MkdirTemp(filepath.Dir(o.out), "layers-")
	if err != nil {
		return fmt.Errorf("make a directory for layers: %w", err)
	}
	defer os.RemoveAll(work)

	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.ConfigFile(img, config(o))
	if err != nil {
		return fmt.Errorf("set the configuration: %w", err)
	}

	before := tree{}
	for i, stage := range o.stages {
		file := filepath.Join(work, strconv.Itoa(i)+".tar")
		after, err := writeLayer(file, stage, before, o.exclude)
		if err != nil {
			return fmt.Errorf("make a layer of %s: %w", stage, err)
		}
		before = after
		layer, err := tarball.LayerFromFile(file, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return fmt.Errorf("read the layer of %s: %w", stage, err)
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:     layer,
			History:   v1.History{Created: v1.Time{Time: o.created}, CreatedBy: filepath.Base(stage)},
			MediaType: types.OCILayer,
		})
		if err != nil {
			return fmt.Errorf("append the layer of %s: %w", stage, err)
		}
	}

	images, err := layout.Write(o.out, empty.Index)
	if err != nil {
		return fmt.Errorf("make the layout %s: %w", o.out, err)
	}
	for _, name := range o.names {
		if err := images.AppendImage(img, layout.WithAnnotations(map[string]string{refName: name})); err != nil {
			return fmt.Errorf("write the image to %s: %w", o.out, err)
		}
	}
	return nil
}

func config(o options) *v1.ConfigFile {
	c := &v1.ConfigFile{
		Architecture: o.arch,
		OS:           "linux",
		Created:      v1.Time{Time: o.created},
		RootFS:       v1.RootFS{Type: "layers"},
		Config:       v1.Config{Env: o.env, Cmd: o.cmd, WorkingDir: o.workdir},
	}
	for _, port := range o.ports {
		if c.Config.ExposedPorts == nil {
			c.Config.ExposedPorts = map[string]struct{}{}
		}
		c.Config.ExposedPorts[port] = struct{}{}
	}
	return c
}
