package api

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/supermachine/supermachine/core"
)

type vmResult struct {
	VM        uint64 `msgpack:"vm" holds:"handle" doc:"The VM."`
	ID        string `msgpack:"id" doc:"Its random identifier, 12 hexadecimal digits."`
	Name      string `msgpack:"name" doc:"Its name, which is also the guest's host name."`
	RestoreID string `msgpack:"restore_id" doc:"The random identifier that the guest was given when it was restored; empty for one that was booted."`
}

func (l *Library) vmResult(v *core.VM, pooled *core.PooledVM) vmResult {
	return vmResult{l.handles.put(KindVM, newVM(v, pooled)), v.ID(), v.Name(), v.RestoreID()}
}

// attachOptions say what of the host a VM has.
type attachOptions struct {
	Volumes []string `msgpack:"volumes" doc:"Disks that are kept in files of the host: FILE:/PATH[:ro][:size=8G]. A file is made on first use, of 8 GiB unless size says another, and allocated as it is written. Six volumes and mounts are possible."`
	Mounts  []string `msgpack:"mounts" doc:"Directories of the host: DIR:/PATH[:ro][:symlinks=opaque|deny|follow]; opaque unless given."`
}

// networkOptions say where a VM may connect to.
type networkOptions struct {
	Network       bool     `msgpack:"network" doc:"Let the guest reach other computers: the public Internet, unless egress says otherwise. The gateway is the host's 127.0.0.1, if a rule allows that."`
	Egress        []string `msgpack:"egress" doc:"Rules of where it may connect to, with network: allow|deny WHAT[:PORTS][/tcp|udp], where WHAT is an address, a network, a name, *.NAME or *. The first that fits decides."`
	EgressDefault string   `msgpack:"egress_default" doc:"allow (the default) or deny, for what no rule is about. The host, private networks and the metadata of clouds are always denied unless a rule allows them by address."`
	NetworkRate   int64    `msgpack:"network_rate" doc:"Bytes per second, each way; 0: no limit."`
}

func (o networkOptions) parse() (*core.Network, error) {
	if !o.Network {
		if len(o.Egress) > 0 || o.EgressDefault != "" || o.NetworkRate != 0 {
			return nil, &core.Error{Code: core.ErrInvalidArgument, Op: "set up the network", Err: errors.New("egress, egress_default and network_rate need network")}
		}
		return nil, nil
	}
	return &core.Network{Default: o.EgressDefault, Rules: o.Egress, BytesPerSecond: o.NetworkRate}, nil
}

func (o attachOptions) parse() (volumes []core.Volume, mounts []core.Mount, err error) {
	for _, s := range o.Volumes {
		v, err := core.ParseVolume(s)
		if err != nil {
			return nil, nil, err
		}
		volumes = append(volumes, v)
	}
	for _, s := range o.Mounts {
		m, err := core.ParseMount(s)
		if err != nil {
			return nil, nil, err
		}
		mounts = append(mounts, m)
	}
	return volumes, mounts, nil
}

// givenOptions are what a VM has of the host and the world.
type givenOptions struct {
	attachOptions
	networkOptions
}

func (o givenOptions) given() (network *core.Network, volumes []core.Volume, mounts []core.Mount, err error) {
	if network, err = o.networkOptions.parse(); err == nil {
		volumes, mounts, err = o.attachOptions.parse()
	}
	return network, volumes, mounts, err
}

// lifeOptions say when a VM ends or rests by itself.
type lifeOptions struct {
	LifetimeMS    int64  `msgpack:"lifetime_ms" doc:"The VM is ended by force so many milliseconds after its start; 0: never."`
	CPUPercent    int64  `msgpack:"cpu_percent" doc:"How much of the host's CPUs the guest may use on average, 100 for one; 0: as many as it has vCPUs."`
	Cgroup        string `msgpack:"cgroup" doc:"Directory of a threaded cgroup (v2), below this process's, that the guest's processors are put into, for its cpu.weight; default: none."`
	DiskRate      int64  `msgpack:"disk_rate" doc:"Bytes per second that each disk reads and writes; 0: no limit."`
	DiskOps       int64  `msgpack:"disk_ops" doc:"Requests per second to each disk; 0: no limit."`
	IdleTimeoutMS int64  `msgpack:"idle_timeout_ms" doc:"The VM is paused when it was not used for so many milliseconds: no program that was started, no file that is transferred and no connection. The next use wakes it up. 0: never."`
}

