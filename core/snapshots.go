package core

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/core/virtio/block"
	"github.com/supermachine/supermachine/snapshot"
)

// Snapshots is a store of snapshots. Any number of processes may use the same directory at once.
type Snapshots struct {
	images *Images
	store  *snapshot.Store
}

// OpenSnapshots opens the store in dir, or the user's own in HomeDir if dir is empty. The snapshots' images are looked for in images; nil
// means the user's own store. The directory is made if it is missing.
func OpenSnapshots(dir string, images *Images) (*Snapshots, error) {
	var err error
	if images == nil {
		if images, err = OpenImages(""); err != nil {
			return nil, err
		}
	}
	if dir == "" {
		home, err := HomeDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(home, "snapshots")
	}
	store, err := snapshot.Open(dir)
	if err != nil {
		return nil, wrap("open snapshot store", dir, err)
	}
	return &Snapshots{images, store}, nil
}

// Verify says when the checksums of a snapshot's memory and disk are compared, which reads all of them.
type Verify = snapshot.Verify

// The values of Verify.
const (
	VerifyOnce   = snapshot.VerifyOnce   // the first time that anyone loads these files; a file that has changed since is another
	VerifyAlways = snapshot.VerifyAlways // at each Load
	VerifyNever  = snapshot.VerifyNever  // not at all
)

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	ID          string    `json:"id"`
	Name        string    `json:"name,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"` // of what it was baked from; empty for one of a running VM
	Base        string    `json:"base,omitempty"`        // ID of the snapshot that this one holds the differences to
	Created     time.Time `json:"created"`
	LastUsed    time.Time `json:"last_used"`
	Bytes       int64     `json:"bytes"` // on disk
	SnapshotMeta
	// Problem says why the snapshot cannot be used, as far as that can be told without reading all of it; else empty.
	Problem string `json:"problem,omitempty"`
}

// SnapshotMeta is what a snapshot says of the VM that goes on from it.
type SnapshotMeta struct {
	Image      string   `json:"image"`             // the reference it was pulled by
	Digest     string   `json:"digest"`            // of the image
	RootFS     string   `json:"rootfs"`            // key of the image's root file system
	MemoryMiB  int      `json:"memory_mib"`        //
	VCPUs      int      `json:"vcpus"`             //
	ScratchMiB int      `json:"scratch_mib"`       //
	Workload   bool     `json:"workload"`          // the image's command, or another, runs in it
	Command    []string `json:"command,omitempty"` // of the workload
	Env        []string `json:"env,omitempty"`     // of the workload, besides the image's
	Dir        string   `json:"dir,omitempty"`     // of the workload, if it is not the image's
	User       string   `json:"user,omitempty"`    // of the workload, if it is not the image's
	GuestPort  uint16   `json:"guest_port,omitempty"`
	Attached   []string `json:"attached,omitempty"` // where in the guest volumes and mounts were when it was saved; nothing of them is kept
	Guest      string   `json:"guest,omitempty"`    // GuestDigest of what was booted; empty for a running VM's that was not started from a baked one
}

// Snapshot is a VM at one instant, loaded and ready to be started any number of times. Its methods may be called from any goroutine. It must
// be closed; VMs that were started from it go on.
type Snapshot struct {
	info  SnapshotInfo
	store *Snapshots
	depth int // of the chain of bases, 1 for a whole snapshot
	*checkpoint
	workingSet

	poolMu sync.Mutex
	own    *Pool // of Acquire
	closed bool
}

// Info describes the snapshot.
func (s *Snapshot) Info() SnapshotInfo { return s.info }

// Image returns the image that its VMs run.
func (s *Snapshot) Image() *Image { return s.image }

// Start makes a VM that goes on from the snapshot, with an identity of its own: entropy, clock and host name are given to the guest before
// anything of the workload runs. It returns when the workload runs. When ctx is done before, it gives up and releases everything.
func (s *Snapshot) Start(ctx context.Context, o StartOptions) (*VM, error) {
	vm, err := s.startGated(ctx, o, s.set())
	if err != nil {
		return nil, wrap("start VM from snapshot", s.info.ID, err)
	}
	vm.noteStart(&counters.restored)
	vm.origin, vm.meta = s, s.info.SnapshotMeta
	s.observe(s.store.store, s.info.ID, vm)
	return vm, nil
}

// Load opens a snapshot by its ID, an unambiguous beginning of it, or its name (of several the newest). Errors: ErrNotFound, ErrCorrupt (which says
// which file), ErrIncompatible (another version, architecture or CPU), ErrImageNotFound.
func (s *Snapshots) Load(ctx context.Context, name string, verify Verify) (*Snapshot, error) {
	id, err := s.find(name)
	if err != nil {
		return nil, err
	}
	return s.load(id, verify)
}

