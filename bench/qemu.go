package main

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/supermachine/supermachine/core"
)

// bootQEMU starts QEMU's microvm machine with the same kernel and initramfs and returns how long it takes until init wants to call the host. There
// is no vsock device, so at that very point init says so on the console.
func bootQEMU(ctx context.Context) (time.Duration, error) {
	assets, err := core.FindAssets("")
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "microvm,accel=kvm,acpi=off,pit=on,pic=on,rtc=off,isa-serial=on,auto-kernel-cmdline=on", "-cpu", "host", "-smp", "1", "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", assets.Kernel, "-initrd", assets.Initramfs,
		"-append", "console=ttyS0 quiet reboot=t panic=-1 swiotlb=noforce cryptomgr.notests")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	var seen []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "supermachine-init:") {
			return time.Since(start), nil
		}
		seen = append(seen, lines.Text())
	}
	return 0, fmt.Errorf("QEMU's microvm did not come to init: %s\n%s", stderr.String(), strings.Join(seen, "\n"))
}
