package core

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/supermachine/supermachine/core/trace"
	"github.com/supermachine/supermachine/snapshot"
)

// BakeSpec says what a snapshot is baked from. Only Ref is required: the image is booted once, its workload brought to readiness and frozen.
// Equal specs of the same image give the same snapshot, which is baked once, whoever asks.
type BakeSpec struct {
	Ref  string      // the image, as for Images.Pull
	Pull PullOptions // policy, platform, progress of the pull

	Name       string   // tells variants of the same image apart; a snapshot is found by it
	Entrypoint []string // instead of the image's; to run without one give the command here
	Cmd        []string // instead of the image's
	Env        []string // NAME=value, over the image's
	User       string   // instead of the image's
	Dir        string   // working directory, instead of the image's
	// BootOnly starts no workload: the snapshot is of a guest that is ready to run programs.
	BootOnly bool

	MemoryMiB  int // as in Config
	VCPUs      int //
	ScratchMiB int //

	GuestPort uint16    // the workload's TCP port; default: the first that the image exposes
	Ready     Readiness // when the workload is ready; default: see Readiness
	// Warmup are programs that run in the ready guest before it is frozen, one after another: to import libraries, or prime caches.
	Warmup [][]string

	Timeout  time.Duration // until the workload is ready, and for each warmup; default 60 s
	StateDir string        // as in Config
	Assets   string        // Config.AssetsDir
	// Progress, if set, is told what is being done: one line each.
	Progress func(step string)
}

// Readiness is when a workload is ready. The zero value is ReadyPort if the workload has a port, else ReadySettled.
type Readiness struct {
	kind    string
	port    uint16
	command []string
	settle  time.Duration
}

// ReadyPort is readiness once something listens on the TCP port; 0 means BakeSpec.GuestPort.
func ReadyPort(port uint16) Readiness { return Readiness{kind: "port", port: port} }

// ReadyCommand is readiness once the program exits with status 0. It is tried again and again.
func ReadyCommand(args ...string) Readiness { return Readiness{kind: "command", command: args} }

// ReadySettled is readiness once all programs together have used next to no CPU for d; 0 means half a second.
func ReadySettled(d time.Duration) Readiness { return Readiness{kind: "settle", settle: d} }

// ReadyNow is readiness as soon as the workload runs.
func ReadyNow() Readiness { return Readiness{kind: "none"} }

// ParseReadiness reads "port[:N]", "command:PROGRAM ARG…", "settle[:DURATION]" or "none".
func ParseReadiness(s string) (Readiness, error) {
	kind, arg, given := strings.Cut(s, ":")
	bad := func(err error) (Readiness, error) {
		return Readiness{}, &Error{
			Code: ErrInvalidArgument, Op: "read readiness", Object: strconv.Quote(s),
			Err: fmt.Errorf("%w; give port, port:8080, command:PROGRAM ARG…, settle, settle:2s or none", err),
		}
	}
	switch kind {
	case "port":
		if !given {
			return ReadyPort(0), nil
		}
		n, err := strconv.ParseUint(arg, 10, 16)
		if err != nil || n == 0 {
			return bad(errors.New("the port is not 1 to 65535"))
		}
		return ReadyPort(uint16(n)), nil
	case "command":
		args := strings.Fields(arg)
		if len(args) == 0 {
			return bad(errors.New("no program is given"))
		}
		return ReadyCommand(args...), nil
	case "settle":
		if !given {
			return ReadySettled(0), nil
		}
		d, err := time.ParseDuration(arg)
		if err != nil || d <= 0 {
			return bad(errors.New("the time is not a positive duration"))
		}
		return ReadySettled(d), nil
	case "none":
		if given {
			return bad(errors.New("none takes nothing"))
		}
		return ReadyNow(), nil
	}
	return bad(errors.New("unknown kind"))
}

const (
	defaultBakeTimeout = 60 * time.Second
	defaultSettle      = 500 * time.Millisecond
)