type startOptions struct {
	givenOptions
	lifeOptions
	Name      string `msgpack:"name" doc:"The VM's name and host name, 1 to 63 of [a-zA-Z0-9-]; default: its ID."`
	TimeoutMS int64  `msgpack:"timeout_ms" doc:"How long the guest may take until it answers; default 30000."`
}

func (o startOptions) start() (so core.StartOptions, err error) {
	so = core.StartOptions{
		Name: o.Name, Timeout: ms(o.TimeoutMS), Lifetime: ms(o.LifetimeMS), IdleTimeout: ms(o.IdleTimeoutMS),
		CPULimit: float64(o.CPUPercent) / 100, Cgroup: o.Cgroup, DiskBytesPerSecond: o.DiskRate, DiskRequestsPerSecond: o.DiskOps,
	}
	so.Network, so.Volumes, so.Mounts, err = o.given()
	return so, err
}

type bootOptions struct {
	pullOptions
	givenOptions
	lifeOptions
	Name       string `msgpack:"name" doc:"The VM's name and host name, 1 to 63 of [a-zA-Z0-9-]; default: its ID."`
	MemoryMiB  int    `msgpack:"memory_mib" doc:"RAM, 64 to 524288; default 256."`
	VCPUs      int    `msgpack:"vcpus" doc:"1 to 8; default 1."`
	ScratchMiB int    `msgpack:"scratch_mib" doc:"Size of the writable layer over the image, 16 to 1048576; default 8192. It is allocated as it is written."`
	TimeoutMS  int64  `msgpack:"timeout_ms" doc:"How long the guest may take until it answers; default 60000."`
}

type endResult struct {
	Reason string `msgpack:"reason" doc:"stopped, powered off, rebooted, kernel panic, crashed, host failure or expired."`
	Detail string `msgpack:"detail" doc:"The kernel's message, or the host's error; else empty."`
}

type vmInfo struct {
	ID           string `msgpack:"id" doc:"Random identifier, 12 hexadecimal digits."`
	Name         string `msgpack:"name" doc:"Name, which is also the guest's host name."`
	RestoreID    string `msgpack:"restore_id" doc:"The random identifier that the guest was given when it was restored; empty for one that was booted."`
	Ref          string `msgpack:"ref" doc:"The reference that its OCI image was pulled by."`
	Digest       string `msgpack:"digest" doc:"Of the image."`
	MemoryMiB    int    `msgpack:"memory_mib" doc:"RAM."`
	VCPUs        int    `msgpack:"vcpus" doc:"Virtual CPUs."`
	ScratchMiB   int    `msgpack:"scratch_mib" doc:"Size of the writable layer."`
	GuestPort    uint16 `msgpack:"guest_port" doc:"The workload's TCP port; 0 if none is known."`
	StartedMS    int64  `msgpack:"started_ms" doc:"When the guest first answered, in milliseconds since 1970."`
	Running      bool   `msgpack:"running" doc:"It has not ended."`
	EndReason    string `msgpack:"end_reason" doc:"Why it has ended, as vm_wait says; empty while it runs."`
	EndDetail    string `msgpack:"end_detail" doc:"More of that."`
	Asleep       bool   `msgpack:"asleep" doc:"It is paused because nobody has used it for its idle timeout."`
	BalloonBytes int64  `msgpack:"balloon_bytes" doc:"Memory that the guest says it has given up."`
}

type textResult struct {
	Text string `msgpack:"text" doc:"The lines."`
}

