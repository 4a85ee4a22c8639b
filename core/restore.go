package core

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/trace"
	"github.com/supermachine/supermachine/core/virtio/console"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// StartOptions say what is a restored VM's own; everything else is the snapshot's. The zero value is a VM with the defaults.
type StartOptions struct {
	Name     string        // the VM's name and host name, as in Config; default: its ID
	StateDir string        // directory for scratch files; default: HomeDir
	Timeout  time.Duration // how long the guest may take until its agent answers; default 30 s

	Lifetime    time.Duration // as in Config
	IdleTimeout time.Duration // as in Config

	CPULimit              float64 // as in Config
	Cgroup                string  // as in Config
	DiskBytesPerSecond    int64   // as in Config
	DiskRequestsPerSecond int64   // as in Config

	// Network is the VM's own, as in Config. Connections of the VM that was saved are reset.
	Network *Network

	// Volumes and Mounts are attached before the workload goes on, MaxMounts together. What was attached to the VM that was saved is gone: its
	// places are empty unless something is given for them, and files that the workload had open there fail.
	Volumes []Volume
	Mounts  []Mount
}

const defaultStartTimeout = 30 * time.Second // a busy host that starts hundreds at once may need seconds

// start makes a VM that goes on from the checkpoint, as a guest of its own.
func (c *checkpoint) start(ctx context.Context, o StartOptions, set *memory.WorkingSet) (*VM, error) {
	vm, err := c.prepare(o)
	if err != nil {
		return nil, err
	}
	if err := vm.resume(ctx, c, set); err != nil {
		vm.Close()
		return nil, err
	}
	vm.watch()
	return vm, nil
}

// prepare makes a VM that has everything but its state: what can be done before it is known that somebody wants it.
func (c *checkpoint) prepare(o StartOptions) (_ *VM, err error) {
	vm := &VM{id: newID(), image: c.image, console: console.NewRing(0), forwards: map[*Forward]struct{}{}}
	vm.op = trace.Begin(trace.Restore, vm.id)
	cfg := c.cfg
	cfg.Name, cfg.StateDir, cfg.BootTimeout = o.Name, o.StateDir, o.Timeout
	cfg.CPULimit, cfg.Cgroup = o.CPULimit, o.Cgroup
	cfg.DiskBytesPerSecond, cfg.DiskRequestsPerSecond = o.DiskBytesPerSecond, o.DiskRequestsPerSecond
	cfg.Lifetime, cfg.IdleTimeout, cfg.Network, cfg.Volumes, cfg.Mounts = o.Lifetime, o.IdleTimeout, o.Network, o.Volumes, o.Mounts
	setDefault(&cfg.BootTimeout, defaultStartTimeout)
	if vm.cfg, err = cfg.withDefaults(vm.id); err != nil {
		return nil, err
	}
	hv, err := openHypervisor()
	if err != nil {
		return nil, err
	}
	if err := c.memory.Retain(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			vm.closeNetwork()
			c.memory.Close()
		}
	}()
	vm.memory = c.memory
	mem, err := memory.Reserve(regionSizes(cfg.MemoryMiB))
	if err != nil {
		return nil, err
	}
	if err = c.memory.Map(mem); err != nil {
		return nil, errors.Join(err, memory.Release(mem))
	}
	vm.op.Step("map memory")
	devices, err := vm.devices(c.disk.hold(), c.state.Machine.Devices)
	if err != nil {
		return nil, errors.Join(err, memory.Release(mem))
	}
	vm.op.Step("make devices")
	threads, err := cfg.openCgroup()
	if err != nil {
		closeDevices(devices)
		return nil, errors.Join(err, memory.Release(mem))
	}
	vm.machine, err = machine.New(machine.Config{
		Threads: threads, Hypervisor: hv, MemoryMiB: cfg.MemoryMiB, VCPUs: cfg.VCPUs, CPULimit: cfg.CPULimit, Devices: devices, Serial: vm.console, Memory: guestMemory(cfg.MemoryMiB, mem),
	})
	if err != nil {
		return nil, err
	}
	vm.op.Step("make machine")
	return vm, nil
}