// withDefaults returns the spec with what is left out, and checks all of it that can be checked without the image.
func (b BakeSpec) withDefaults() (BakeSpec, error) {
	bad := func(what string, err error) (BakeSpec, error) {
		return b, &Error{Code: ErrInvalidArgument, Op: "bake", Object: what, Err: err}
	}
	setDefault(&b.MemoryMiB, DefaultMemoryMiB)
	setDefault(&b.VCPUs, DefaultVCPUs)
	setDefault(&b.ScratchMiB, DefaultScratchMiB)
	setDefault(&b.Timeout, defaultBakeTimeout)
	if err := b.config().Check(); err != nil {
		return b, err
	}
	if b.Timeout < 0 {
		return bad("timeout", fmt.Errorf("%v is negative", b.Timeout))
	}
	if err := snapshot.CheckName(b.Name); err != nil {
		return bad("name", err)
	}
	for _, kv := range b.Env {
		if i := strings.IndexByte(kv, '='); i <= 0 || strings.IndexByte(kv, 0) >= 0 {
			return bad("environment", fmt.Errorf("%q is not NAME=value", kv))
		}
	}
	for _, w := range b.Warmup {
		if len(w) == 0 || w[0] == "" {
			return bad("warmup", errors.New("no program is given"))
		}
	}
	if b.BootOnly {
		if len(b.Entrypoint)+len(b.Cmd) > 0 || b.Ready.kind != "" && b.Ready.kind != "none" {
			return bad("boot only", errors.New("there is no workload whose command or readiness could be given"))
		}
		b.Ready = ReadyNow()
	}
	return b, nil
}

// complete returns the spec with what the defaults and the image say, and what is to be run.
func (b BakeSpec) complete(img *Image) (BakeSpec, []string, error) {
	bad := func(what string, err error) (BakeSpec, []string, error) {
		return b, nil, &Error{Code: ErrInvalidArgument, Op: "bake", Object: what, Err: err}
	}
	b, err := b.withDefaults()
	if err != nil || b.BootOnly {
		return b, nil, err
	}
	command := Command(img, b.Cmd)
	if b.Entrypoint != nil {
		command = append(append([]string(nil), b.Entrypoint...), b.Cmd...)
	}
	if len(command) == 0 || command[0] == "" {
		return bad("command", fmt.Errorf("%s has none of its own: give one, or bake without a workload", img.Ref))
	}
	if b.GuestPort == 0 {
		b.GuestPort = exposedPort(img)
	}
	switch b.Ready.kind {
	case "":
		b.Ready = ReadySettled(0)
		if b.GuestPort != 0 {
			b.Ready = ReadyPort(b.GuestPort)
		}
	case "port":
		setDefault(&b.Ready.port, b.GuestPort)
		if b.Ready.port == 0 {
			return bad("readiness", errors.New("the image exposes no port: give the number"))
		}
	}
	if b.Ready.kind == "settle" {
		setDefault(&b.Ready.settle, defaultSettle)
	}
	return b, command, nil
}

func (b BakeSpec) config() Config {
	return Config{
		Name: "baked", MemoryMiB: b.MemoryMiB, VCPUs: b.VCPUs, ScratchMiB: b.ScratchMiB, AssetsDir: b.Assets, StateDir: b.StateDir,
	}
}

// exposedPort returns the first TCP port that the image exposes, 0 if there is none.
func exposedPort(img *Image) uint16 {
	for _, p := range img.Config.ExposedPorts {
		number, proto, _ := strings.Cut(p, "/")
		if n, err := strconv.ParseUint(number, 10, 16); err == nil && n > 0 && (proto == "" || proto == "tcp") {
			return uint16(n)
		}
	}
	return 0
}

func (b BakeSpec) say(format string, args ...any) {
	if b.Progress != nil {
		b.Progress(fmt.Sprintf(format, args...))
	}
}

