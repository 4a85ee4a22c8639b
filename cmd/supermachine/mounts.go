package main

import (
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
)

// attachFlags say what of the host and of the world a VM has.
type attachFlags struct {
	volumes []string
	mounts  []string
	network bool
	egress  []string
	deny    bool
	rate    string
}

func (f *attachFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.volumes, "volume", "v", nil,
		"attach a disk that is kept in a file: FILE:/PATH[:ro][:size=8G]; made on first use")
	fl.BoolVar(&f.network, "network", false, "let the guest reach the public Internet; --egress allows more or less")
	fl.StringArrayVar(&f.egress, "egress", nil, "a rule of where the guest may connect to: allow|deny WHAT[:PORTS]; the first that fits decides")
	fl.BoolVar(&f.deny, "egress-deny", false, "deny what no --egress allows")
	fl.StringVar(&f.rate, "network-rate", "", "limit the network, each way, in bytes per second, with unit: 10m")
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
	if !f.network && len(f.egress) == 0 && !f.deny && f.rate == "" {
		return nil
	}
	cfg.Network = &core.Network{Rules: f.egress}
	if f.deny {
		cfg.Network.Default = "deny"
	}
	if f.rate != "" {
		n, err := parseBytes("network-rate", f.rate)
		if err != nil {
			return err
		}
		cfg.Network.BytesPerSecond = int64(n)
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
	paths = slices.DeleteFunc(paths, func(p string) bool { return slices.Contains(list, p) })
	return strings.Join(paths, ", ")
}
