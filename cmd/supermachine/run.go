package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/instances"
)

type runFlags struct {
	pullFlags
	execFlags
	sizeFlags
	attachFlags
	name       string
	publish    []string
	entrypoint string
	detach     bool
	remove     bool
	timeout    time.Duration
	cold       bool
	snapshot   string
	lifetime   time.Duration
	idle       time.Duration
}

func newRun() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [ARG…]",
		Short: "Run an image in a new VM",
		Long: `Run an image in a new VM, as docker run does in a container. The VM ends with the image's
program and leaves nothing behind.

If bake has made a snapshot of the image with the same --memory, --cpus and --disk, the VM
goes on from it instead of booting. If just what is to be run was baked, it is running
already: run attaches to it and shows what it has written up to then, unless -i or -t is
given. --cold boots in any case. --snapshot takes a certain snapshot, and from it what
the other flags leave open.

The exit status is the program's; 124 if it ran into --timeout, 125 if supermachine
failed, 126 if the program cannot be executed, 127 if there is none, 128+N after signal N.
Interrupts go to the program; the third one ends the VM.`,
		Example: `  supermachine run alpine echo hello
  supermachine run -it --memory 1g --cpus 2 python:3.12 python
  supermachine run -d --name web -p 8080:80 nginx
  supermachine run --cold -it alpine
  supermachine run -v db.img:/var/lib/postgresql/data -p 5432 postgres
  supermachine run --mount .:/src:ro -w /src golang go test ./...
  supermachine run --network --egress-deny --egress 'allow *.pypi.org:443' python:3.12 pip download six
  echo 'print(6 * 7)' | supermachine run -i python:3.12 python -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.detach && !isDetached() {
				return detach(cmd)
			}
			return f.run(cmd, args[0], args[1:])
		},
	}
	f.register(cmd)
	return cmd
}

func (f *runFlags) register(cmd *cobra.Command) {
	f.pullFlags.register(cmd, "missing")
	f.execFlags.register(cmd)
	f.sizeFlags.register(cmd)
	f.attachFlags.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "name of the VM and host name in it (default: a random ID)")
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port: [[ADDRESS:]HOSTPORT:]PORT; the address is 127.0.0.1 unless given")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "run this instead of the image's entrypoint")
	fl.BoolVarP(&f.detach, "detach", "d", false, "run in the background and print the VM's ID")
	fl.BoolVar(&f.remove, "rm", true, "remove the VM when it ends; always so, accepted for docker's sake")
	fl.DurationVar(&f.timeout, "timeout", 0, "kill the program after this time, such as 30s (default: never)")
	fl.DurationVar(&f.lifetime, "lifetime", 0, "end the VM after this time, such as 1h (default: never)")
	fl.DurationVar(&f.idle, "idle-timeout", 0, "pause the VM when nothing but its own program has used it for this time; a connection wakes it up")
	fl.BoolVar(&f.cold, "cold", false, "boot, whatever snapshots there are")
	fl.StringVar(&f.snapshot, "snapshot", "", "go on from this snapshot, by ID, the beginning of an ID, or name")
}

// port is a published port.
type port struct {
	address string // on the host
	guest   uint16
}

func parsePort(s string) (port, error) {
	fail := func() (port, error) {
		return port{}, fmt.Errorf("--publish %q: give [[ADDRESS:]HOSTPORT:]PORT, such as 8080:80", s)
	}
	host, guest := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, guest = s[:i], s[i+1:]
	}
	guest = strings.TrimSuffix(guest, "/tcp")
	n, err := strconv.ParseUint(guest, 10, 16)
	if err != nil || n == 0 {
		return fail()
	}
	address, hostPort := "127.0.0.1", host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		address, hostPort = strings.Trim(host[:i], "[]"), host[i+1:]
	}
	if hostPort == "" {
		hostPort = "0"
	}
	if _, err := strconv.ParseUint(hostPort, 10, 16); err != nil {
		return fail()
	}
	return port{net.JoinHostPort(address, hostPort), uint16(n)}, nil
}

// config checks the flags before anything is pulled.
func (f *runFlags) config() (cfg core.Config, ports []port, err error) {
	if f.cold && f.snapshot != "" {
		return cfg, nil, fmt.Errorf("--cold takes no snapshot: leave out --cold or --snapshot")
	}
	if cfg, err = f.sizes(); err != nil {
		return cfg, nil, err
	}
	if _, err := f.parseLimits(); err != nil {
		return cfg, nil, err
	}
	if err := f.attachFlags.parse(&cfg); err != nil {
		return cfg, nil, err
	}
	cfg.Name, cfg.Lifetime, cfg.IdleTimeout = f.name, f.lifetime, f.idle
	for _, s := range f.publish {
		p, err := parsePort(s)
		if err != nil {
			return cfg, nil, err
		}
		ports = append(ports, p)
	}
	return cfg, ports, cfg.Check()
}

func (f *runFlags) run(cmd *cobra.Command, ref string, args []string) error {
	cfg, ports, err := f.config()
	if err != nil {
		return err
	}
	img, err := f.pull(cmd, ref)
	if err != nil {
		return err
	}
	w := f.want(cmd, ref, img, cfg, args)
	vm, attach, err := f.start(cmd, img, &w)
	if err != nil {
		return err
	}
	defer vm.Close()
	entry, err := f.publishVM(vm, ref, w.command, ports)
	if err != nil {
		return err
	}
	defer entry.Close()

	err = f.follow(cmd.Context(), func(ctx context.Context) (program, error) {
		p, err := f.program(ctx, vm, attach, entry, w.command)
		if err != nil {
			return nil, err
		}
		return p, reportDetached(vm.ID())
	}, vm.Kill)
	if core.CodeOf(err) == core.ErrVMEnded {
		return f.explainEnd(vm, err)
	}
	return err
}

// start makes the VM and tells whether its program runs already; an interrupt gives it up.
func (f *runFlags) start(cmd *cobra.Command, img *core.Image, w *want) (vm *core.VM, attach bool, err error) {
	ctx, stop := interruptible(cmd)
	defer stop()
	if f.snapshot != "" {
		return w.restoreNamed(ctx, f.snapshot)
	}
	if err := w.checkCommand(); err != nil {
		return nil, false, err
	}
	if !f.cold {
		if vm, attach, err = w.restore(ctx, cmd.ErrOrStderr()); vm != nil || err != nil {
			return vm, attach, err
		}
	}
	vm, err = core.Start(ctx, img, w.cfg)
	return vm, false, err
}

// program starts what the VM is for, or attaches to it.
func (f *runFlags) program(ctx context.Context, vm *core.VM, attach bool, entry *instances.Instance, command []string) (program, error) {
	req, err := f.request(command)
	if err != nil {
		return nil, err
	}
	if isDetached() {
		req.Stdout, req.Stderr = entry.Log(), entry.Log()
	}
	if attach {
		p, err := vm.Follow(ctx, core.Attachment{Stdout: req.Stdout, Stderr: req.Stderr})
		if err != nil {
			return nil, err
		}
		return limit(p, f.timeout), nil
	}
	req.Main, req.Timeout = true, f.timeout
	p, err := vm.Exec(ctx, req)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// explainEnd turns the end of the VM under a program into an exit status, and into an error if it was not asked for.
func (f *runFlags) explainEnd(vm *core.VM, err error) error {
	<-vm.Done()
	switch end := vm.End(); end.Reason {
	case core.EndExpired:
		fmt.Fprintf(os.Stderr, "supermachine: VM %s ended after its lifetime of %v\n", vm.Name(), f.lifetime)
		return exitStatus(exitTimeout)
	case core.EndStopped, core.EndPoweredOff:
		return exitStatus(128 + 15)
	default:
		return fmt.Errorf("VM %s ended: %v", vm.Name(), end)
	}
}

// publishVM makes the VM visible to ps, exec and stop, and its ports reachable.
func (f *runFlags) publishVM(vm *core.VM, ref string, command []string, ports []port) (*instances.Instance, error) {
	entry, err := instances.Create(instances.Dir(), vm.ID())
	if err != nil {
		return nil, err
	}
	info := instances.Info{
		ID: vm.ID(), Name: vm.Name(), Image: ref, Digest: vm.Image().Digest, Command: command, PID: os.Getpid(), Created: vm.Started(),
		MemoryMiB: vm.Config().MemoryMiB, VCPUs: vm.Config().VCPUs,
	}
	err = func() error {
		for _, p := range ports {
			forward, err := vm.Forward("tcp", p.address, p.guest)
			if err != nil {
				return err
			}
			info.Ports = append(info.Ports, fmt.Sprintf("%v->%d", forward.Addr(), p.guest))
		}
		l, err := net.Listen("unix", entry.Socket())
		if err != nil {
			return err
		}
		go vm.ServeAgent(l)
		return entry.Publish(info)
	}()
	if err != nil {
		entry.Close()
		return nil, err
	}
	return entry, nil
}
