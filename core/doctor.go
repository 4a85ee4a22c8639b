package core

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// CheckStatus is the outcome of one check.
type CheckStatus string

const (
	CheckOK      CheckStatus = "ok"
	CheckWarning CheckStatus = "warning" // VMs run, but slower or fewer of them
	CheckFailed  CheckStatus = "failed"  // no VM can run
)

// Check is one thing that Doctor looked at.
type Check struct {
	Name   string      `json:"name"`
	Status CheckStatus `json:"status"`
	Detail string      `json:"detail"`        // what was found
	Fix    string      `json:"fix,omitempty"` // what to do about it, if anything is to be done
}

// Doctor looks at everything this host needs to run VMs and says what it can do and what is missing. It changes nothing.
func Doctor() []Check {
	checks := []Check{
		{Name: "platform", Status: CheckOK, Detail: runtime.GOOS + "/" + runtime.GOARCH + ", kernel " + kernelRelease()},
		checkVirtualization(),
		checkAssets(),
		checkHome(),
		checkMemory(),
	}
	return append(checks, checkKVMTuning()...)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func checkVirtualization() Check {
	c := Check{Name: "virtualization", Status: CheckOK, Detail: "/dev/kvm works and the CPU has hardware virtualization"}
	if _, err := openHypervisor(); err != nil {
		c.Status, c.Detail, c.Fix = CheckFailed, err.Error(), ""
		var u *hypervisor.UnavailableError
		if errors.As(err, &u) {
			c.Detail, c.Fix = u.Cause(), u.Fix
		}
	}
	return c
}

func checkAssets() Check {
	a, err := FindAssets("")
	if err != nil {
		return Check{Name: "guest kernel", Status: CheckFailed, Detail: err.Error(), Fix: "install the package again, or set " + AssetsEnv}
	}
	return Check{Name: "guest kernel", Status: CheckOK, Detail: filepath.Dir(a.Kernel)}
}

func checkHome() Check {
	c := Check{Name: "storage"}
	dir, err := HomeDir()
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == nil {
		var f *os.File
		if f, err = os.CreateTemp(dir, ".doctor-*"); err == nil {
			f.Close()
			os.Remove(f.Name())
		}
	}
	if err != nil {
		c.Status, c.Detail, c.Fix = CheckFailed, err.Error(), "make the directory writable, or set "+HomeEnv+" to another one"
		return c
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		c.Status, c.Detail = CheckFailed, err.Error()
		return c
	}
	free := st.Bavail * uint64(st.Bsize)
	c.Status, c.Detail = CheckOK, fmt.Sprintf("%s, %d MiB free", dir, free>>20)
	if free < 1<<30 {
		c.Status, c.Fix = CheckWarning, "images need room: free some, or set "+HomeEnv+" to a directory on a larger disk"
	}
	return c
}

func checkMemory() Check {
	c := Check{Name: "memory", Status: CheckWarning, Detail: "unknown"}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return c
	}
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemAvailable:" {
			kib, _ := strconv.ParseUint(f[1], 10, 64)
			c.Status, c.Detail = CheckOK, fmt.Sprintf("%d MiB available", kib>>10)
			if kib>>10 < 2*DefaultMemoryMiB {
				c.Status, c.Fix = CheckWarning, "VMs of the default size will not all fit"
			}
		}
	}
	return c
}

// checkKVMTuning reports host settings that are known to slow VM creation down.
func checkKVMTuning() []Check {
	release := kernelRelease()
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	// From 5.x to 6.11 creating a VM starts a recovery thread and moves it between cgroups, which costs milliseconds
	// unless huge pages for the NX workaround are off; from 6.12 on the thread starts with the first run.
	if major < 6 || major == 6 && minor < 12 {
		b, err := os.ReadFile("/sys/module/kvm/parameters/nx_huge_pages")
		if v := strings.TrimSpace(string(b)); err == nil && v != "N" && v != "never" {
			return []Check{{
				Name: "VM creation", Status: CheckWarning, Detail: "kvm.nx_huge_pages is " + v + ": creating a VM takes milliseconds longer",
				Fix: "mount cgroup v2 with favordynmods, or boot with kvm.nx_huge_pages=never if the CPU is not affected by iTLB multihit",
			}}
		}
	}
	return nil
}
