// Command init is PID 1 of the guest: it mounts the image's root file system, makes the workload's container, serves the agent and takes
// the guest down. Run as "reaper" it is PID 1 of that container.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/mdlayher/vsock"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/guest/agent"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == reaperArg {
		runReaper()
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this program is the init of a supermachine guest and does nothing elsewhere")
		os.Exit(1)
	}
	debug.SetGCPercent(400) // the heap is a few hundred KiB: fewer collections, hardly more memory
	if err := boot(); err != nil {
		fmt.Fprintf(os.Stderr, "\nsupermachine-init: %v\n", err)
		reset()
	}
	select {}
}

// boot brings the guest up. The agent comes first, so that the host is served while the disks are mounted.
func boot() error {
	if err := mountAll(earlyMounts); err != nil {
		return err
	}
	openConsole()
	server := agent.NewServer()
	control, err := listen(wire.ControlPort)
	if err != nil {
		return fmt.Errorf("listen for the host: %w", err)
	}
	proxy, err := listen(wire.ProxyPort)
	if err != nil {
		return fmt.Errorf("listen for the host: %w", err)
	}
	// The guest calls the host, so that the host need not guess when somebody answers.
	host, err := vsock.Dial(vsock.Host, wire.ControlPort, nil)
	if err != nil {
		return fmt.Errorf("call the host: %w", err)
	}
	go server.ServeConn(host)
	go server.Serve(control)
	go server.ServeProxy(proxy)

	cfg, err := readConfig()
	if err != nil {
		return err
	}
	setClock(cfg.Time)
	if err := setup(cfg); err != nil {
		return err
	}
	cgroup, err := makeCgroup()
	if err != nil {
		return err
	}
	reaper, err := startContainer(cfg, cgroup)
	if err != nil {
		return err
	}
	return server.Ready(agent.Config{
		Defaults:  agent.Defaults{Env: cfg.Env, Dir: cfg.Dir, User: cfg.User, StopSignal: cfg.StopSignal},
		Container: agent.Container{PID: reaper, Cgroup: cgroup},
		PowerOff:  powerOff,
		Settle:    settle,
		Adopt:     adopt,
		DialHost:  func(port uint32) (net.Conn, error) { return vsock.Dial(vsock.Host, port, nil) },
		PublicDir: publicDir,
	})
}

// maxHostname is the kernel's limit (uname(2)).
const maxHostname = 64

func readConfig() (wire.BootConfig, error) {
	var cfg wire.BootConfig
	b, err := os.ReadFile(wire.BootConfigPath)
	if err != nil {
		return cfg, err
	}
	if err := msgpack.Unmarshal(b, &cfg); err != nil {
		return cfg, fmt.Errorf("%s: %w", wire.BootConfigPath, err)
	}
	if len(cfg.Hostname) > maxHostname {
		cfg.Hostname = cfg.Hostname[:maxHostname]
	}
	return cfg, os.Remove(wire.BootConfigPath)
}

// setClock steps the clock to the host's where the kernel has no better source.
func setClock(host time.Time) {
	if off := time.Since(host); host.IsZero() || off > 0 && off < time.Minute {
		return
	}
	tv := unix.NsecToTimeval(host.UnixNano())
	unix.Settimeofday(&tv)
}

// openConsole makes /dev/console this process's output.
func openConsole() {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	for i := range 3 {
		unix.Dup2(fd, i)
	}
	if fd > 2 {
		unix.Close(fd)
	}
}

// powerOff brings the writable layer to rest and resets the machine, which is how a guest without ACPI ends; the host was told that this
// is no reboot.
func powerOff() {
	unix.Sync()
	if fd, err := unix.Open(scratchDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
		unix.IoctlSetInt(fd, fsFreeze, 0) // leaves a clean journal, and unlike an unmount nothing can be in its way
	}
	reset()
}

const fsFreeze = 0xc0045877 // FIFREEZE, linux/fs.h

func reset() {
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	fmt.Fprintln(os.Stderr, "supermachine-init: the machine does not reset")
	select {}
}

// write sets a kernel parameter that may be missing.
func write(path, value string) { os.WriteFile(path, []byte(value), 0) }

func setup(cfg wire.BootConfig) error {
	agent.SetLink("lo", true) // programs that need no network run without it
	write("/proc/sys/kernel/printk", "4")
	// An idle guest shall wake up seldom: hundreds share a host. Memory is compacted when somebody needs it, statistics are collected every minute.
	write("/proc/sys/vm/compaction_proactiveness", "0")
	write("/proc/sys/vm/stat_interval", "60")
	nofile := unix.Rlimit{Cur: 1 << 16, Max: 1 << 20}
	write("/proc/sys/fs/nr_open", strconv.Itoa(1<<20))
	unix.Setrlimit(unix.RLIMIT_NOFILE, &nofile)
	// As in other container runtimes, programs that do not run as root may serve low ports and ping.
	write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
	write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
	return mountRoot(cfg)
}
