// Command guest is the guest's half of the benchmarks: a static program that is copied into a VM.
//
//	guest spawn N PROGRAM [ARG…]   runs a program N times and prints the nanoseconds of each, a line each
//	guest serve PORT               serves bench's stream protocol on a vsock port
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/bench/stream"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage: guest spawn N PROGRAM… | guest serve PORT")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	if args[0] == "spawn" {
		return spawn(n, args[2:])
	}
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, uint32(n), nil) // Listen would ask /dev/vsock, which a container has not
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := enlarge(c.(*vsock.Conn)); err != nil {
			return err
		}
		go stream.Serve(c)
	}
}

// enlarge gives a connection the buffer that the agent's have.
func enlarge(c *vsock.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for _, option := range []int{unix.SO_VM_SOCKETS_BUFFER_MAX_SIZE, unix.SO_VM_SOCKETS_BUFFER_SIZE} {
			failed = errors.Join(failed, unix.SetsockoptUint64(int(fd), unix.AF_VSOCK, option, 1<<20))
		}
	})
	return errors.Join(err, failed)
}

func spawn(n int, argv []string) error {
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}}
	for range n {
		start := time.Now()
		pid, err := syscall.ForkExec(argv[0], argv, attr)
		if err != nil {
			return err
		}
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			return err
		}
		fmt.Println(time.Since(start).Nanoseconds())
	}
	return nil
}
