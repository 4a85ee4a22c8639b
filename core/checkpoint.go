package core

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/trace"
	"github.com/supermachine/supermachine/core/virtio/vsock"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// checkpoint is a VM at one instant, with its workload frozen: what any number of VMs can go on from. It is immutable.
type checkpoint struct {
	image  *Image
	cfg    Config // of the VM, without what is one VM's own
	state  *savedState
	memory *memory.Image
	disk   *layer
}

// savedState is what a checkpoint has besides memory and disk: plain data, encoded with msgpack in a snapshot.
type savedState struct {
	Protocol int // wire.Version of the agent
	Machine  *machine.State
	// Control is the connection to the agent over which the workload was frozen: it goes on in every copy.
	ControlHost, ControlGuest uint32
}

// Close releases the memory and the disk. VMs that go on from them are not concerned.
func (c *checkpoint) Close() error { return errors.Join(c.memory.Close(), c.disk.Close()) }

// frozen is a VM whose workload does not run.
type frozen struct {
	control *agent.Client // made for this freeze
	host    uint32        // the ports of its connection
	guest   uint32
}

// freeze stops the workload. The connection that does it has made no other request, so that it can go on in copies.
func (vm *VM) freeze(ctx context.Context, lean bool) (*frozen, error) {
	conn, err := vm.vsock.Dial(ctx, agent.ControlPort)
	if err != nil {
		return nil, err
	}
	local, remote := conn.LocalAddr().(vsock.Addr), conn.RemoteAddr().(vsock.Addr)
	f := &frozen{host: local.Port, guest: remote.Port}
	if f.control, err = agent.NewClient(conn); err != nil {
		return nil, err
	}
	if err := freezeAfter(ctx, f.control, lean); err != nil {
		f.control.Close() // ends the freeze, however far it got
		return nil, err
	}
	return f, nil
}

// thaw lets the workload go on in the VM itself.
func (f *frozen) thaw(ctx context.Context) error {
	defer f.control.Close()
	return f.control.Thaw(ctx, nil, agent.Mount{})
}

// capture is how a checkpoint is to be made.
type capture struct {
	category trace.Category
	// lean spends time on making the memory small: for a checkpoint that is kept.
	lean bool
	// share moves the VM itself onto the checkpoint's memory if it has written much, so that the next checkpoint need not copy that again.
	share bool
	// end leaves the VM paused, to be closed.
	end bool
	// keep is the disk layer below which nothing may be merged, as a saved snapshot holds it. It may be nil.
	keep *layer
}

// checkpoint freezes the workload, stops the machine for as long as it takes to copy what differs from the checkpoint or snapshot that it
// came from, and lets it go on.
func (vm *VM) checkpoint(ctx context.Context, c capture) (cp *checkpoint, err error) {
	vm.saving.Lock()
	defer vm.saving.Unlock()
	if vm.isPaused() {
		return nil, &Error{Code: ErrInvalidArgument, Op: "save VM", Object: vm.id, Err: errors.New("it is paused; resume it first")}
	}
	defer vm.begin()()
	op := trace.Begin(c.category, vm.id)
	f, err := vm.freeze(ctx, c.lean)
	if err != nil {
		return nil, err
	}
	op.Step("freeze workload")
	if c.lean {
		if err := vm.squeeze(ctx); err != nil {
			return nil, errors.Join(err, f.thaw(ctx))
		}
		op.Step("give up free memory")
	}
	if err := vm.machine.Pause(); err != nil {
		f.control.Close()
		return nil, err
	}
	op.Step("pause machine")
	// The VM may be ended at any moment, by others or by itself; what is copied has to stay.
	if !vm.machine.WithMemory(func(*hypervisor.Memory) { cp, err = vm.copyState(op, f, c) }) {
		err = machine.ErrEnded
	}
	if c.end && err == nil {
		return cp, nil
	}
	if rerr := vm.machine.Resume(); rerr == nil {
		if rerr = f.thaw(ctx); rerr != nil && err == nil {
			err = rerr
		}
	} else if err == nil {
		err = rerr
	}
	op.Step("resume machine")
	if err != nil && cp != nil {
		cp.Close()
		cp = nil
	}
	return cp, err
}

