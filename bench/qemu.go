package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/mdlayher/vsock"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/guest/initramfs"
)

// peer boots QEMU's microvm machine with the kernel, the initramfs and the disks that a VM of ours has, its sockets by the host kernel's vhost.
type peer struct {
	kernel, initrd, root, scratch string
	extra                         []string // devices besides, on the buses 1 to 3
	calls                         net.Listener
}

// newPeer prepares in dir what is not to be timed.
func newPeer(dir string, img *core.Image) (*peer, error) {
	assets, err := core.FindAssets("")
	if err != nil {
		return nil, err
	}
	p := &peer{kernel: assets.Kernel, root: img.RootFS, initrd: filepath.Join(dir, "initrd"), scratch: filepath.Join(dir, "scratch")}
	initrd, err := os.ReadFile(assets.Initramfs)
	if err != nil {
		return nil, err
	}
	boot, err := msgpack.Marshal(wire.BootConfig{Hostname: "peer", Root: "/dev/vda", Scratch: "/dev/vdb", Env: img.Config.Env})
	if err != nil {
		return nil, err
	}
	extra := bytes.NewBuffer(initrd)
	if err := initramfs.Write(extra, []initramfs.File{{Name: wire.BootConfigPath[1:], Mode: initramfs.TypeRegular | 0o400, Data: boot}}); err != nil {
		return nil, err
	}
	if err := os.WriteFile(p.initrd, extra.Bytes(), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal", p.scratch, "1G").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	if p.calls, err = vsock.ListenContextID(unix.VMADDR_CID_ANY, wire.ControlPort, nil); err != nil {
		return nil, err
	}
	return p, nil
}

// boot returns how long it takes until the agent answers.
func (p *peer) boot(ctx context.Context) (time.Duration, error) {
	_, stop, took, err := p.start(ctx)
	if err != nil {
		return 0, err
	}
	stop()
	return took, nil
}

// start boots a guest and returns a client of its agent, and how long it took.
func (p *peer) start(ctx context.Context) (client *agent.Client, stop func(), took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	args := []string{
		"-M", "microvm,accel=kvm,acpi=off,pit=on,pic=on,rtc=off,isa-serial=on,auto-kernel-cmdline=on", "-cpu", "host", "-smp", "1", "-m", strconv.Itoa(core.DefaultMemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		// The guest's disks are known by their order, which is from the last bus to the first.
		"-drive", "if=none,id=root,format=raw,readonly=on,file=" + p.root, "-device", "virtio-blk-device,drive=root,bus=virtio-mmio-bus.6",
		"-drive", "if=none,id=scratch,format=raw,file=" + p.scratch, "-device", "virtio-blk-device,drive=scratch,bus=virtio-mmio-bus.5",
		"-device", "vhost-vsock-device,guest-cid=3,bus=virtio-mmio-bus.4", "-device", "virtio-rng-device,bus=virtio-mmio-bus.0",
		"-kernel", p.kernel, "-initrd", p.initrd,
		"-append", "console=ttyS0 quiet reboot=t panic=-1 swiotlb=noforce cryptomgr.notests random.trust_cpu=on noreplace-smp tsc=nowatchdog",
	}
	cmd := exec.Command("qemu-system-x86_64", append(args, p.extra...)...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, nil, 0, err
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	client, took, err = p.answer(ctx, ended, start)
	stop = func() {
		if client != nil {
			client.Close()
		}
		cmd.Process.Kill()
		<-ended
	}
	if err != nil {
		stop()
		return nil, nil, 0, fmt.Errorf("QEMU's microvm: %w\n%s", err, output.Bytes())
	}
	return client, stop, took, nil
}

func (p *peer) answer(ctx context.Context, ended <-chan struct{}, start time.Time) (*agent.Client, time.Duration, error) {
	called := make(chan net.Conn, 1)
	go func() {
		if c, err := p.calls.Accept(); err == nil {
			called <- c
		}
	}()
	select {
	case conn := <-called:
		client, err := agent.NewClient(conn)
		if err != nil {
			return nil, 0, err
		}
		err = client.Ping(ctx)
		return client, time.Since(start), err
	case <-ended:
		return nil, 0, errors.New("it has ended")
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
}
