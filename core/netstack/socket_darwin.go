package netstack

import (
	"syscall"

	"golang.org/x/sys/unix"
)

const sendFlags = 0

// prepareSocket keeps a connection that the other side closed from raising SIGPIPE in a program that is not Go.
func prepareSocket(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NOSIGPIPE, 1) }); e != nil {
		return e
	}
	return err
}
