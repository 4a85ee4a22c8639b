package api

import (
	"context"
	"time"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/oci"
)

type pullOptions struct {
	Ref      string   `msgpack:"ref" doc:"The image: as for docker, oci:DIRECTORY[:TAG], oci-archive:FILE or docker-archive:FILE; required."`
	Pull     string   `msgpack:"pull" doc:"missing (default), always or never."`
	Platform string   `msgpack:"platform" doc:"os/arch[/variant]; default: linux on this host's architecture."`
	Insecure []string `msgpack:"insecure" doc:"Registries, HOST or HOST:PORT, that may use plain HTTP or any certificate."`
}

// pull returns the options of a pull that tells the caller of its progress.
func (o pullOptions) pull(e *env) (core.PullOptions, error) {
	policy, err := oci.ParsePolicy(o.Pull)
	if err != nil {
		err = &core.Error{Code: core.ErrInvalidArgument, Op: "read option", Object: "pull", Err: err}
	}
	p := core.PullOptions{Policy: policy, Platform: o.Platform, Insecure: o.Insecure}
	if e.event != nil {
		p.Progress = func(ev oci.Event) {
			e.event(pullEvent{pullEvents[ev.Kind], ev.Digest, ev.Layer, ev.Layers, ev.Done, ev.Total})
		}
	}
	return p, err
}

var pullEvents = map[oci.EventKind]string{
	oci.EventResolved: "resolved", oci.EventFetch: "fetch", oci.EventConvert: "convert", oci.EventDone: "done",
}

type pullEvent struct {
	Event  string `msgpack:"event"`
	Digest string `msgpack:"digest"`
	Layer  int    `msgpack:"layer"`
	Layers int    `msgpack:"layers"`
	Done   int64  `msgpack:"done"`
	Total  int64  `msgpack:"total"`
}

type stepEvent struct {
	Event string `msgpack:"event"`
	Step  string `msgpack:"step"`
}

type ociImage struct {
	Ref          string   `msgpack:"ref" doc:"Canonical reference; empty if it has none any more."`
	Digest       string   `msgpack:"digest" doc:"Of the manifest."`
	ConfigDigest string   `msgpack:"config_digest" doc:"What docker calls the image ID."`
	Platform     string   `msgpack:"platform" doc:"os/arch or os/arch/variant."`
	Bytes        int64    `msgpack:"bytes" doc:"Size of the root file system."`
	CreatedMS    int64    `msgpack:"created_ms" doc:"When it was built, as it says, in milliseconds since 1970."`
	Entrypoint   []string `msgpack:"entrypoint" doc:"As the image says."`
	Cmd          []string `msgpack:"cmd" doc:"As the image says."`
	Env          []string `msgpack:"env" doc:"As the image says."`
	Workdir      string   `msgpack:"workdir" doc:"As the image says."`
	User         string   `msgpack:"user" doc:"As the image says."`
	GuestPort    uint16   `msgpack:"guest_port" doc:"The first TCP port that it exposes; 0 if there is none."`
}

func describe(i *core.Image) ociImage {
	c := i.Config
	return ociImage{
		i.Ref, i.Digest, i.ConfigDigest, i.Platform, i.Size, i.Created.UnixMilli(), c.Entrypoint, c.Cmd, c.Env, c.WorkingDir, c.User, core.ExposedPort(i),
	}
}

type snapshotInfo struct {
	ID          string   `msgpack:"id" doc:"Identifier."`
	Name        string   `msgpack:"name" doc:"Name; may be empty."`
	Fingerprint string   `msgpack:"fingerprint" doc:"Of what it was baked from; empty for one of a running VM."`
	Base        string   `msgpack:"base" doc:"ID of the snapshot that this one holds the differences to; empty for a whole one."`
	CreatedMS   int64    `msgpack:"created_ms" doc:"In milliseconds since 1970."`
	LastUsedMS  int64    `msgpack:"last_used_ms" doc:"In milliseconds since 1970."`
	Bytes       int64    `msgpack:"bytes" doc:"On disk."`
	Ref         string   `msgpack:"ref" doc:"The reference that its OCI image was pulled by."`
	Digest      string   `msgpack:"digest" doc:"Of that image."`
	MemoryMiB   int      `msgpack:"memory_mib" doc:"RAM of its VMs."`
	VCPUs       int      `msgpack:"vcpus" doc:"Virtual CPUs of its VMs."`
	ScratchMiB  int      `msgpack:"scratch_mib" doc:"Size of their writable layer."`
	Workload    bool     `msgpack:"workload" doc:"The image's command, or another, runs in it."`
	Command     []string `msgpack:"command" doc:"Of the workload."`
	GuestPort   uint16   `msgpack:"guest_port" doc:"The workload's TCP port; 0 if there is none."`
	Problem     string   `msgpack:"problem" doc:"Why it cannot be used; empty if nothing is known against it."`
}

