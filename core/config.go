package core

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/supermachine/supermachine/core/machine"
)

// Config describes one VM. The zero value is a VM with the defaults.
type Config struct {
	Name        string        // the VM's name and host name, 1 to 63 of [a-zA-Z0-9-]; default: its ID
	MemoryMiB   int           // RAM, 64 MiB to 512 GiB; default 256
	VCPUs       int           // 1 to 8; default 1
	ScratchMiB  int           // size of the writable layer over the image, 16 MiB to 1 TiB, allocated as it is written; default 8192
	BootTimeout time.Duration // how long the guest may take until its agent answers; default 60 s
	AssetsDir   string        // directory of kernel and initramfs; default: as FindAssets
	StateDir    string        // directory for templates and scratch files; default: HomeDir

	// Lifetime is after how long the VM is ended by force, from its start on; 0: never.
	Lifetime time.Duration
	// IdleTimeout is after how long without any use the VM is paused: no program but the workload that Exec or Run started, no file that is transferred and no connection.
	// The next use wakes it up. 0: never.
	IdleTimeout time.Duration

	// CPULimit is how many of the host's CPUs the guest may use on average, such as 0.5; 0: as many as it has vCPUs.
	CPULimit float64

	// Cgroup is a directory of a threaded cgroup (v2), below that of this process, which the guest's vCPUs are put into: its cpu.weight is their share
	// among others, and its cpu.max their limit. Empty: they stay with the process.
	Cgroup string

	// DiskBytesPerSecond and DiskRequestsPerSecond limit each disk of the VM: the image, the writable layer and each volume; 0: no limit.
	DiskBytesPerSecond    int64
	DiskRequestsPerSecond int64

	// Network, if set, lets the guest reach other computers.
	Network *Network

	Volumes []Volume // disks of the VM's own, MaxMounts together with Mounts
	Mounts  []Mount  // directories of the host
}

// Default values of Config.
const (
	DefaultMemoryMiB   = 256
	DefaultVCPUs       = 1
	DefaultScratchMiB  = 8192
	DefaultBootTimeout = 60 * time.Second
)

var hostName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`)

// withDefaults returns the config with every zero field replaced, or an ErrInvalidArgument that names field and range.
func (c Config) withDefaults(id string) (Config, error) {
	setDefault(&c.Name, id)
	setDefault(&c.MemoryMiB, DefaultMemoryMiB)
	setDefault(&c.VCPUs, DefaultVCPUs)
	setDefault(&c.ScratchMiB, DefaultScratchMiB)
	setDefault(&c.BootTimeout, DefaultBootTimeout)
	if c.StateDir == "" {
		home, err := HomeDir()
		if err != nil {
			return c, err
		}
		c.StateDir = home
	}
	for _, r := range []struct {
		name          string
		value, lo, hi int
		unit          string
	}{
		{"memory", c.MemoryMiB, machine.MinMemoryMiB, machine.MaxMemoryMiB, " MiB"},
		{"cpus", c.VCPUs, 1, machine.MaxVCPUs, ""},
		{"scratch disk", c.ScratchMiB, 16, 1 << 20, " MiB"},
	} {
		if r.value < r.lo || r.value > r.hi {
			return c, rangeError("check configuration", r.name, r.value, r.lo, r.hi, r.unit)
		}
	}
	if err := errors.Join(c.Network.check(), checkAttachments(c.Volumes, c.Mounts)); err != nil {
		return c, err
	}
	switch {
	case c.CPULimit < 0 || c.CPULimit > 0 && c.CPULimit < minCPULimit:
		return c, &Error{Code: ErrInvalidArgument, Op: "check configuration", Object: "CPU limit", Err: fmt.Errorf("%v is less than %v", c.CPULimit, minCPULimit)}
	case c.DiskBytesPerSecond < 0 || c.DiskRequestsPerSecond < 0:
		return c, &Error{Code: ErrInvalidArgument, Op: "check configuration", Object: "disk limits", Err: errors.New("they cannot be negative")}
	case c.Lifetime < 0 || c.IdleTimeout < 0:
		return c, &Error{Code: ErrInvalidArgument, Op: "check configuration", Object: "lifetime and idle timeout", Err: errors.New("they cannot be negative")}
	case c.BootTimeout < 0:
		return c, &Error{Code: ErrInvalidArgument, Op: "check configuration", Object: "boot timeout", Err: fmt.Errorf("%v is negative", c.BootTimeout)}
	case !hostName.MatchString(c.Name):
		return c, &Error{
			Code: ErrInvalidArgument, Op: "check configuration", Object: "name",
			Err: fmt.Errorf("%q is not 1 to 63 letters, digits and inner hyphens", c.Name),
		}
	}
	return c, nil
}

// Check returns an ErrInvalidArgument that names the first field out of range, nil if Start would take the configuration.
func (c Config) Check() error {
	_, err := c.withDefaults("check")
	return err
}

// minCPULimit is what a guest needs to go on at all.
const minCPULimit = 0.01

// rangeError is the ErrInvalidArgument of a number that is out of range.
func rangeError[T int | int64](op, object string, value, lo, hi T, unit ...string) error {
	u := strings.Join(unit, "")
	return &Error{
		Code: ErrInvalidArgument, Op: op, Object: object,
		Err: fmt.Errorf("%d%s is out of range, %d to %d%s are possible", value, u, lo, hi, u),
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// HomeEnv names the environment variable that moves HomeDir.
const HomeEnv = "SUPERMACHINE_HOME"

// HomeDir returns the directory that holds images and scratch disk templates: $SUPERMACHINE_HOME, else "supermachine" in the user's
// cache directory. Everything in it can be made again.
func HomeDir() (string, error) {
	if dir := os.Getenv(HomeEnv); dir != "" {
		return dir, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", &Error{Code: ErrInvalidArgument, Op: "find the home directory", Err: fmt.Errorf("%w; set %s", err, HomeEnv)}
	}
	return filepath.Join(cache, "supermachine"), nil
}

// newID returns a random name of 12 hexadecimal digits.
func newID() string {
	var b [6]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
