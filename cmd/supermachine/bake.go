package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
)

type bakeFlags struct {
	pullFlags
	programFlags
	sizeFlags
	name       string
	entrypoint string
	port       uint16
	ready      string
	warmup     []string
	timeout    time.Duration
	bootOnly   bool
}

func newBake() *cobra.Command {
	var f bakeFlags
	cmd := &cobra.Command{
		Use:   "bake [flags] IMAGE [ARG…]",
		Short: "Make a snapshot of an image that run goes on from",
		Long: `Boot an image, bring its command to readiness and freeze the VM into a snapshot, so that
run need not do it again. The snapshot's ID is printed. What was baked already from the
same image with the same flags is used again.

With a command, --entrypoint, --port or --ready, or if the image exposes a TCP port, the
command is started and is in the snapshot. Else, or with --boot-only, the snapshot is of
a VM in which nothing runs yet, for any command.

--ready says when the command is ready:
  port[:N]           something listens on the port; this is the default if there is one
  settle[:DURATION]  nothing uses the CPU for so long; this is the default without a port
  command:PROGRAM …  the program, which is tried again and again, succeeds
  none               at once

Each --warmup is run in the ready VM by /bin/sh -c, with the -e, -w and -u of the command.`,
		Example: `  supermachine bake nginx
  supermachine bake --boot-only --memory 1g --cpus 2 python:3.12
  supermachine bake --warmup 'python3 -c "import numpy"' python:3.12
  supermachine bake --ready 'command:redis-cli ping' redis
  supermachine bake --name small --ready settle:2s -e WORKERS=1 localhost:5000/app`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, args[0], args[1:])
		},
	}
	f.register(cmd)
	return cmd
}

func (f *bakeFlags) register(cmd *cobra.Command) {
	f.pullFlags.register(cmd, "missing")
	f.programFlags.register(cmd)
	f.sizeFlags.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "name of the snapshot, to find it by; another name makes another snapshot")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "run this instead of the image's entrypoint")
	fl.Uint16Var(&f.port, "port", 0, "TCP port of the command in the VM (default: the first that the image exposes)")
	fl.StringVar(&f.ready, "ready", "", "when the command is ready, see above")
	fl.StringArrayVar(&f.warmup, "warmup", nil, "shell command to run in the ready VM before it is frozen; may be given several times, in order")
	fl.DurationVar(&f.timeout, "timeout", time.Minute, "how long the command may take until it is ready, and each warmup until it ends")
	fl.BoolVar(&f.bootOnly, "boot-only", false, "start no command")
}

// spec checks the flags before anything is pulled.
func (f *bakeFlags) spec(cmd *cobra.Command, args []string) (spec core.BakeSpec, err error) {
	given := cmd.Flags().Changed
	cfg, err := f.sizes()
	if err != nil {
		return spec, err
	}
	spec = core.BakeSpec{
		Name: f.name, Cmd: args, Env: f.environment(), User: f.user, Dir: f.workdir, BootOnly: f.bootOnly, GuestPort: f.port, Timeout: f.timeout,
		MemoryMiB: cfg.MemoryMiB, VCPUs: cfg.VCPUs, ScratchMiB: cfg.ScratchMiB,
	}
	switch {
	case f.bootOnly && f.asked(cmd, args):
		return spec, errors.New("--boot-only starts no command: leave it out, or the command, --entrypoint, --port and --ready")
	case given("entrypoint") && f.entrypoint == "":
		return spec, errors.New("--entrypoint is empty: give a program, or leave it out")
	case given("port") && f.port == 0:
		return spec, errors.New("--port 0: give 1 to 65535")
	case f.timeout <= 0:
		return spec, fmt.Errorf("--timeout %v: give some time, such as 30s", f.timeout)
	}
	if given("entrypoint") {
		spec.Entrypoint = []string{f.entrypoint}
	}
	if given("ready") {
		if spec.Ready, err = core.ParseReadiness(f.ready); err != nil {
			return spec, err
		}
	}
	for _, w := range f.warmup {
		if w == "" {
			return spec, errors.New("--warmup is empty: give a shell command, or leave it out")
		}
		spec.Warmup = append(spec.Warmup, []string{"/bin/sh", "-c", w})
	}
	return spec, nil
}

// asked reports whether anything was said of a command that is to run in the snapshot.
func (f *bakeFlags) asked(cmd *cobra.Command, args []string) bool {
	given := cmd.Flags().Changed
	return len(args) > 0 || given("entrypoint") || given("port") || given("ready")
}

func (f *bakeFlags) run(cmd *cobra.Command, ref string, args []string) error {
	spec, err := f.spec(cmd, args)
	if err != nil {
		return err
	}
	img, err := f.pull(cmd, ref)
	if err != nil {
		return err
	}
	store, err := core.OpenSnapshots("", nil)
	if err != nil {
		return err
	}
	// The image is there: asking the registry again could only give another one.
	spec.Ref, spec.Pull = ref, core.PullOptions{Policy: core.PullNever, Platform: f.platform, Insecure: f.insecure}
	show := newSteps(cmd.ErrOrStderr(), ref, f.quiet)
	if !f.asked(cmd, args) && core.ExposedPort(img) == 0 && !f.bootOnly {
		spec.BootOnly = true
		show.note("no port is exposed and no command given: only the boot is baked")
	}
	baked := false
	spec.Progress = func(step string) {
		baked = true
		show.step(step)
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	begin := time.Now()
	snap, err := store.Bake(ctx, spec)
	show.done()
	if err != nil {
		return err
	}
	defer snap.Close()
	if baked {
		show.note(fmt.Sprintf("baked in %.1f s", time.Since(begin).Seconds()))
	} else {
		show.note("already baked, " + ago(snap.Info().Created))
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), snap.Info().ID)
	return err
}
