package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/trace"
	"github.com/supermachine/supermachine/core/virtio/block"
	"github.com/supermachine/supermachine/snapshot"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// SnapshotOptions say how a running VM is saved.
type SnapshotOptions struct {
	Name string // for people; may be empty
	// Base is a snapshot that the VM goes back to, directly or over forks: only what differs from it is stored. Restoring needs both, and the
	// base cannot be removed before. Nil stores everything. A chain has at most 8 snapshots; then the result is a whole one.
	Base *Snapshot
	// Lean spends some tenths of a second on making the snapshot small: the guest drops its caches and gives up its free memory.
	Lean bool
}

// Snapshot saves the running VM in the store. The VM runs on; its workload stands still for as long as it takes to copy what was written
// to memory, not while the snapshot goes to disk. Programs that were started by Exec run on in the copies too, but with their streams
// closed: their output is dropped. The workload's output can be followed there.
func (vm *VM) Snapshot(ctx context.Context, store *Snapshots, o SnapshotOptions) (*Snapshot, error) {
	snap, err := vm.save(ctx, store, o)
	return snap, vm.wrapEnded("save VM", err)
}

func (vm *VM) save(ctx context.Context, store *Snapshots, o SnapshotOptions) (*Snapshot, error) {
	if o.Base != nil && vm.origin != o.Base {
		return nil, &Error{
			Code: ErrInvalidArgument, Op: "save the differences to", Object: o.Base.info.ID,
			Err: errors.New("the VM was not started from this snapshot"),
		}
	}
	c := capture{category: trace.Snapshot, lean: o.Lean}
	if vm.origin != nil {
		c.keep = vm.origin.disk
	}
	cp, err := vm.checkpoint(ctx, c)
	if err != nil {
		return nil, err
	}
	defer cp.Close()
	info := SnapshotInfo{ID: newID(), Name: o.Name, SnapshotMeta: vm.meta}
	base := o.Base
	if base != nil && base.depth >= snapshot.MaxChain {
		base = nil
	}
	if err := store.write(ctx, cp, info, base); err != nil {
		return nil, err
	}
	counters.snapshots.Add(1)
	return store.load(info.ID, VerifyOnce)
}

// write puts a checkpoint into the store.
func (s *Snapshots) write(ctx context.Context, cp *checkpoint, info SnapshotInfo, base *Snapshot) error {
	baseID := ""
	if base != nil {
		baseID = base.info.ID
	}
	w, err := s.store.CreateDiff(ctx, info.ID, baseID)
	if err != nil {
		return err
	}
	defer w.Abort()
	c := snapshot.Contents{
		Name: info.Name, Fingerprint: info.Fingerprint, Created: time.Now(), CPU: cpuOf(cp.state.Machine),
		DiskSize: int64(cp.cfg.ScratchMiB) << 20, ClusterSize: block.ClusterSize,
	}
	for _, r := range machine.RAMLayout(cp.cfg.MemoryMiB) {
		c.Regions = append(c.Regions, snapshot.Region{Addr: r.Addr, Size: r.Size})
	}
	if c.MemoryExtents, err = writeMemory(w, cp.memory, base); err != nil {
		return fmt.Errorf("write memory: %w", err)
	}
	if c.DiskExtents, err = writeDisk(w, cp.disk, base); err != nil {
		return fmt.Errorf("write disk: %w", err)
	}
	if c.State, err = msgpack.Marshal(cp.state); err != nil {
		return err
	}
	meta := info.SnapshotMeta
	meta.Image, meta.Digest, meta.RootFS = cp.image.Ref, cp.image.Digest, cp.image.RootFSKey
	meta.MemoryMiB, meta.VCPUs, meta.ScratchMiB = cp.cfg.MemoryMiB, cp.cfg.VCPUs, cp.cfg.ScratchMiB
	meta.Attached = nil
	for _, v := range cp.cfg.Volumes {
		meta.Attached = append(meta.Attached, v.Path)
	}
	for _, m := range cp.cfg.Mounts {
		meta.Attached = append(meta.Attached, m.Path)
	}
	if c.Meta, err = json.Marshal(meta); err != nil {
		return err
	}
	return w.Commit(ctx, c)
}

// writeMemory writes the pages that are not zero, or not as in base.
func writeMemory(w *snapshot.Writer, image *memory.Image, base *Snapshot) ([]memory.Extent, error) {
	mem, err := memory.Reserve(image.Sizes())
	if err != nil {
		return nil, err
	}
	defer memory.Release(mem)
	if err := image.Map(mem); err != nil {
		return nil, err
	}
	var extents []memory.Extent
	if base == nil {
		extents, err = (*memory.Image)(nil).Differing(mem, image.Content())
	} else {
		extents, err = base.memory.Differing(mem, image.Captured())
	}
	if err != nil {
		return nil, err
	}
	return extents, memory.WriteLayer(w.MemoryFile(), mem, extents)
}

// writeDisk writes the clusters that were written since base, or with no base those that are not holes.
func writeDisk(w *snapshot.Writer, top *layer, base *Snapshot) ([]snapshot.Extent, error) {
	var until *layer
	if base != nil {
		until = base.disk
	}
	extents, reached, err := top.written(until)
	if err != nil {
		return nil, err
	}
	if !reached {
		return nil, errors.New("the disk does not go back to the base's")
	}
	file := w.DiskFile()
	if err := file.Truncate(top.Size()); err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<20)
	var v block.Vec
	var out []snapshot.Extent
	for _, e := range extents {
		off, end := e.First*block.ClusterSize, (e.First+e.Count)*block.ClusterSize
		out = append(out, snapshot.Extent{Off: off, Len: end - off})
		for end = min(end, top.Size()); off < end; {
			b := buf[:min(int64(len(buf)), end-off)]
			v.Reset(b)
			if err := top.ReadV(&v, off, int64(len(b))); err != nil {
				return nil, err
			}
			if _, err := file.WriteAt(b, off); err != nil {
				return nil, err
			}
			off += int64(len(b))
		}
	}
	return out, nil
}

// union returns the extents of all lists, ascending and not touching.
func union(lists ...[]block.Extent) []block.Extent {
	all := slices.Concat(lists...)
	slices.SortFunc(all, func(a, b block.Extent) int { return int(a.First - b.First) })
	var out []block.Extent
	for _, e := range all {
		if n := len(out); n > 0 && e.First <= out[n-1].First+out[n-1].Count {
			out[n-1].Count = max(out[n-1].Count, e.First+e.Count-out[n-1].First)
			continue
		}
		out = append(out, e)
	}
	return out
}

func cpuOf(st *machine.State) snapshot.CPU {
	vendor, family, model, stepping := st.VCPUs[0].Processor()
	return snapshot.CPU{Vendor: strings.TrimRight(vendor, "\x00"), Family: family, Model: model, Stepping: stepping}
}