func (s *Snapshots) load(id string, verify Verify) (*Snapshot, error) {
	snap, err := s.open(id, verify)
	if err != nil {
		return nil, wrap("load snapshot", id, err)
	}
	return snap, nil
}

func (s *Snapshots) open(id string, verify Verify) (*Snapshot, error) {
	loaded, err := s.store.Load(id, snapshot.LoadOptions{Verify: verify})
	if err != nil {
		return nil, err
	}
	snap := &Snapshot{store: s, checkpoint: &checkpoint{}}
	m := loaded.Manifest
	snap.depth = len(loaded.Memory)
	snap.info = SnapshotInfo{
		ID: m.ID, Name: m.Name, Fingerprint: m.Fingerprint, Base: m.Base, Created: m.Created, LastUsed: time.Now(),
	}
	snap.workingSet.decode(loaded.WorkingSet)
	if err := snap.fill(loaded, s.images); err != nil {
		return nil, errors.Join(err, loaded.Close())
	}
	return snap, nil
}

// fill makes the checkpoint of a loaded snapshot, whose files it takes over unless it fails.
func (s *Snapshot) fill(loaded *snapshot.Snapshot, images *Images) error {
	m := loaded.Manifest
	if err := json.Unmarshal(m.Meta, &s.info.SnapshotMeta); err != nil {
		return &Error{Code: ErrCorrupt, Op: "read its description", Err: err}
	}
	meta := s.info.SnapshotMeta
	s.cfg = Config{MemoryMiB: meta.MemoryMiB, VCPUs: meta.VCPUs, ScratchMiB: meta.ScratchMiB}
	if err := s.cfg.Check(); err != nil {
		return &Error{Code: ErrCorrupt, Op: "read its description", Err: err}
	}
	s.state = &savedState{}
	if err := msgpack.Unmarshal(loaded.State, s.state); err != nil {
		return &Error{Code: ErrCorrupt, Op: "read its state", Err: err}
	}
	if s.state.Protocol != wire.Version {
		return &Error{Code: ErrIncompatible, Op: "speak to its agent", Err: fmt.Errorf(
			"it speaks version %d of the protocol, and this program version %d: bake again", s.state.Protocol, wire.Version)}
	}
	if err := s.state.check(s.cfg); err != nil {
		return &Error{Code: ErrCorrupt, Op: "read its state", Err: err}
	}
	hv, err := openHypervisor()
	if err != nil {
		return err
	}
	for _, v := range s.state.Machine.VCPUs {
		if err := hv.Compatible(v); err != nil {
			return err
		}
	}
	if s.image, err = images.store.Get(meta.Digest, ""); err != nil {
		return err
	}
	if s.image.RootFSKey != meta.RootFS {
		return &Error{Code: ErrCorrupt, Op: "find its root file system", Err: fmt.Errorf("image %s has another one", meta.Digest)}
	}
	sizes := regionSizes(meta.MemoryMiB)
	if len(sizes) != len(m.Memory.Regions) {
		return &Error{Code: ErrCorrupt, Op: "read its description", Err: errors.New("the memory's regions do not fit its size")}
	}
	for i, r := range m.Memory.Regions {
		if r.Size != sizes[i] {
			return &Error{Code: ErrCorrupt, Op: "read its description", Err: errors.New("the memory's regions do not fit its size")}
		}
	}
	if s.memory, err = loaded.Image(); err != nil {
		return err
	}
	if s.disk, err = diskLayers(loaded.Disk, m.Disk.Size, int64(meta.ScratchMiB)<<20); err != nil {
		return errors.Join(err, s.memory.Close())
	}
	return nil
}

// diskLayers makes the scratch disk that a snapshot's files hold. It takes over the files unless it fails.
func diskLayers(files []snapshot.Layer, size, want int64) (*layer, error) {
	if size != want || len(files) == 0 {
		return nil, &Error{Code: ErrCorrupt, Op: "read its disk", Err: fmt.Errorf("it has %d bytes instead of %d", size, want)}
	}
	var top *layer
	for _, f := range files {
		st := block.OverlayState{Size: size, ClusterSize: block.ClusterSize}
		for _, e := range f.Extents {
			st.Written = append(st.Written, block.Extent{First: e.Off / block.ClusterSize, Count: e.Len / block.ClusterSize})
		}
		var base block.Backend
		if top != nil {
			base = top
		}
		o, err := block.RestoreOverlay(base, st, f.File)
		if err != nil {
			return nil, &Error{Code: ErrCorrupt, Op: "read its disk", Err: err}
		}
		top = newLayer(o, top)
	}
	return top, nil
}

