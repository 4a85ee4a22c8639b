package api

import (
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
)

// socketPair returns a connection and the other end of it, a file descriptor for the caller: blocking, and closed when another program is
// executed.
func socketPair() (*net.UnixConn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, &core.Error{Code: core.CodeOf(err), Op: "make a socket pair", Err: err}
	}
	f := os.NewFile(uintptr(fds[0]), "stream")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		unix.Close(fds[1])
		return nil, -1, &core.Error{Code: core.CodeOf(err), Op: "make a socket pair", Err: err}
	}
	return c.(*net.UnixConn), fds[1], nil
}

// streams are socket pairs of which all are closed together if one cannot be made.
type streams struct {
	conns []*net.UnixConn
	fds   []int
}

func (s *streams) add() (*net.UnixConn, int, error) {
	c, fd, err := socketPair()
	if err == nil {
		s.conns, s.fds = append(s.conns, c), append(s.fds, fd)
	}
	return c, fd, err
}

// want adds a pair if the caller wants one; else the descriptor is -1.
func (s *streams) want(wanted bool) (*net.UnixConn, int, error) {
	if !wanted {
		return nil, -1, nil
	}
	return s.add()
}

func (s *streams) close() {
	for i, c := range s.conns {
		c.Close()
		unix.Close(s.fds[i])
	}
}