func describeSnapshot(i core.SnapshotInfo) snapshotInfo {
	return snapshotInfo{
		i.ID, i.Name, i.Fingerprint, i.Base, i.Created.UnixMilli(), i.LastUsed.UnixMilli(), i.Bytes, i.Image, i.Digest, i.MemoryMiB, i.VCPUs,
		i.ScratchMiB, i.Workload, i.Command, i.GuestPort, i.Problem,
	}
}

type storeResult struct {
	Store uint64 `msgpack:"store" holds:"handle" doc:"The store."`
}

type imagesResult struct {
	Images []ociImage `msgpack:"images" doc:"One map for each, with the keys of store_pull."`
}

type idResult struct {
	ID string `msgpack:"id" doc:"Of the new snapshot."`
}

type snapshotsResult struct {
	Snapshots []snapshotInfo `msgpack:"snapshots" doc:"One map for each, with the keys of image_info."`
}

func describeAll(all []core.SnapshotInfo) snapshotsResult {
	r := snapshotsResult{Snapshots: []snapshotInfo{}}
	for _, s := range all {
		r.Snapshots = append(r.Snapshots, describeSnapshot(s))
	}
	return r
}

type nameOption struct {
	Name string `msgpack:"name" doc:"ID, an unambiguous beginning of it, or name (of several the newest); required."`
}

type pruneOptions struct {
	OlderMS      int64 `msgpack:"older_ms" doc:"Those not used for so many milliseconds; 0: none."`
	MaxBytes     int64 `msgpack:"max_bytes" doc:"The least recently used, until the rest takes no more on disk; 0: none."`
	Unreferenced bool  `msgpack:"unreferenced" doc:"Those whose image is no longer in the store, and those that cannot be used."`
	All          bool  `msgpack:"all" doc:"All of them."`
}

func init() {
	define("store_open", KindNone, 0, "Opens a store of images and snapshots. Any number of processes may use one at once. Handle 0 is the user's own store.",
		func(ctx context.Context, e *env, _ None, o *struct {
			Dir    string `msgpack:"dir" doc:"Directory, made if it is missing; default: the user's own."`
			Assets string `msgpack:"assets" doc:"Directory of the guest's kernel and initramfs; default: where the library finds them."`
		}) (r storeResult, err error) {
			s, err := openStore(o.Dir, o.Assets)
			if err == nil {
				r.Store = e.lib.handles.put(KindStore, s)
			}
			return r, err
		})
	defineClose("store_close", KindStore, "Gives up a store's handle. Images and VMs from it go on.")
	define("store_pull", KindStore, 0, "Makes an OCI image available. Events: its progress.",
		func(ctx context.Context, e *env, s *store, o *pullOptions) (ociImage, error) {
			opts, err := o.pull(e)
			if err != nil {
				return ociImage{}, err
			}
			img, err := s.images.Pull(ctx, o.Ref, opts)
			if err != nil {
				return ociImage{}, err
			}
			return describe(img), nil
		})
	define("store_images", KindStore, 0, "Lists the OCI images in the store, one entry for each reference.",
		func(ctx context.Context, e *env, s *store, _ *None) (imagesResult, error) {
			all, err := s.images.List()
			r := imagesResult{Images: []ociImage{}}
			for _, i := range all {
				r.Images = append(r.Images, describe(i))
			}
			return r, err
		})
	define("store_remove_image", KindStore, 0, "Forgets the reference of an OCI image; its files go when nothing else needs them.",
		func(ctx context.Context, e *env, s *store, o *struct {
			Ref string `msgpack:"ref" doc:"The reference; required."`
		}) (None, error) {
			return None{}, s.images.Remove(ctx, o.Ref)
		})
	define("store_snapshots", KindStore, 0, "Lists the snapshots in the store, newest first.",
		func(ctx context.Context, e *env, s *store, _ *None) (snapshotsResult, error) {
			all, err := s.snapshots.List()
			return describeAll(all), err
		})
	define("store_inspect", KindStore, 0, "Describes one snapshot, without reading its data.",
		func(ctx context.Context, e *env, s *store, o *nameOption) (snapshotInfo, error) {
			i, err := s.snapshots.Inspect(o.Name)
			return describeSnapshot(i), err
		})
	define("store_remove", KindStore, 0, "Deletes a snapshot. VMs that were started from it go on.",
		func(ctx context.Context, e *env, s *store, o *nameOption) (None, error) {
			return None{}, s.snapshots.Remove(ctx, o.Name)
		})
	define("store_prune", KindStore, 0, "Deletes the snapshots that may go and describes them.",
		func(ctx context.Context, e *env, s *store, o *pruneOptions) (snapshotsResult, error) {
			gone, err := s.snapshots.Prune(ctx, core.PruneOptions{
				OlderThan: time.Duration(o.OlderMS) * time.Millisecond, MaxBytes: o.MaxBytes, Unreferenced: o.Unreferenced, All: o.All,
			})
			return describeAll(gone), err
		})
	define("store_flatten", KindStore, 0, "Makes a snapshot that holds everything itself from one that holds the differences to others.",
		func(ctx context.Context, e *env, s *store, o *nameOption) (r idResult, err error) {
			r.ID, err = s.snapshots.Flatten(ctx, o.Name)
			return r, err
		})
}
