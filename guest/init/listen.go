package main

import (
	"os"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// bufferSize is the receive buffer of the agent's connections. Linux also sends no more ahead than that, and waits for the other end then.
const bufferSize = 1 << 20

// listen is vsock.Listen with a larger buffer, which connections inherit.
func listen(port uint32) (*vsock.Listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	defer f.Close() // the listener has a duplicate
	for _, option := range []int{unix.SO_VM_SOCKETS_BUFFER_MAX_SIZE, unix.SO_VM_SOCKETS_BUFFER_SIZE} {
		if err := unix.SetsockoptUint64(fd, unix.AF_VSOCK, option, bufferSize); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, unix.SOMAXCONN); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return vsock.FileListener(f)
}