func init() {
	define("vm_start", KindImage, 0, "Starts a VM that goes on from an image's snapshot, with entropy, clock and host name of its own. It returns when the workload runs.",
		func(ctx context.Context, e *env, i image, o *startOptions) (vmResult, error) {
			so, err := o.start()
			if err != nil {
				return vmResult{}, err
			}
			v, err := i.Start(ctx, so)
			if err != nil {
				return vmResult{}, err
			}
			return e.lib.vmResult(v, nil), nil
		})
	define("vm_boot", KindStore, 0, "Pulls an OCI image if need be and boots it, without a snapshot. The image's command is not started; vm_start_workload does. Events: progress of the pull.",
		func(ctx context.Context, e *env, s *store, o *bootOptions) (vmResult, error) {
			opts, err := o.pull(e)
			if err != nil {
				return vmResult{}, err
			}
			cfg := core.Config{
				Name: o.Name, MemoryMiB: o.MemoryMiB, VCPUs: o.VCPUs, ScratchMiB: o.ScratchMiB, BootTimeout: ms(o.TimeoutMS),
				AssetsDir: s.assets, StateDir: s.dir, Lifetime: ms(o.LifetimeMS), IdleTimeout: ms(o.IdleTimeoutMS),
				CPULimit: float64(o.CPUPercent) / 100, Cgroup: o.Cgroup, DiskBytesPerSecond: o.DiskRate, DiskRequestsPerSecond: o.DiskOps,
			}
			if cfg.Network, cfg.Volumes, cfg.Mounts, err = o.given(); err != nil {
				return vmResult{}, err
			}
			if err := cfg.Check(); err != nil { // before anything is pulled
				return vmResult{}, err
			}
			img, err := s.images.Pull(ctx, o.Ref, opts)
			if err != nil {
				return vmResult{}, err
			}
			v, err := core.Start(ctx, img, cfg)
			if err != nil {
				return vmResult{}, err
			}
			return e.lib.vmResult(v, nil), nil
		})
	define("vm_info", KindVM, quick, "Describes a VM.",
		func(ctx context.Context, e *env, m *vm, _ *None) (vmInfo, error) {
			cfg := m.Config()
			r := vmInfo{
				ID: m.ID(), Name: m.Name(), RestoreID: m.RestoreID(), Ref: m.Image().Ref, Digest: m.Image().Digest, MemoryMiB: cfg.MemoryMiB,
				VCPUs: cfg.VCPUs, ScratchMiB: cfg.ScratchMiB, GuestPort: m.GuestPort(), StartedMS: m.Started().UnixMilli(), Running: true,
				Asleep: m.Asleep(), BalloonBytes: m.Balloon(),
			}
			select {
			case <-m.Done():
				end := m.End()
				r.Running, r.EndReason, r.EndDetail = false, end.Reason.String(), end.Detail
			default:
			}
			return r, nil
		})
	define("vm_set_balloon", KindVM, quick, "Asks the guest to give up memory, which the host gets back. The guest complies as far as it can, without haste.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			Bytes int64 `msgpack:"bytes" doc:"How much; 0 returns all of it."`
		}) (None, error) {
			return None{}, m.SetBalloon(o.Bytes)
		})
	define("vm_wait", KindVM, 0, "Waits until the VM has ended and tells how.",
		func(ctx context.Context, e *env, m *vm, _ *None) (endResult, error) {
			end, err := m.Wait(ctx)
			return endResult{end.Reason.String(), end.Detail}, err
		})
	define("vm_stop", KindVM, 0, "Asks the guest to shut down, and stops it by force if it does not. The handle stays open.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			GraceMS int64 `msgpack:"grace_ms" doc:"How long the workload may take after its stop signal, in milliseconds; default 10000."`
		}) (endResult, error) {
			grace := 10 * time.Second
			if o.GraceMS > 0 {
				grace = ms(o.GraceMS)
			}
			if err := m.Stop(ctx, grace); err != nil {
				return endResult{}, err
			}
			end := m.End()
			return endResult{end.Reason.String(), end.Detail}, nil
		})
	define("vm_kill", KindVM, quick, "Ends the VM at once, without asking the guest. The handle stays open.",
		func(ctx context.Context, e *env, m *vm, _ *None) (None, error) {
			m.Kill()
			return None{}, nil
		})
	define("vm_pause", KindVM, 0, "Stops the guest's processors and devices. Connections wait.",
		func(ctx context.Context, e *env, m *vm, _ *None) (None, error) { return None{}, m.Pause() })
	define("vm_resume", KindVM, 0, "Continues a paused VM.",
		func(ctx context.Context, e *env, m *vm, _ *None) (None, error) { return None{}, m.Resume() })
	define("vm_fork", KindVM, 0, "Makes VMs that go on from this instant, each with an identity of its own, while this VM goes on too.", fork)
	define("vm_snapshot", KindVM, 0, "Saves the running VM as an image that others can be started from. The VM runs on.", saveSnapshot)
	define("vm_follow_console", KindVM, 0, "Reads the console as a stream: what is kept, the last 64 KiB, and then what comes, until the VM ends. A reader that is slow misses some.",
		func(ctx context.Context, e *env, m *vm, _ *None) (transferResult, error) {
			return startTransfer(ctx, e, m, func(life context.Context, t *transfer) (func() error, error) {
				r := m.FollowConsole()
				context.AfterFunc(life, func() { r.Close() })
				return t.from(r), nil
			})
		})
	define("vm_console", KindVM, quick, "Returns the last that the guest's kernel and init wrote to the console.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			MaxBytes int `msgpack:"max_bytes" doc:"At most so many bytes, of whole lines; default 65536."`
		}) (textResult, error) {
			n := o.MaxBytes
			if n <= 0 {
				n = 64 << 10
			}
			return textResult{strings.ToValidUTF8(m.ConsoleTail(n), "\ufffd")}, nil
		})
	defineClose("vm_close", KindVM, "Gives up a VM. One of its own ends at once, by force, unless it has volumes: then it is shut down first, for which it gets 5 seconds. One that was acquired goes back to its pool. Calls that run on it end with an error; "+
		"programs that were started in it are killed, and their handles stay until they are closed.")
	define("vm_discard", KindVM, 0, "Like vm_close, but a VM that was acquired is thrown away: the pool starts another.",
		func(ctx context.Context, e *env, m *vm, _ *None) (None, error) {
			m.keep = false
			return None{}, m.closeHandle(ctx)
		})
	calls[len(calls)-1].takes = true
}

