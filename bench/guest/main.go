// Command guest is the guest's half of the benchmarks: a static program that is copied into a VM.
//
//	guest spawn N PROGRAM [ARG…]   runs a program N times and prints the nanoseconds of each, a line each
//	guest serve PORT               serves bench's stream protocol on a vsock port
//	guest listen PORT              the same on a TCP port of the loopback address
//	guest dial ADDRESS             the same on a connection to a TCP address
//	guest mount9p TAG DIR          mounts a directory of the peer's host
//	guest rand4k N FILE            reads and writes N random blocks of 4 KiB past the page cache and prints the nanoseconds of all
//	guest seq1m N FILE             writes and reads N MiB past the page cache and prints the nanoseconds of all
//	guest read N FILE              reads a file N times and prints the nanoseconds of each
//	guest lstat N DIR              looks at every file below a directory N times and prints the nanoseconds of each
package main

import (
	"errors"
	"fmt"
	"net"
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
		return fmt.Errorf("usage: guest spawn N PROGRAM… | guest serve PORT | … (see the source)")
	}
	if args[0] == "dial" {
		c, err := net.Dial("tcp", args[1])
		if err != nil {
			return err
		}
		stream.Serve(c)
		return nil
	}
	if args[0] == "mount9p" {
		if err := os.MkdirAll(args[2], 0o755); err != nil {
			return err
		}
		return unix.Mount(args[1], args[2], "9p", 0, "trans=virtio,version=9p2000.L,msize=1048576")
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "spawn":
		return spawn(n, args[2:])
	case "rand4k":
		return random(n, args[2])
	case "seq1m":
		return sequential(n, args[2])
	case "read":
		return readWhole(n, args[2])
	case "lstat":
		return lookAt(n, args[2])
	case "listen":
		l, err := net.Listen("tcp", "127.0.0.1:"+args[1])
		if err != nil {
			return err
		}
		return serve(l, func(net.Conn) error { return nil })
	}
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, uint32(n), nil) // Listen would ask /dev/vsock, which a container has not
	if err != nil {
		return err
	}
	return serve(l, func(c net.Conn) error { return enlarge(c.(*vsock.Conn)) })
}

func serve(l net.Listener, prepare func(net.Conn) error) error {
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if err := prepare(c); err != nil {
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
