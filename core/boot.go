package core

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/trace"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/balloon"
	"github.com/supermachine/supermachine/core/virtio/block"
	"github.com/supermachine/supermachine/core/virtio/console"
	"github.com/supermachine/supermachine/core/virtio/rng"
	"github.com/supermachine/supermachine/core/virtio/vsock"
	"github.com/supermachine/supermachine/guest/initramfs"
)

// guestCID is every guest's vsock address. Guests are not connected to one another, so all may have the same.
const guestCID = 3

// bootShare is the part of its memory that a guest is expected to touch while it boots: one in so many.
const bootShare = 4

// BootError is the cause of an ErrBoot: what happened, and the last that the guest wrote to its console.
type BootError struct {
	Reason  string
	Console string // up to 4 KiB, whole lines
}

func (e *BootError) Error() string {
	if e.Console == "" {
		return e.Reason + "; the console is empty"
	}
	return e.Reason + "; the console's last lines:\n" + e.Console
}

// Start boots an image in a new VM and waits until its agent answers. It does not start the image's command; Exec with Main does. When
// ctx is done or Config.BootTimeout has passed before, it gives up and releases everything.
func Start(ctx context.Context, img *Image, cfg Config) (*VM, error) {
	vm := &VM{id: newID(), image: img, console: console.NewRing(0), forwards: map[*Forward]struct{}{}}
	var err error
	if vm.cfg, err = cfg.withDefaults(vm.id); err != nil {
		return nil, err
	}
	if vm.room, _, err = admit(ctx, int64(vm.cfg.MemoryMiB)<<20/bootShare); err != nil {
		return nil, wrap("start VM from", img.Ref, err)
	}
	vm.op = trace.Begin(trace.Boot, vm.id)
	if err := vm.boot(ctx); err != nil {
		counters.failed.Add(1)
		if vm.machine != nil {
			vm.Close()
		} else {
			vm.closeNetwork()
		}
		vm.room.Release()
		return nil, wrap("start VM from", img.Ref, err)
	}
	vm.room.Settle()
	vm.noteStart(&counters.booted)
	vm.watch()
	return vm, nil
}

func (vm *VM) boot(ctx context.Context) error {
	hv, err := openHypervisor()
	if err != nil {
		return err
	}
	assets, err := FindAssets(vm.cfg.AssetsDir)
	if err != nil {
		return err
	}
	kernel, err := os.Open(assets.Kernel)
	if err != nil {
		return &Error{Code: ErrAssets, Op: "read the guest's kernel", Err: err}
	}
	defer kernel.Close()
	initrd, err := vm.initrd(assets)
	if err != nil {
		return err
	}
	empty, err := emptyDisk(vm.cfg.StateDir, vm.cfg.ScratchMiB)
	if err != nil {
		return err
	}
	vm.op.Step("find files")
	devices, err := vm.devices(empty, nil)
	if err != nil {
		return err
	}
	if vm.calls, err = vm.vsock.Listen(agent.ControlPort); err != nil {
		return err
	}
	threads, err := vm.cfg.openCgroup()
	if err != nil {
		closeDevices(devices)
		return err
	}
	vm.machine, err = machine.New(machine.Config{
		Threads: threads, Hypervisor: hv, MemoryMiB: vm.cfg.MemoryMiB, VCPUs: vm.cfg.VCPUs, CPULimit: vm.cfg.CPULimit, Devices: devices, Serial: vm.console,
	})
	if err != nil {
		return err
	}
	vm.op.Step("make machine")
	err = vm.machine.Boot(machine.Boot{Kernel: kernel, Initrd: initrd, Cmdline: "quiet"})
	if errors.Is(err, machine.ErrKernel) {
		return &Error{Code: ErrAssets, Op: "load the guest's kernel from", Object: assets.Kernel, Err: err}
	}
	if err != nil {
		return err
	}
	vm.op.Step("load kernel")
	if err := vm.connect(ctx); err != nil || len(vm.own.FileSystems) == 0 && vm.own.Network == nil {
		return err
	}
	defer vm.op.Step("set up network, volumes and mounts")
	return vm.agent.Mount(ctx, vm.own)
}

// connect waits for the guest's agent.
func (vm *VM) connect(ctx context.Context) error {
	wait, cancel := vm.whileRunning(ctx)
	defer cancel()
	conn, err := vm.accept(wait)
	if err == nil {
		if vm.agent, err = agent.NewClient(conn); err == nil {
			vm.agent.TrackUse(vm.begin)
			err = vm.agent.Ping(wait) // answered once the workload's container is there
		}
	}
	if err == nil {
		vm.started = time.Now()
		vm.op.Step("boot guest")
		return nil
	}
	select {
	case <-vm.Done():
		return vm.bootError("the guest ended while it booted: " + vm.End().String())
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return vm.bootError(fmt.Sprintf("the guest's agent did not answer within %v", vm.cfg.BootTimeout))
	}
	return vm.bootError(err.Error())
}