// resume puts the state in and lets the guest run: first its agent alone, which gives it its identity, then the workload.
func (vm *VM) resume(ctx context.Context, c *checkpoint, set *memory.WorkingSet) error {
	if err := vm.machine.Restore(c.state.Machine); err != nil {
		return err
	}
	vm.op.Step("restore state")
	if set != nil {
		vm.prefetch(*set)
	}
	return vm.run(ctx, c)
}

// run lets a guest go on whose state was put in.
func (vm *VM) run(ctx context.Context, c *checkpoint) error {
	conn, ok := vm.vsock.Restored(c.state.ControlHost, c.state.ControlGuest)
	if !ok {
		return &Error{Code: ErrCorrupt, Op: "find the agent's connection in the saved state"}
	}
	vm.agent = agent.Resume(conn)
	vm.agent.TrackUse(vm.begin)
	if err := vm.machine.Resume(); err != nil {
		return err
	}
	vm.op.Step("run guest")
	wait, cancel := vm.whileRunning(ctx)
	defer cancel()
	id := agent.Identity{ID: newID() + newID(), Entropy: make([]byte, agent.EntropySize), Time: time.Now(), Hostname: vm.cfg.Name}
	rand.Read(id.Entropy)
	if err := vm.agent.Thaw(wait, &id, vm.own); err != nil {
		return vm.startError(ctx, err)
	}
	vm.restoreID = id.ID
	vm.started = time.Now()
	vm.op.Step("identity and thaw")
	return nil
}

// startError explains why a restored guest's agent did not answer.
func (vm *VM) startError(ctx context.Context, err error) error {
	select {
	case <-vm.Done():
		return vm.bootError("the guest ended while it was restored: " + vm.End().String())
	default:
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return vm.bootError(fmt.Sprintf("the restored guest's agent did not answer within %v", vm.cfg.BootTimeout))
	}
	return err
}

// prefetch brings the pages that VMs of this snapshot use first into memory while the guest starts. It only saves time.
func (vm *VM) prefetch(set memory.WorkingSet) {
	go vm.machine.WithMemory(func(m *hypervisor.Memory) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			select {
			case <-vm.Done():
				cancel()
			case <-ctx.Done():
			}
		}()
		memory.Prefetch(ctx, regionBytes(m), set)
	})
}

// RestoreID returns the random identifier that the guest was given when it was restored; empty for a VM that was booted. The guest finds it
// in /run/supermachine/restore-id.
func (vm *VM) RestoreID() string { return vm.restoreID }

// rewind brings the VM back to the checkpoint that it was started from, in place and with a new identity. Nothing of what happened since is
// left: memory, disk, connections, forwards and the console's log are as in a VM that has just been started.
func (vm *VM) rewind(ctx context.Context, c *checkpoint) error {
	vm.saving.Lock()
	defer vm.saving.Unlock()
	if vm.memory != c.memory || vm.scratch.below != c.disk {
		return errors.New("the VM's memory or disk was shared with forks or snapshots")
	}
	vm.closeForwards()
	vm.wake()
	if err := vm.machine.Pause(); err != nil {
		return err
	}
	vm.setPaused(false)
	old := vm.agent
	err := machine.ErrEnded
	vm.machine.WithMemory(func(m *hypervisor.Memory) {
		if err = c.memory.Reset(regionBytes(m)); err != nil {
			return
		}
		if err = vm.scratch.Clear(); err == nil {
			err = vm.machine.Rewind(c.state.Machine)
		}
	})
	if err != nil {
		return err
	}
	old.Close() // its connection went with the old state
	vm.console.Clear()
	return vm.run(ctx, c)
}