type forkOptions struct {
	N         int      `msgpack:"n" doc:"How many children, 1 to 1024; default 1."`
	Names     []string `msgpack:"names" doc:"Names and host names of the children, in order; default: their IDs."`
	TimeoutMS int64    `msgpack:"timeout_ms" doc:"How long each may take until it answers; default 30000."`
}

type forkResult struct {
	VMs        []uint64 `msgpack:"vms" holds:"handles" doc:"The children."`
	IDs        []string `msgpack:"ids" doc:"Their identifiers."`
	Names      []string `msgpack:"names" doc:"Their names."`
	RestoreIDs []string `msgpack:"restore_ids" doc:"The random identifiers that they were given."`
}

func fork(ctx context.Context, e *env, m *vm, o *forkOptions) (forkResult, error) {
	n := o.N
	if n == 0 {
		n = 1
	}
	if len(o.Names) > 0 && len(o.Names) != n {
		return forkResult{}, &core.Error{Code: core.ErrInvalidArgument, Op: "fork VM", Object: m.ID(), Err: fmt.Errorf("%d names are given for %d children", len(o.Names), n)}
	}
	children, err := m.Fork(ctx, n, core.ForkOptions{Child: func(i int) core.StartOptions {
		so := core.StartOptions{Timeout: ms(o.TimeoutMS)}
		if len(o.Names) > 0 {
			so.Name = o.Names[i]
		}
		return so
	}})
	var r forkResult
	for _, c := range children {
		one := e.lib.vmResult(c, nil)
		r.VMs, r.IDs = append(r.VMs, one.VM), append(r.IDs, one.ID)
		r.Names, r.RestoreIDs = append(r.Names, one.Name), append(r.RestoreIDs, one.RestoreID)
	}
	return r, err
}
