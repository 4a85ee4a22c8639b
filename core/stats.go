package core

import (
	"context"
	"time"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/virtio/block"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// Stats is what a VM uses and has used since it was started here.
type Stats struct {
	Time         time.Duration // since the guest first answered
	CPU          time.Duration // of the host's CPUs, by the guest's
	PageFaults   uint64        // as PageFaults; 0 where the host does not count them
	PrivateBytes int64         // as PrivateBytes
	Disk         DiskStats     // of all disks: the image, the writable layer and the volumes
	Network      NetworkStats  // zeros without one
	Guest        GuestStats    // what the guest says of itself
}

// DiskStats are requests to disks.
type DiskStats = block.Stats

// GuestStats is what a guest says of itself: its claims.
type GuestStats struct {
	Memory MemoryStats
	CPU    time.Duration // that the workload and all other programs have used
	Execs  int           // programs running
	Uptime time.Duration // since the kernel started, also before the snapshot
}

// Stats measures the VM. A guest that is paused, or does not answer until ctx is done, has zeros for Guest, and no error comes of it.
func (vm *VM) Stats(ctx context.Context) (Stats, error) {
	st := Stats{Time: time.Since(vm.started), CPU: vm.machine.CPUTime()}
	var err error
	if st.PrivateBytes, err = vm.PrivateBytes(); err != nil {
		return Stats{}, err
	}
	st.PageFaults, _ = vm.machine.PageFaults()
	for _, d := range vm.disks {
		one := d.Stats()
		st.Disk.Reads += one.Reads
		st.Disk.Writes += one.Writes
		st.Disk.Flushes += one.Flushes
		st.Disk.ReadBytes += one.ReadBytes
		st.Disk.WrittenBytes += one.WrittenBytes
	}
	if vm.network != nil {
		st.Network = vm.network.Stats()
	}
	if vm.isPaused() || vm.Asleep() {
		return st, nil
	}
	if info, err := vm.agent.Info(ctx); err == nil {
		st.Guest.CPU, st.Guest.Execs, st.Guest.Uptime = info.CPU, info.Execs, info.Uptime
		st.Guest.Memory, _ = vm.MemoryStats(ctx)
	}
	return st, nil
}

// PrivateBytes returns how much of the VM's memory the host holds for this VM alone: what it has written since it was started from a snapshot,
// or all it has touched since its boot. The rest is shared with the snapshot's other VMs.
func (vm *VM) PrivateBytes() (n int64, err error) {
	running := vm.machine.WithMemory(func(m *hypervisor.Memory) { n, err = memory.PrivateBytes(regionBytes(m)) })
	if !running {
		err = machine.ErrEnded
	}
	return n, vm.wrapEnded("measure the memory of VM", err)
}

// PageFaults returns how many accesses of the guest to its memory the host has had to resolve since the VM was started: what is not there when
// a snapshot is restored comes that way, unless the host has mapped it ahead. Linux counts them from 5.14 on; else the error is an ErrIO.
func (vm *VM) PageFaults() (n uint64, err error) {
	n, err = vm.machine.PageFaults()
	return n, vm.wrapEnded("count the page faults of VM", err)
}