// List returns the snapshots in the store, newest first. One that is broken is listed with its Problem.
func (s *Snapshots) List() ([]SnapshotInfo, error) {
	all, err := s.store.List()
	if err != nil {
		return nil, wrap("list snapshots", "", err)
	}
	out := make([]SnapshotInfo, 0, len(all))
	for _, i := range all {
		out = append(out, snapshotInfo(i))
	}
	slices.SortStableFunc(out, func(a, b SnapshotInfo) int { return b.Created.Compare(a.Created) })
	return out, nil
}

func snapshotInfo(i snapshot.Info) SnapshotInfo {
	info := SnapshotInfo{
		ID: i.ID, Name: i.Name, Fingerprint: i.Fingerprint, Base: i.Base, Created: i.Created, LastUsed: i.LastUsed, Bytes: i.Bytes,
	}
	var err error
	if len(i.Meta) > 0 { // a broken one may still say what it is
		err = json.Unmarshal(i.Meta, &info.SnapshotMeta)
	}
	if i.Err != nil {
		err = i.Err
	}
	if err != nil {
		info.Problem = err.Error()
	}
	return info
}

// Inspect describes one snapshot, found as by Load, without reading its data.
func (s *Snapshots) Inspect(name string) (SnapshotInfo, error) {
	id, err := s.find(name)
	if err != nil {
		return SnapshotInfo{}, err
	}
	info, _, err := s.store.Inspect(id)
	if err != nil && info.ID == "" {
		return SnapshotInfo{}, wrap("inspect snapshot", name, err)
	}
	info.Err = err
	return snapshotInfo(info), nil
}

// Remove deletes a snapshot, found as by Load. VMs that were started from it go on. ErrInUse says that others hold only the differences to it.
func (s *Snapshots) Remove(ctx context.Context, name string) error {
	id, err := s.find(name)
	if err != nil {
		return err
	}
	return wrap("remove snapshot", id, s.store.Remove(ctx, id))
}

// Flatten makes a snapshot that holds everything itself from one that holds the differences to others, and returns its ID.
func (s *Snapshots) Flatten(ctx context.Context, name string) (string, error) {
	id, err := s.find(name)
	if err != nil {
		return "", err
	}
	flat := newID()
	return flat, wrap("flatten snapshot", id, s.store.Flatten(ctx, id, flat))
}

// PruneOptions says which snapshots may go; what no field gives up stays.
type PruneOptions struct {
	OlderThan    time.Duration // not used for so long; 0: none
	MaxBytes     int64         // the least recently used, until the rest takes no more on disk; 0: none
	Unreferenced bool          // those whose image is no longer in the store, and those that cannot be used
	All          bool
}

// Prune deletes snapshots and returns them. It does not disturb who has one loaded, and it leaves a base until what needs it is gone.
func (s *Snapshots) Prune(ctx context.Context, o PruneOptions) ([]SnapshotInfo, error) {
	var removed []snapshot.Info
	add := func(more []snapshot.Info, err error) error {
		removed = append(removed, more...)
		return err
	}
	err := func() error {
		if o.All {
			return add(s.store.Prune(ctx, snapshot.PruneOptions{OlderThan: 1}))
		}
		if o.Unreferenced {
			keep := func(i snapshot.Info) bool { return s.usable(snapshotInfo(i)) }
			if err := add(s.store.Prune(ctx, snapshot.PruneOptions{OlderThan: 1, Keep: keep})); err != nil {
				return err
			}
		}
		return add(s.store.Prune(ctx, snapshot.PruneOptions{OlderThan: o.OlderThan, MaxBytes: o.MaxBytes}))
	}()
	out := make([]SnapshotInfo, 0, len(removed))
	for _, i := range removed {
		out = append(out, snapshotInfo(i))
	}
	return out, wrap("prune snapshots", "", err)
}

// usable reports whether VMs could be started from a snapshot.
func (s *Snapshots) usable(i SnapshotInfo) bool {
	if i.Problem != "" {
		return false
	}
	img, err := s.images.store.Get(i.Digest, "")
	return err == nil && img.RootFSKey == i.RootFS
}

// find returns the ID that a name means.
func (s *Snapshots) find(name string) (string, error) {
	all, err := s.List()
	if err != nil {
		return "", err
	}
	var begin []string
	for _, i := range all {
		if i.ID == name {
			return i.ID, nil
		}
		if name != "" && strings.HasPrefix(i.ID, name) {
			begin = append(begin, i.ID)
		}
	}
	for _, i := range all {
		if name != "" && i.Name == name {
			return i.ID, nil
		}
	}
	switch len(begin) {
	case 1:
		return begin[0], nil
	case 0:
		return "", &Error{Code: ErrNotFound, Op: "find snapshot", Object: name, Err: errors.New("no snapshot has this ID or name; see supermachine snapshots")}
	}
	return "", &Error{Code: ErrInvalidArgument, Op: "find snapshot", Object: name, Err: fmt.Errorf("%d snapshots begin like this", len(begin))}
}
