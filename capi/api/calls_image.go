package api

import (
	"context"

	"github.com/supermachine/supermachine/core"
)

type bakeOptions struct {
	pullOptions
	Name         string     `msgpack:"name" doc:"Tells variants of the same image apart; the snapshot is found by it."`
	Entrypoint   []string   `msgpack:"entrypoint" doc:"Instead of the image's."`
	Cmd          []string   `msgpack:"cmd" doc:"Instead of the image's."`
	Env          []string   `msgpack:"env" doc:"NAME=value, over the image's."`
	User         string     `msgpack:"user" doc:"Instead of the image's."`
	Workdir      string     `msgpack:"workdir" doc:"Instead of the image's."`
	BootOnly     bool       `msgpack:"boot_only" doc:"Start no workload: the snapshot is of a guest that is ready to run programs."`
	MemoryMiB    int        `msgpack:"memory_mib" doc:"RAM, 64 to 524288; default 256."`
	VCPUs        int        `msgpack:"vcpus" doc:"1 to 8; default 1."`
	ScratchMiB   int        `msgpack:"scratch_mib" doc:"Size of the writable layer over the image, 16 to 1048576; default 8192."`
	GuestPort    uint16     `msgpack:"guest_port" doc:"The workload's TCP port; default: the first that the image exposes."`
	Ready        string     `msgpack:"ready" doc:"When the workload is ready: port[:N], settle[:DURATION], command:PROGRAM ARG… or none; default: port if there is one, else settle."`
	ReadyCommand []string   `msgpack:"ready_command" doc:"It is ready once this program exits with status 0; instead of ready."`
	Warmup       [][]string `msgpack:"warmup" doc:"Programs that run in the ready guest before it is frozen, one after another."`
	TimeoutMS    int64      `msgpack:"timeout_ms" doc:"Until the workload is ready, and for each warmup; default 60000."`
}

type imageResult struct {
	Image uint64 `msgpack:"image" holds:"handle" doc:"The image."`
	snapshotInfo
}

func (l *Library) imageResult(s *core.Snapshot) imageResult {
	return imageResult{l.handles.put(KindImage, image{s}), describeSnapshot(s.Info())}
}

type snapshotOptions struct {
	Store uint64 `msgpack:"store" doc:"Handle of the store to save it in; default: the user's own."`
	Name  string `msgpack:"name" doc:"For people; may be empty."`
	Base  uint64 `msgpack:"base" doc:"Handle of an image that the VM goes back to: only what differs from it is stored. 0 stores everything."`
	Lean  bool   `msgpack:"lean" doc:"Spend some tenths of a second on making the snapshot small."`
}

func saveSnapshot(ctx context.Context, e *env, m *vm, o *snapshotOptions) (imageResult, error) {
	so := core.SnapshotOptions{Name: o.Name, Lean: o.Lean}
	var s *store
	var err error
	if o.Store == 0 {
		s, err = e.lib.own.open()
	} else {
		s, err = handleOption[*store](e, "store", o.Store, KindStore)
	}
	if err != nil {
		return imageResult{}, err
	}
	if o.Base != 0 {
		base, err := handleOption[image](e, "base", o.Base, KindImage)
		if err != nil {
			return imageResult{}, err
		}
		so.Base = base.Snapshot
	}
	snap, err := m.VM.Snapshot(ctx, s.snapshots, so)
	if err != nil {
		return imageResult{}, err
	}
	return e.lib.imageResult(snap), nil
}

// handleOption returns the object behind a handle that is given as an option.
func handleOption[T any](e *env, name string, token uint64, k Kind) (T, error) {
	o, err := e.lib.handles.get(token, k)
	if err != nil {
		var none T
		return none, &core.Error{Code: core.ErrInvalidHandle, Op: "read option", Object: name, Err: err}
	}
	return o.(T), nil
}

type poolOptions struct {
	givenOptions
	Min              int   `msgpack:"min" doc:"How many VMs are kept ready, on top of those in use; default 0."`
	Max              int   `msgpack:"max" doc:"How many VMs there are at most, 1 to 65536; default: the larger of 32 and min."`
	IdleTimeoutMS    int64 `msgpack:"idle_timeout_ms" doc:"After how long with more than min ready VMs the surplus is closed; 0: never."`
	AcquireTimeoutMS int64 `msgpack:"acquire_timeout_ms" doc:"How long pool_acquire waits at most when all VMs are in use; 0: until it is canceled."`
	Replace          bool  `msgpack:"replace" doc:"Close a released VM and start a fresh one; else it is brought back in place, which is faster."`
}

type poolResult struct {
	Pool uint64 `msgpack:"pool" holds:"handle" doc:"The pool."`
}

type poolStats struct {
	Min           int    `msgpack:"min" doc:"As configured."`
	Max           int    `msgpack:"max" doc:"As configured."`
	Alive         int    `msgpack:"alive" doc:"VMs there are: idle, in use and being reset."`
	Idle          int    `msgpack:"idle" doc:"Ready."`
	InUse         int    `msgpack:"in_use" doc:"Acquired."`
	Resetting     int    `msgpack:"resetting" doc:"Released, not yet reset."`
	Starting      int    `msgpack:"starting" doc:"Being started."`
	Closing       int    `msgpack:"closing" doc:"Not yet closed."`
	Waiting       int    `msgpack:"waiting" doc:"Callers that wait for a VM."`
	Starts        uint64 `msgpack:"starts" doc:"VMs started so far."`
	StartFailures uint64 `msgpack:"start_failures" doc:"Starts that failed."`
	Resets        uint64 `msgpack:"resets" doc:"VMs reset in place."`
	ResetFailures uint64 `msgpack:"reset_failures" doc:"Resets that failed, so that the VM was replaced."`
	Evictions     uint64 `msgpack:"evictions" doc:"VMs closed because they were idle for too long."`
	Deaths        uint64 `msgpack:"deaths" doc:"VMs that ended by themselves."`
	Acquires      uint64 `msgpack:"acquires" doc:"Successful ones."`
	AcquireP50NS  int64  `msgpack:"acquire_p50_ns" doc:"How long they took, median, in nanoseconds."`
	AcquireP99NS  int64  `msgpack:"acquire_p99_ns" doc:"99th percentile."`
}

