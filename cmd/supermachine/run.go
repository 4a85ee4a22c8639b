package main

import (
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
	name       string
	cpus       int
	memory     string
	disk       string
	publish    []string
	entrypoint string
	detach     bool
	remove     bool
	timeout    time.Duration
}

func newRun() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [ARG…]",
		Short: "Run an image in a new VM",
		Long: `Run an image in a new VM, as docker run does in a container. The VM ends with the image's
program and leaves nothing behind.

The exit status is the program's; 124 if it ran into --timeout, 125 if supermachine
failed, 126 if the program cannot be executed, 127 if there is none, 128+N after signal N.
Interrupts go to the program; the third one ends the VM.`,
		Example: `  supermachine run alpine echo hello
  supermachine run -it --memory 1g --cpus 2 python:3.12 python
  supermachine run -d --name web -p 8080:80 nginx
  echo 'print(6 * 7)' | supermachine run -i python:3.12 python -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.detach && !isDetached() {
				return detach(cmd)
			}
			return f.run(cmd, args[0], args[1:])
		},
	}
	f.pullFlags.register(cmd, "missing")
	f.execFlags.register(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "name of the VM and host name in it (default: a random ID)")
	fl.IntVar(&f.cpus, "cpus", core.DefaultVCPUs, "number of virtual CPUs, 1 to 8")
	fl.StringVarP(&f.memory, "memory", "m", fmt.Sprintf("%dm", core.DefaultMemoryMiB), "memory, with unit: 512m, 2g")
	fl.StringVar(&f.disk, "disk", fmt.Sprintf("%dm", core.DefaultScratchMiB), "size of the writable layer, with unit; allocated as it is written")
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port: [[ADDRESS:]HOSTPORT:]PORT; the address is 127.0.0.1 unless given")
	fl.StringVar(&f.entrypoint, "entrypoint", "", "run this instead of the image's entrypoint")
	fl.BoolVarP(&f.detach, "detach", "d", false, "run in the background and print the VM's ID")
	fl.BoolVar(&f.remove, "rm", true, "remove the VM when it ends; always so, accepted for docker's sake")
	fl.DurationVar(&f.timeout, "timeout", 0, "kill the program after this time, such as 30s (default: never)")
	return cmd
}

// parseSize reads a number of MiB from a size with unit.
func parseSize(flag, s string) (int, error) {
	units := map[byte]uint64{'b': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40}
	lower := strings.TrimSuffix(strings.ToLower(s), "ib")
	digits, unit := lower, uint64(0)
	if n := len(lower); n > 0 && units[lower[n-1]] != 0 {
		digits, unit = lower[:n-1], units[lower[n-1]]
	}
	v, err := strconv.ParseUint(digits, 10, 32)
	if err != nil || unit == 0 {
		return 0, fmt.Errorf("--%s %q: give a number and a unit, such as 512m or 2g", flag, s)
	}
	return int(v * unit >> 20), nil
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
	cfg = core.Config{Name: f.name, VCPUs: f.cpus}
	if f.cpus == 0 {
		return cfg, nil, fmt.Errorf("--cpus 0: give 1 to 8")
	}
	if cfg.MemoryMiB, err = parseSize("memory", f.memory); err != nil {
		return cfg, nil, err
	}
	if cfg.MemoryMiB == 0 {
		return cfg, nil, fmt.Errorf("--memory %q is less than 1 MiB", f.memory)
	}
	if cfg.ScratchMiB, err = parseSize("disk", f.disk); err != nil {
		return cfg, nil, err
	}
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
	command := core.Command(img, args)
	if cmd.Flags().Changed("entrypoint") {
		command = append([]string{f.entrypoint}, args...)
	}
	if len(command) == 0 || command[0] == "" {
		return fmt.Errorf("%s has no command of its own: say what to run", ref)
	}
	vm, err := f.start(cmd, img, cfg)
	if err != nil {
		return err
	}
	defer vm.Close()
	entry, err := f.publishVM(vm, ref, command, ports)
	if err != nil {
		return err
	}
	defer entry.Close()

	req, err := f.request(command)
	if err != nil {
		return err
	}
	if isDetached() {
		req.Stdout, req.Stderr = entry.Log(), entry.Log()
	}
	req.Main, req.Timeout = true, f.timeout
	p, err := vm.Exec(cmd.Context(), req)
	if err != nil {
		return err
	}
	if err := reportDetached(vm.ID()); err != nil {
		return err
	}
	err = f.follow(p, vm.Kill)
	if core.CodeOf(err) == core.ErrVMEnded {
		return f.explainEnd(vm, err)
	}
	return err
}

// start boots the VM; an interrupt gives it up.
func (f *runFlags) start(cmd *cobra.Command, img *core.Image, cfg core.Config) (*core.VM, error) {
	ctx, stop := interruptible(cmd)
	defer stop()
	return core.Start(ctx, img, cfg)
}

// explainEnd turns the end of the VM under a program into an exit status, and into an error if it was not asked for.
func (f *runFlags) explainEnd(vm *core.VM, err error) error {
	<-vm.Done()
	switch end := vm.End(); end.Reason {
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
