//go:build linux

// Command init is PID 1 of the emulated host: it mounts the host's root, runs one command and tells how it went.
package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/testbed/link"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this program is the init of the testbed's emulated host and does nothing elsewhere")
		os.Exit(1)
	}
	if err := boot(); err != nil {
		fmt.Printf("\ntestbed init: %v\n", err)
		// With -no-reboot this ends QEMU.
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	select {} // the host ends QEMU after the last frame
}

// boot brings the emulated host up and runs the command; it returns an error where nobody can be told.
func boot() error {
	if err := mountEarly(); err != nil {
		return err
	}
	control, err := openPort(link.Control)
	if err != nil {
		return err
	}
	out := link.NewWriter(control)
	if err := out.Bytes(link.Hello, nil); err != nil {
		return err
	}
	if err := mountHost(); err != nil {
		return err
	}
	kind, b, err := link.Read(control)
	if err != nil {
		return err
	}
	var cmd link.Command
	if err := link.Decode(b, &cmd); err != nil || kind != link.Start {
		return fmt.Errorf("bad first frame of kind %d: %w", kind, err)
	}
	if err := prepare(&cmd); err != nil {
		return out.Bytes(link.Failed, []byte(err.Error()))
	}
	return run(&cmd, control, out)
}

// port is an open virtio-serial port. The calls block a thread: with the runtime's poller, a port that the other side has not
// opened yet looks hung up.
type port int

func (p port) Read(b []byte) (int, error)  { return read(int(p), b) }
func (p port) Write(b []byte) (int, error) { return writeAll(int(p), b) }

// openPort waits for the port of this name and for the host's end of it.
func openPort(name string) (port, error) {
	const ports = "/sys/class/virtio-ports"
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		entries, _ := os.ReadDir(ports)
		for _, e := range entries {
			got, _ := os.ReadFile(ports + "/" + e.Name() + "/name")
			if string(got) != name+"\n" {
				continue
			}
			fd, err := unix.Open("/dev/"+e.Name(), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return 0, fmt.Errorf("open port %s: %w", name, err)
			}
			for { // until the kernel has heard that the host's end is open, reading says end of file
				poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				if _, err := unix.Poll(poll, 0); err == nil && poll[0].Revents&unix.POLLHUP == 0 {
					return port(fd), nil
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
	return 0, fmt.Errorf("port %s does not appear", name)
}
