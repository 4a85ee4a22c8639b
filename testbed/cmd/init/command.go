//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/testbed/link"
)

// run runs the command to its end and sends the last frame.
func run(cmd *link.Command, control port, out *link.Writer) error {
	in, err := openPort(link.Stdin)
	if err != nil {
		return err
	}
	unix.Umask(cmd.Umask)
	var std stdio
	if cmd.Terminal != nil {
		std, err = terminal(*cmd.Terminal)
	} else {
		std, err = pipes()
	}
	if err != nil {
		return err
	}
	pid, err := syscall.ForkExec(cmd.Path, cmd.Args, &syscall.ProcAttr{
		Dir:   cmd.Dir,
		Env:   cmd.Env,
		Files: []uintptr{uintptr(std.child[0]), uintptr(std.child[1]), uintptr(std.child[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: cmd.Terminal != nil, Ctty: 0},
	})
	if err != nil {
		return out.Bytes(link.Failed, fmt.Appendf(nil, "%s: %v", cmd.Path, err))
	}
	for _, fd := range std.child {
		unix.Close(fd) // the terminal's is three times the same
	}
	if err := out.Bytes(link.Began, nil); err != nil {
		return err
	}

	var copies sync.WaitGroup
	copies.Go(func() { copyOut(out, link.Stdout, std.stdout) })
	if std.stderr >= 0 {
		copies.Go(func() { copyOut(out, link.Stderr, std.stderr) })
	}
	go copyIn(in, std.stdin, cmd.Terminal != nil)
	go obey(control, pid, std)
	go beat(out)

	status, err := reap(pid)
	if err != nil {
		return err
	}
	// What the command left behind ends with it, which closes the pipes: everything written before is still read.
	killAll()
	copies.Wait()
	if err := flush(); err != nil {
		return fmt.Errorf("write files to the host: %w", err)
	}
	return out.Value(link.Exit, status)
}

// stdio holds file descriptors: the command's and their other ends.
type stdio struct {
	child  [3]int
	stdin  int
	stdout int
	stderr int // -1 with a terminal, where everything comes by stdout
}

func pipes() (s stdio, err error) {
	var p [3][2]int
	for i := range p {
		if err := unix.Pipe2(p[i][:], unix.O_CLOEXEC); err != nil {
			return s, err
		}
	}
	return stdio{child: [3]int{p[0][0], p[1][1], p[2][1]}, stdin: p[0][1], stdout: p[1][0], stderr: p[2][0]}, nil
}

func terminal(size link.Size) (s stdio, err error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, fmt.Errorf("open a terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return s, fmt.Errorf("unlock the terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return s, fmt.Errorf("find the terminal's number: %w", err)
	}
	slave, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, fmt.Errorf("open the terminal: %w", err)
	}
	resize(master, size)
	return stdio{child: [3]int{slave, slave, slave}, stdin: master, stdout: master, stderr: -1}, nil
}

func resize(master int, size link.Size) {
	unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
}

// copyOut sends what comes from fd until its end, which a terminal reports as an error.
func copyOut(out *link.Writer, kind link.Kind, fd int) {
	b := make([]byte, 64<<10)
	for {
		n, err := read(fd, b)
		if n > 0 {
			err = out.Bytes(kind, b[:n])
		}
		if err != nil {
			return
		}
	}
}

// copyIn writes the standard input that comes by the port to fd. It reads on when the command no longer does.
func copyIn(in port, fd int, terminal bool) {
	for {
		_, b, err := link.Read(in)
		if err != nil || len(b) == 0 {
			if !terminal {
				unix.Close(fd)
			}
			return
		}
		writeAll(fd, b)
	}
}

// obey carries out the host's frames while the command runs.
func obey(control port, pid int, std stdio) {
	for {
		kind, b, err := link.Read(control)
		if err != nil {
			return
		}
		switch {
		case kind == link.Signal && len(b) == 1:
			unix.Kill(-pid, syscall.Signal(b[0]))
		case kind == link.Resize:
			var size link.Size
			if link.Decode(b, &size) == nil && std.stderr < 0 {
				resize(std.stdout, size)
			}
		}
	}
}

// beat tells every few seconds that no CPU has died.
func beat(out *link.Writer) {
	runtime.LockOSThread()
	var all unix.CPUSet
	if unix.SchedGetaffinity(0, &all) != nil {
		return
	}
	for {
		for cpu := range all.Count() {
			var one unix.CPUSet
			one.Set(cpu)
			unix.SchedSetaffinity(0, &one)
			unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil) // ends with the CPU's own timer
		}
		if out.Bytes(link.Alive, nil) != nil {
			return
		}
		unix.Nanosleep(&unix.Timespec{Sec: 3}, nil)
	}
}

// reap waits for the process pid and takes the orphans that end before it.
func reap(pid int) (link.Status, error) {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR || err == nil && got != pid:
		case err != nil:
			return link.Status{}, fmt.Errorf("wait for the command: %w", err)
		case ws.Signaled():
			return link.Status{Signal: int(ws.Signal())}, nil
		default:
			return link.Status{Code: ws.ExitStatus()}, nil
		}
	}
}

// read reads again when a signal interrupts it, and returns io.EOF at the end.
func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func writeAll(fd int, b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(fd, b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, os.NewSyscallError("write", err)
		}
		done += n
	}
	return done, nil
}
