package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
)

// want is what run is to start, as far as a snapshot may have it already.
type want struct {
	ref     string
	digest  string // of the image
	guest   string // core.GuestDigest of what would be booted; empty if there is nothing to boot
	cfg     core.Config
	command []string
	env     []string
	dir     string
	user    string
	streams bool // standard input or a terminal, which a program that runs already cannot be given

	given func(flag string) bool // whether a flag was given
	args  bool                   // whether a command was given
}

func (f *runFlags) want(cmd *cobra.Command, ref string, img *core.Image, cfg core.Config, args []string) want {
	w := want{
		ref: ref, digest: img.Digest, cfg: cfg, command: core.Command(img, args), env: f.environment(), dir: f.workdir, user: f.user,
		streams: f.interactive || f.tty, given: cmd.Flags().Changed, args: len(args) > 0,
	}
	if w.given("entrypoint") {
		w.command = append([]string{f.entrypoint}, args...)
	}
	return w
}

func (w *want) checkCommand() error {
	if len(w.command) == 0 || w.command[0] == "" {
		return fmt.Errorf("%s has no command of its own: say what to run", w.ref)
	}
	return nil
}

// misfit returns why the VM that is wanted cannot go on from a snapshot, nil if it can.
func (w *want) misfit(i core.SnapshotInfo) error {
	switch {
	case i.Digest != w.digest:
		return fmt.Errorf("it is of %s (%s), not of this image (%s)", i.Image, shortDigest(i.Digest), shortDigest(w.digest))
	case i.MemoryMiB != w.cfg.MemoryMiB:
		return fmt.Errorf("it has %d MiB of memory: give --memory %dm", i.MemoryMiB, i.MemoryMiB)
	case i.VCPUs != w.cfg.VCPUs:
		return fmt.Errorf("it has another number of CPUs: give --cpus %d", i.VCPUs)
	case i.ScratchMiB != w.cfg.ScratchMiB:
		return fmt.Errorf("its disk has %d MiB: give --disk %dm", i.ScratchMiB, i.ScratchMiB)
	case !i.Workload:
		return w.checkCommand()
	case missing(attached(w.cfg), i.Attached) != "":
		return fmt.Errorf("its workload was started without %s: bake with --boot-only, or give --cold", missing(attached(w.cfg), i.Attached))
	case w.streams:
		return errors.New("its workload runs already: leave out -i and -t, and use exec for other programs")
	case !slices.Equal(i.Command, w.command):
		return fmt.Errorf("%q runs in it: give no other command, and use exec for other programs", strings.Join(i.Command, " "))
	case !slices.Equal(i.Env, w.env):
		return errors.New("its workload was started with another environment: leave out -e")
	case i.Dir != w.dir:
		return errors.New("its workload was started in another working directory: leave out -w")
	case i.User != w.user:
		return errors.New("its workload was started as another user: leave out -u")
	}
	return nil
}

// candidates returns which of the snapshots, the newest first, to go on from: the best comes first. A snapshot of a VM that somebody
// used is not taken unasked, as what was done in it may concern nobody else. Those of another guest kernel or agent are outdated.
func (w *want) candidates(all []core.SnapshotInfo) (best, outdated []core.SnapshotInfo) {
	var booted []core.SnapshotInfo
	for _, i := range all {
		switch {
		case i.Fingerprint == "" || w.misfit(i) != nil:
		case w.guest != "" && i.Guest != w.guest:
			outdated = append(outdated, i)
		case i.Workload:
			best = append(best, i)
		default:
			booted = append(booted, i)
		}
	}
	return append(best, booted...), outdated
}

// restore starts the VM from the best snapshot and tells whether its program runs in it; there is no VM if no snapshot can be used. A snapshot
// that fails is passed over with a warning.
func (w *want) restore(ctx context.Context, stderr io.Writer) (vm *core.VM, attach bool, err error) {
	store, err := core.OpenSnapshots("", nil)
	var all []core.SnapshotInfo
	if err == nil {
		all, err = store.List()
	}
	if err != nil {
		fmt.Fprintln(stderr, "supermachine: warning: no snapshots are used:", err)
		return nil, false, nil
	}
	if len(all) == 0 {
		return nil, false, nil
	}
	if w.guest, err = core.GuestDigest(w.cfg); core.CodeOf(err) == core.ErrAssets {
		w.guest, err = "", nil // a snapshot can do without
	}
	if err != nil {
		return nil, false, err
	}
	best, outdated := w.candidates(all)
	if len(best) == 0 && len(outdated) > 0 {
		fmt.Fprintf(stderr, "supermachine: snapshot %s is of an earlier guest kernel or agent and not used: bake again, or give --snapshot\n",
			shortID(outdated[0].ID))
	}
	for _, i := range best {
		vm, err := w.startFrom(ctx, store, i)
		if err == nil {
			return vm, i.Workload, nil
		}
		switch core.CodeOf(err) {
		case core.ErrCanceled, core.ErrNoVirtualization, core.ErrNoMemory: // a boot would fare no better
			return nil, false, err
		case core.ErrNotFound: // removed meanwhile
		default:
			fmt.Fprintf(stderr, "supermachine: warning: snapshot %s is passed over: %v\n", shortID(i.ID), err)
		}
	}
	return nil, false, nil
}

// restoreNamed starts the VM from a certain snapshot, which must fit what was asked for.
func (w *want) restoreNamed(ctx context.Context, name string) (vm *core.VM, attach bool, err error) {
	store, err := core.OpenSnapshots("", nil)
	if err != nil {
		return nil, false, err
	}
	i, err := store.Inspect(name)
	if err != nil {
		return nil, false, err
	}
	if i.Problem != "" {
		return nil, false, fmt.Errorf("snapshot %s cannot be used: %s", name, i.Problem)
	}
	w.accept(i)
	if err := w.misfit(i); err != nil {
		return nil, false, fmt.Errorf("snapshot %s does not fit: %w", name, err)
	}
	vm, err = w.startFrom(ctx, store, i)
	return vm, i.Workload, err
}

// accept takes from a snapshot what no flag says.
func (w *want) accept(i core.SnapshotInfo) {
	accept(w, "memory", &w.cfg.MemoryMiB, i.MemoryMiB)
	accept(w, "cpus", &w.cfg.VCPUs, i.VCPUs)
	accept(w, "disk", &w.cfg.ScratchMiB, i.ScratchMiB)
	if !i.Workload {
		return
	}
	if !w.args {
		accept(w, "entrypoint", &w.command, i.Command)
	}
	accept(w, "env", &w.env, i.Env)
	accept(w, "workdir", &w.dir, i.Dir)
	accept(w, "user", &w.user, i.User)
}

func accept[T any](w *want, flag string, field *T, value T) {
	if !w.given(flag) {
		*field = value
	}
}

// startFrom starts the VM from a snapshot.
func (w *want) startFrom(ctx context.Context, store *core.Snapshots, i core.SnapshotInfo) (*core.VM, error) {
	snap, err := store.Load(ctx, i.ID, core.VerifyOnce)
	if err != nil {
		return nil, err
	}
	defer snap.Close()
	return snap.Start(ctx, core.StartOptions{
		Name: w.cfg.Name, Lifetime: w.cfg.Lifetime, IdleTimeout: w.cfg.IdleTimeout, Network: w.cfg.Network, Volumes: w.cfg.Volumes, Mounts: w.cfg.Mounts,
	})
}