func statsOf(s core.PoolStats) poolStats {
	return poolStats{
		s.Min, s.Max, s.Alive, s.Idle, s.InUse, s.Resetting, s.Starting, s.Closing, s.Waiting, s.Starts, s.StartFailures, s.Resets,
		s.ResetFailures, s.Evictions, s.Deaths, s.Acquires, int64(s.AcquireP50), int64(s.AcquireP99),
	}
}

// acquired gives a VM that was taken from a pool its handle.
func acquired(e *env, g *core.PooledVM, err error) (vmResult, error) {
	if err != nil {
		return vmResult{}, err
	}
	return e.lib.vmResult(g.Value(), g), nil
}

func init() {
	define("image_from_oci", KindStore, 0, "Makes an image that VMs start from: an OCI image is pulled and booted once, its workload brought to readiness and frozen. "+
		"If the store has that already, nothing is booted. Events: progress of the pull, and the steps of the bake.",
		func(ctx context.Context, e *env, s *store, o *bakeOptions) (imageResult, error) {
			pull, err := o.pull(e)
			if err != nil {
				return imageResult{}, err
			}
			spec := core.BakeSpec{
				Ref: o.Ref, Pull: pull, Name: o.Name, Entrypoint: o.Entrypoint, Cmd: o.Cmd, Env: o.Env, User: o.User, Dir: o.Workdir,
				BootOnly: o.BootOnly, MemoryMiB: o.MemoryMiB, VCPUs: o.VCPUs, ScratchMiB: o.ScratchMiB, GuestPort: o.GuestPort, Warmup: o.Warmup,
				Timeout: ms(o.TimeoutMS), StateDir: s.dir, Assets: s.assets,
			}
			if e.event != nil {
				spec.Progress = func(step string) { e.event(stepEvent{"step", step}) }
			}
			switch {
			case len(o.ReadyCommand) > 0:
				spec.Ready = core.ReadyCommand(o.ReadyCommand...)
			case o.Ready != "":
				ready, err := core.ParseReadiness(o.Ready)
				if err != nil {
					return imageResult{}, err
				}
				spec.Ready = ready
			}
			snap, err := s.snapshots.Bake(ctx, spec)
			if err != nil {
				return imageResult{}, err
			}
			return e.lib.imageResult(snap), nil
		})
	define("image_from_snapshot", KindStore, 0, "Opens a snapshot of the store, to start VMs from it.",
		func(ctx context.Context, e *env, s *store, o *struct {
			nameOption
			Verify string `msgpack:"verify" doc:"When checksums are compared: once for each file (default), always or never."`
		}) (imageResult, error) {
			verify, err := parseVerify(o.Verify)
			if err != nil {
				return imageResult{}, err
			}
			snap, err := s.snapshots.Load(ctx, o.Name, verify)
			if err != nil {
				return imageResult{}, err
			}
			return e.lib.imageResult(snap), nil
		})
	define("image_info", KindImage, quick, "Describes an image.",
		func(ctx context.Context, e *env, i image, _ *None) (snapshotInfo, error) {
			return describeSnapshot(i.Info()), nil
		})
	define("image_acquire", KindImage, quick, "Takes a VM from the image's own pool, which keeps one ready. vm_close gives it back.",
		func(ctx context.Context, e *env, i image, _ *None) (vmResult, error) {
			g, err := i.Acquire(ctx)
			return acquired(e, g, err)
		})
	define("image_pool_stats", KindImage, quick, "Says what the image's own pool has and has done.",
		func(ctx context.Context, e *env, i image, _ *None) (poolStats, error) {
			return statsOf(i.PoolStats()), nil
		})
	defineClose("image_close", KindImage, "Gives up an image, and the VMs that its own pool keeps ready. Other VMs go on.")

	define("pool_new", KindImage, quick, "Makes a pool of an image's VMs and starts filling it in the background. The image must stay open as long. Volumes can only be read, and VMs with a network are replaced after each use.",
		func(ctx context.Context, e *env, i image, o *poolOptions) (r poolResult, err error) {
			cfg := core.PoolConfig{
				Min: o.Min, Max: o.Max, IdleTimeout: ms(o.IdleTimeoutMS), AcquireTimeout: ms(o.AcquireTimeoutMS), Replace: o.Replace,
			}
			if cfg.Start.Network, cfg.Start.Volumes, cfg.Start.Mounts, err = o.given(); err != nil {
				return r, err
			}
			p, err := core.NewPool(i.Snapshot, cfg)
			if err == nil {
				r.Pool = e.lib.handles.put(KindPool, pool{p})
			}
			return r, err
		})
	define("pool_acquire", KindPool, quick, "Takes a VM, in microseconds if one is ready; else it waits for one, first come, first served. vm_close gives it back.",
		func(ctx context.Context, e *env, p pool, _ *None) (vmResult, error) {
			g, err := p.Acquire(ctx)
			return acquired(e, g, err)
		})
	define("pool_stats", KindPool, quick, "Says what a pool has and has done.",
		func(ctx context.Context, e *env, p pool, _ *None) (poolStats, error) { return statsOf(p.Stats()), nil })
	defineClose("pool_close", KindPool, "Closes the VMs that are not in use, and gives up the pool. Those in use are closed when they are.")
}
