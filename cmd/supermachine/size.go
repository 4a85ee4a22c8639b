package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
)

// sizeFlags are the flags of every command that makes a VM.
type sizeFlags struct {
	cpus   int
	memory string
	disk   string
}

func (f *sizeFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.IntVar(&f.cpus, "cpus", core.DefaultVCPUs, "number of virtual CPUs, 1 to 8")
	fl.StringVarP(&f.memory, "memory", "m", fmt.Sprintf("%dm", core.DefaultMemoryMiB), "memory, with unit: 512m, 2g")
	fl.StringVar(&f.disk, "disk", fmt.Sprintf("%dm", core.DefaultScratchMiB), "size of the writable layer, with unit; allocated as it is written")
}

// sizes checks the flags before anything is pulled.
func (f *sizeFlags) sizes() (cfg core.Config, err error) {
	cfg.VCPUs = f.cpus
	if f.cpus == 0 {
		return cfg, fmt.Errorf("--cpus 0: give 1 to 8")
	}
	if cfg.MemoryMiB, err = parseSize("memory", f.memory); err != nil {
		return cfg, err
	}
	if cfg.MemoryMiB == 0 {
		return cfg, fmt.Errorf("--memory %q is less than 1 MiB", f.memory)
	}
	if cfg.ScratchMiB, err = parseSize("disk", f.disk); err != nil {
		return cfg, err
	}
	if cfg.ScratchMiB == 0 { // which would be the default
		return cfg, fmt.Errorf("--disk %q is less than 1 MiB", f.disk)
	}
	return cfg, cfg.Check()
}

// parseSize reads a number of MiB from a size with unit.
func parseSize(flag, s string) (int, error) {
	n, err := parseBytes(flag, s)
	return int(n >> 20), err
}

// parseBytes reads a number of bytes from a size with unit.
func parseBytes(flag, s string) (uint64, error) {
	units := map[byte]uint64{'b': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40}
	lower := strings.TrimSuffix(strings.ToLower(s), "ib")
	digits, unit := lower, uint64(0)
	if n := len(lower); n > 0 && units[lower[n-1]] != 0 {
		digits, unit = lower[:n-1], units[lower[n-1]]
	}
	v, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || unit == 0 {
		return 0, fmt.Errorf("--%s %q: give a number and a unit, such as 512m or 2g", flag, s)
	}
	return v * unit, nil
}