// whileRunning returns a context that ends with the VM and after the time that the agent may take.
func (vm *VM) whileRunning(ctx context.Context) (context.Context, context.CancelFunc) {
	wait, cancel := context.WithTimeout(ctx, vm.cfg.BootTimeout)
	go func() {
		select {
		case <-vm.Done():
			cancel()
		case <-wait.Done():
		}
	}()
	return wait, cancel
}

// accept waits for the guest's call.
func (vm *VM) accept(ctx context.Context) (net.Conn, error) {
	defer vm.calls.Close()
	defer context.AfterFunc(ctx, func() { vm.calls.Close() })()
	conn, err := vm.calls.Accept()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return conn, err
}

func (vm *VM) bootError(reason string) error {
	return &Error{Code: ErrBoot, Op: "boot the guest", Err: &BootError{Reason: reason, Console: vm.ConsoleTail(4 << 10)}}
}

// initrd returns the initramfs and, behind it, what init is to know of this VM.
func (vm *VM) initrd(assets Assets) ([][]byte, error) {
	base, err := os.ReadFile(assets.Initramfs)
	if err != nil {
		return nil, &Error{Code: ErrAssets, Op: "read the guest's initramfs", Err: err}
	}
	c := vm.image.Config
	boot, err := msgpack.Marshal(wire.BootConfig{
		Hostname: vm.cfg.Name, Root: "/dev/vda", Scratch: "/dev/vdb",
		Env: c.Env, Dir: c.WorkingDir, User: c.User, StopSignal: c.StopSignal, Time: time.Now(),
	})
	if err != nil {
		return nil, err
	}
	var extra bytes.Buffer
	err = initramfs.Write(&extra, []initramfs.File{
		{Name: wire.BootConfigPath[1:], Mode: initramfs.TypeRegular | 0o400, Data: boot},
	})
	return [][]byte{base, extra.Bytes()}, err
}

// devices makes the VM's devices, with an empty writable layer over below, whose reference it takes over. init knows the two disks by their order; a
// machine that restores a state must have the same devices in the same order, but for its own network and what is attached, which are new to the guest.
func (vm *VM) devices(below *layer, saved []virtio.State) (devices []virtio.Device, err error) {
	defer func() {
		if err != nil {
			closeDevices(devices)
		}
	}()
	if vm.scratch, err = newScratch(vm.cfg.StateDir, below); err != nil {
		return nil, err
	}
	scratch, err := vm.cfg.newDisk(vm.scratch, "scratch")
	if err != nil {
		return nil, err
	}
	raw, err := block.OpenRaw(vm.image.RootFS, true)
	if err != nil {
		return []virtio.Device{scratch}, err
	}
	root, err := vm.cfg.newDisk(raw, "root")
	if err != nil {
		return []virtio.Device{scratch}, err
	}
	devices = []virtio.Device{root, scratch}
	vm.vsock = vsock.New(vsock.Config{GuestCID: guestCID})
	vm.balloon = balloon.New(balloon.Config{})
	devices = append(devices, vm.vsock, rng.New(), console.New(console.Config{Log: vm.console}), vm.balloon)
	network, err := vm.openNetwork(vm.cfg.Network, saved)
	if err != nil {
		return devices, err
	}
	devices = append(devices, network)
	attach, err := openAttachments(vm.cfg, saved)
	if err != nil {
		return devices, err
	}
	devices = append(devices, attach.devices[:]...)
	vm.own = agent.Mount{FileSystems: attach.list, Network: vm.guestNetwork()}
	for _, d := range devices {
		if disk, ok := d.(*block.Device); ok {
			vm.disks = append(vm.disks, disk)
		}
	}
	return devices, nil
}

// closeDevices closes the devices that there are; places may be empty.
func closeDevices(devices []virtio.Device) {
	for _, d := range devices {
		if d != nil {
			d.Close()
		}
	}
}

// openCgroup returns what puts threads into the VM's cgroup, nil if there is none.
func (c Config) openCgroup() (*os.File, error) {
	if c.Cgroup == "" {
		return nil, nil
	}
	f, err := os.OpenFile(filepath.Join(c.Cgroup, "cgroup.threads"), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Error{Code: ErrNotFound, Op: "use cgroup", Object: c.Cgroup, Err: errors.New("it is no directory of a cgroup (version 2)")}
	}
	if err != nil {
		return nil, &Error{Code: CodeOf(err), Op: "use cgroup", Object: c.Cgroup, Err: err}
	}
	return f, nil
}

// newDisk takes over the backend.
func (c Config) newDisk(backend block.Backend, serial string) (*block.Device, error) {
	disk, err := block.New(block.Config{
		Backend: backend, Serial: serial, BytesPerSecond: c.DiskBytesPerSecond, RequestsPerSecond: c.DiskRequestsPerSecond,
	})
	if err != nil {
		backend.Close()
	}
	return disk, err
}