// copyState makes the checkpoint of a paused machine.
func (vm *VM) copyState(op *trace.Operation, f *frozen, c capture) (*checkpoint, error) {
	state, err := vm.machine.Save()
	if err != nil {
		return nil, err
	}
	unusedSlots(state)
	op.Step("save state")
	mem := regionBytes(vm.machine.Memory())
	image, err := vm.memory.Capture(mem)
	if err != nil {
		return nil, err
	}
	op.Step("copy memory")
	if c.share && memory.Bytes(image.Captured())-vm.capturedBytes() > shareAbove {
		if err := vm.rebase(image, mem); err != nil {
			image.Close()
			return nil, err
		}
		op.Step("share memory")
	}
	disk, err := vm.scratch.split(vm.cfg.StateDir, c.keep)
	if err != nil {
		image.Close()
		return nil, err
	}
	op.Step("split disk")
	return &checkpoint{
		image: vm.image, cfg: vm.cfg, memory: image, disk: disk,
		state: &savedState{Protocol: wire.Version, Machine: state, ControlHost: f.host, ControlGuest: f.guest},
	}, nil
}

// shareAbove is how many bytes are worth a longer stop of the VM now to spare later ones the copying.
const shareAbove = 32 << 20

// capturedBytes returns how much of the image below the VM's memory is in files in memory.
func (vm *VM) capturedBytes() int64 {
	if vm.memory == nil {
		return 0
	}
	return memory.Bytes(vm.memory.Captured())
}

// rebase maps an image with the same content into the VM's memory.
func (vm *VM) rebase(image *memory.Image, mem [][]byte) error {
	if err := image.Retain(); err != nil {
		return err
	}
	if err := image.Map(mem); err != nil {
		image.Close()
		vm.machine.Stop() // its memory is gone
		return err
	}
	if vm.memory != nil {
		vm.memory.Close()
	}
	vm.memory = image
	return nil
}

func regionBytes(m *hypervisor.Memory) [][]byte {
	var out [][]byte
	for _, r := range m.Regions() {
		out = append(out, r.Bytes)
	}
	return out
}

// regionSizes returns the sizes of a machine's memory regions.
func regionSizes(mib int) []int64 {
	var out []int64
	for _, r := range machine.RAMLayout(mib) {
		out = append(out, r.Size)
	}
	return out
}

// guestMemory puts mappings at the addresses of a machine of mib MiB.
func guestMemory(mib int, mem [][]byte) *hypervisor.Memory {
	var regions []hypervisor.Region
	for i, r := range machine.RAMLayout(mib) {
		regions = append(regions, hypervisor.Region{Addr: r.Addr, Bytes: mem[i]})
	}
	return hypervisor.NewMemory(regions...)
}

// check returns what of a saved state cannot be: it may come from a hostile file. The machine and its devices check their parts.
func (s *savedState) check(cfg Config) error {
	m := s.Machine
	if m == nil || m.VM == nil || len(m.VCPUs) != cfg.VCPUs {
		return fmt.Errorf("the state is not of a machine with %d vCPUs", cfg.VCPUs)
	}
	for i, v := range m.VCPUs {
		if v == nil {
			return fmt.Errorf("vCPU %d has no state", i)
		}
	}
	return nil
}

// endOfFreeze is how long the guest may take to see that a freeze was given up.
const endOfFreeze = 5 * time.Second

// freezeAfter freezes the workload. One freeze is made at a time, so another that the guest still knows of was given up, and ends as soon as the
// guest sees that its connection has.
func freezeAfter(ctx context.Context, c *agent.Client, lean bool) error {
	for end := time.Now().Add(endOfFreeze); ; {
		err := c.Freeze(ctx, lean)
		var refused *agent.Error
		if !errors.As(err, &refused) || refused.Message != wire.FrozenAlready || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
