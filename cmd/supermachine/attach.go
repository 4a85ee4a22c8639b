package main

import (
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
)

// attachFlags say what of the host a VM has.
type attachFlags struct {
	volumes []string
	mounts  []string
}

func (f *attachFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.volumes, "volume", "v", nil,
		"attach a disk that is kept in a file: FILE:/PATH[:ro][:size=8G]; made on first use")
	fl.StringArrayVar(&f.mounts, "mount", nil, "let the guest see a directory: DIR:/PATH[:ro][:symlinks=opaque|deny|follow]")
}

// parse reads the flags. Who knows docker's -v is told of --mount.
func (f *attachFlags) parse(cfg *core.Config) error {
	for _, s := range f.volumes {
		v, err := core.ParseVolume(s)
		if err != nil {
			return err
		}
		if info, err := os.Stat(v.File); err == nil && info.IsDir() {
			return errors.New("--volume is for files, and " + v.File + " is a directory: give --mount " + s)
		}
		cfg.Volumes = append(cfg.Volumes, v)
	}
	for _, s := range f.mounts {
		m, err := core.ParseMount(s)
		if err != nil {
			return err
		}
		cfg.Mounts = append(cfg.Mounts, m)
	}
	return nil
}

// attached returns where in the guest something is attached.
func attached(cfg core.Config) (paths []string) {
	for _, v := range cfg.Volumes {
		paths = append(paths, v.Path)
	}
	for _, m := range cfg.Mounts {
		paths = append(paths, m.Path)
	}
	return paths
}

// missing returns which of the paths are not in the list.
func missing(paths, list []string) string {
	var out []string
	for _, p := range paths {
		found := false
		for _, l := range list {
			found = found || l == p
		}
		if !found {
			out = append(out, p)
		}
	}
	return strings.Join(out, ", ")
}
