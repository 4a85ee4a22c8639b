package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// stdio is the agent's side of an exec's streams, and the child's side until it is forked.
type stdio struct {
	stdin   *os.File      // writing end, nil if the exec has no stdin
	outputs []*output     // stdout and stderr, or the terminal
	turn    chan struct{} // holds a token of whom writes to stdin, where several may
	term    *os.File      // the terminal's controlling side, nil without one
	ends    [3]int        // stdin, stdout, stderr of the child
}

// newStdio makes pipes, or a terminal in the container's devpts. It runs on a thread in the container.
func newStdio(req *wire.Exec, owner *syscall.Credential) (*stdio, error) {
	s := &stdio{ends: [3]int{-1, -1, -1}, turn: make(chan struct{}, 1)}
	make := s.openPipes
	if req.TTY {
		make = s.openTerminal
	}
	err := make(req)
	if err == nil {
		err = s.chown(owner)
	}
	if err != nil {
		s.closeEnds()
		s.close()
		return nil, fmt.Errorf("make the program's streams: %w", err)
	}
	return s, nil
}

func (s *stdio) openPipes(req *wire.Exec) (err error) {
	if req.Stdin {
		var p [2]int
		if err = unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return err
		}
		s.ends[0], s.stdin = p[0], ownEnd(p[1], "stdin")
	} else if s.ends[0], err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	for i, name := range []string{"stdout", "stderr"} {
		var p [2]int
		if err = unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return err
		}
		s.ends[1+i] = p[1]
		s.outputs = append(s.outputs, &output{from: ownEnd(p[0], name), channel: uint8(wire.ChannelOut + i)})
	}
	return nil
}

func (s *stdio) openTerminal(req *wire.Exec) error {
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/pts/ptmx", Err: err}
	}
	s.term = ownEnd(master, "terminal")
	s.outputs = []*output{{from: s.term, channel: wire.ChannelOut, terminal: true}}
	if req.Stdin {
		s.stdin = s.term
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock the terminal: %w", err)
	}
	for i := range s.ends {
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			return fmt.Errorf("open the terminal: %w", errno)
		}
		s.ends[i] = int(fd)
	}
	size := unix.Winsize{Row: 24, Col: 80}
	if req.Rows != 0 && req.Cols != 0 {
		size = unix.Winsize{Row: req.Rows, Col: req.Cols}
	}
	return unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &size)
}

// ownEnd makes a file of the agent's end, which the runtime polls; the child's end stays blocking, as programs expect.
func ownEnd(fd int, name string) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

// chown gives the streams to the program's user: else /dev/stdout could not be opened by it.
func (s *stdio) chown(owner *syscall.Credential) error {
	if owner.Uid == 0 {
		return nil
	}
	for i, fd := range s.ends {
		if i == 0 && s.stdin == nil {
			continue // /dev/null is everybody's
		}
		if err := unix.Fchown(fd, int(owner.Uid), -1); err != nil {
			return fmt.Errorf("give the streams to user %d: %w", owner.Uid, err)
		}
	}
	return nil
}

func (s *stdio) closeEnds() {
	for i, fd := range s.ends {
		if fd >= 0 {
			unix.Close(fd)
			s.ends[i] = -1
		}
	}
}

// close closes the agent's ends but those of outputs that somebody else holds open.
func (s *stdio) close() {
	if s.stdin != nil {
		s.stdin.Close()
	}
	if s.term != nil {
		s.term.Close()
	}
	for _, o := range s.outputs {
		if !o.held {
			o.from.Close()
		}
	}
}

func (s *stdio) resize(rows, cols uint16) {
	if s.term == nil {
		return
	}
	if raw, err := s.term.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}) })
	}
}

// feed writes what the client sends to the program's stdin, until either ends.
func (s *stdio) feed(in *wire.Inbox) {
	_, err := in.WriteTo(s.stdin)
	if s.term == nil || err == nil {
		s.endStdin()
	}
	in.Discard() // the program may have closed its stdin; the client need not know
}

// endStdin lets the program see the end of its input: a terminal's is Ctrl-D.
func (s *stdio) endStdin() {
	if s.term == nil {
		s.stdin.Close()
	} else {
		s.stdin.Write([]byte{4})
	}
}

// output is one of the program's outputs.
type output struct {
	from     *os.File
	channel  uint8
	terminal bool
	held     bool // somebody else still held it when it was given up
}

// drainTime is how long the result of an exec whose process has exited waits for output that others may still write.
const drainTime = 100 * time.Millisecond

// drain makes copy end soon if others than the exited process hold the output open. If nobody does, it ends by itself.
func (o *output) drain() { o.from.SetReadDeadline(time.Now().Add(drainTime)) }

// copy hands the output to the client until it ends, drain gives it up, or the client is gone.
func (o *output) copy(to io.Writer) {
	err := wire.Copy(to, o.from)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		o.sweep(to)
	}
}

// sweep takes what is in the pipe now, at most what a pipe holds, and finds out whether somebody still has the other end. Who has it may go on
// writing, to nowhere: a server started in the background must not die of SIGPIPE at its next log line. A terminal is hung up instead.
func (o *output) sweep(to io.Writer) {
	o.from.SetReadDeadline(time.Time{})
	raw, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	const pipeSize = 1 << 20 // the most an unprivileged process may make of it
	buf := make([]byte, 16<<10)
	for total := 0; total < pipeSize; {
		var n int
		var rerr error
		if raw.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), buf) }) != nil {
			return
		}
		if rerr == unix.EAGAIN {
			break
		}
		if n <= 0 || rerr != nil {
			return
		}
		total += n
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
	o.held = true
	if o.terminal {
		return
	}
	go func() {
		io.Copy(io.Discard, o.from)
		o.from.Close()
	}()
}

// truncated reports whether somebody still held an output when it was given up.
func (s *stdio) truncated() bool {
	for _, o := range s.outputs {
		if o.held {
			return true
		}
	}
	return false
}