// Bake returns the snapshot that the spec describes. If the store has it, nothing is booted. Otherwise it is made, once for all who ask
// at the same time, in other processes too. Errors besides those of Pull and Start: ErrNotReady with a NotReadyError.
func (s *Snapshots) Bake(ctx context.Context, spec BakeSpec) (*Snapshot, error) {
	if _, err := spec.withDefaults(); err != nil { // before anything is pulled
		return nil, err
	}
	img, err := s.images.Pull(ctx, spec.Ref, spec.Pull)
	if err != nil {
		return nil, err
	}
	snap, err := s.bake(ctx, img, spec)
	if err != nil {
		return nil, wrap("bake", spec.Ref, err)
	}
	return snap, nil
}

func (s *Snapshots) bake(ctx context.Context, img *Image, spec BakeSpec) (*Snapshot, error) {
	spec, command, err := spec.complete(img)
	if err != nil {
		return nil, err
	}
	guest, err := GuestDigest(spec.config())
	if err != nil {
		return nil, err
	}
	fp, err := spec.fingerprint(img, guest, command)
	if err != nil {
		return nil, err
	}
	if snap, err := s.baked(ctx, fp); snap != nil || err != nil {
		return snap, err
	}
	unlock, err := s.store.Lock(ctx, fp)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if snap, err := s.baked(ctx, fp); snap != nil || err != nil { // another has made it meanwhile
		return snap, err
	}
	op := trace.Begin(trace.Bake, shortID(fp))
	cp, err := s.ripen(ctx, op, img, spec, command)
	if err != nil {
		return nil, err
	}
	defer cp.Close()
	spec.say("write the snapshot")
	info := SnapshotInfo{ID: shortID(fp), Name: spec.Name, Fingerprint: fp, SnapshotMeta: SnapshotMeta{
		Workload: len(command) > 0, Command: command, Env: spec.Env, Dir: spec.Dir, User: spec.User, GuestPort: spec.GuestPort,
		Guest: guest,
	}}
	if err := s.write(ctx, cp, info, nil); err != nil && !errors.Is(err, snapshot.ErrExists) {
		return nil, err
	}
	op.Step("write snapshot")
	counters.bakes.Add(1)
	return s.load(info.ID, VerifyOnce)
}

// shortID returns the ID of the snapshot with a fingerprint.
func shortID(fingerprint string) string { return fingerprint[:32] }

// baked returns the snapshot with a fingerprint, nil if there is none. One that is broken goes, and is made again.
func (s *Snapshots) baked(ctx context.Context, fingerprint string) (*Snapshot, error) {
	id := shortID(fingerprint)
	snap, err := s.open(id, VerifyOnce)
	switch CodeOf(err) {
	case ErrNotFound:
		return nil, nil
	case ErrCorrupt, ErrIncompatible:
		if err := s.store.Remove(ctx, id); err != nil && !errors.Is(err, snapshot.ErrNotFound) {
			return nil, err
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return snap, nil
}

// ripen boots the image, brings the workload to readiness and freezes it.
func (s *Snapshots) ripen(ctx context.Context, op *trace.Operation, img *Image, spec BakeSpec, command []string) (*checkpoint, error) {
	spec.say("boot")
	vm, err := Start(ctx, img, spec.config())
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	op.Step("boot")
	if len(command) > 0 {
		spec.say("start %s and wait for readiness: %v", command[0], spec.Ready)
		if err := vm.bringUp(ctx, spec, command); err != nil {
			return nil, err
		}
		op.Step("workload ready")
	}
	for _, args := range spec.Warmup {
		spec.say("warm up: %s", strings.Join(args, " "))
		if err := vm.warmUp(ctx, spec, args); err != nil {
			return nil, err
		}
		op.Step("warmup %s", args[0])
	}
	spec.say("freeze")
	cp, err := vm.checkpoint(ctx, capture{category: trace.Bake, lean: true, end: true})
	if err != nil {
		return nil, vm.wrapEnded("freeze VM", err)
	}
	return cp, nil
}

// String describes the readiness as ParseReadiness reads it.
func (r Readiness) String() string {
	switch {
	case r.kind == "port" && r.port != 0:
		return fmt.Sprintf("port:%d", r.port)
	case r.kind == "command":
		return "command:" + strings.Join(r.command, " ")
	case r.kind == "settle" && r.settle != 0:
		return "settle:" + r.settle.String()
	}
	return r.kind
}
