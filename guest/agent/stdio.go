package agent

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// stdio is the agent's side of an exec's streams, and the child's side until it is forked.
type stdio struct {
	stdin *os.File   // writing end, nil if the exec has no stdin
	out   *os.File   // reading end of stdout, or the terminal
	err   *os.File   // reading end of stderr, nil with a terminal
	term  *os.File   // the terminal's controlling side, nil without one
	child []*os.File // stdin, stdout, stderr of the child

	readers []*output
}

// newStdio makes pipes, or a terminal in the container's devpts.
func (s *Server) newStdio(req *wire.Exec) (*stdio, error) {
	io := &stdio{}
	err := func() error {
		if req.TTY {
			return io.openTerminal(s.files, req)
		}
		if req.Stdin {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			io.stdin, io.child = w, append(io.child, r)
		} else {
			null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
			if err != nil {
				return err
			}
			io.child = append(io.child, null)
		}
		for _, end := range []**os.File{&io.out, &io.err} {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			*end, io.child = r, append(io.child, w)
		}
		return nil
	}()
	if err != nil {
		io.closeChildEnds()
		io.close()
		return nil, fmt.Errorf("make the program's streams: %w", err)
	}
	return io, nil
}

func (io *stdio) openTerminal(files *nsThread, req *wire.Exec) (err error) {
	var master, slave int
	files.do(func() {
		if master, err = unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return
		}
		var n int
		if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(master, unix.TIOCGPTN)
		}
		if err == nil {
			slave, err = unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			unix.Close(master)
		}
	})
	if err != nil {
		return err
	}
	io.term = os.NewFile(uintptr(master), "terminal")
	io.out = io.term
	if req.Stdin {
		io.stdin = io.term
	}
	tty := os.NewFile(uintptr(slave), "tty")
	io.child = []*os.File{tty, tty, tty}
	size := unix.Winsize{Row: 24, Col: 80}
	if req.Rows != 0 && req.Cols != 0 {
		size = unix.Winsize{Row: req.Rows, Col: req.Cols}
	}
	return unix.IoctlSetWinsize(slave, unix.TIOCSWINSZ, &size)
}

// childFDs returns the descriptors of the child's stdin, stdout and stderr. Fd makes them blocking, as programs expect them.
func (io *stdio) childFDs() []uintptr {
	var fds []uintptr
	for _, f := range io.child {
		fds = append(fds, f.Fd())
	}
	return fds
}

func (io *stdio) closeChildEnds() {
	for _, f := range io.child {
		f.Close()
	}
	io.child = nil
}

func (io *stdio) close() {
	for _, f := range []*os.File{io.stdin, io.out, io.err} {
		if f != nil {
			f.Close()
		}
	}
}

// feed writes what the client sends to the program's stdin, until either ends.
func (io *stdio) feed(in *wire.Inbox) {
	for {
		b, err := in.Next()
		if err != nil {
			break
		}
		if _, err := io.stdin.Write(b); err != nil {
			in.Discard() // the program does not read any more; the client need not know
			break
		}
	}
	if io.term == nil {
		io.stdin.Close()
		return
	}
	io.term.Write([]byte{4}) // a terminal's end of input is Ctrl-D
}

// output copies one of the program's outputs to the client.
type output struct {
	from      *os.File
	to        *wire.Outbox
	truncated atomic.Bool
}

// outputs returns the copiers of stdout and stderr.
func (io *stdio) outputs(st *stream) []*output {
	io.readers = []*output{{from: io.out, to: st.out}}
	if io.err != nil {
		io.readers = append(io.readers, &output{from: io.err, to: st.err})
	}
	return io.readers
}

// copy runs until the output ends, drain gives it up, or the client is gone.
func (o *output) copy() {
	buf := make([]byte, 32<<10)
	for {
		n, err := o.from.Read(buf)
		if n > 0 {
			if _, err := o.to.Write(buf[:n]); err != nil {
				return
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			o.sweep(buf)
			return
		default:
			return // EOF, or EIO from a terminal that nobody has open any more
		}
	}
}

// sweep takes what is in the pipe now, at most what a pipe holds, and finds out whether someone still has the other end.
func (o *output) sweep(buf []byte) {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	const pipeSize = 1 << 20 // the most an unprivileged process may make of it
	for total := 0; total < pipeSize; {
		var n int
		var rerr error
		if raw.Control(func(fd uintptr) { n, rerr = syscall.Read(int(fd), buf) }) != nil {
			return
		}
		if rerr == syscall.EAGAIN {
			break
		}
		if n <= 0 || rerr != nil {
			return
		}
		total += n
		if _, err := o.to.Write(buf[:n]); err != nil {
			return
		}
	}
	o.truncated.Store(true)
}

// drain ends the copying of outputs that others than the exited process hold open. Outputs that nobody holds end by themselves.
func (io *stdio) drain() {
	for _, o := range io.readers {
		o.from.SetReadDeadline(time.Now().Add(drainTime))
	}
}

// truncated reports whether someone still held an output when it was given up.
func (io *stdio) truncated() bool {
	for _, o := range io.readers {
		if o.truncated.Load() {
			return true
		}
	}
	return false
}
