//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/supermachine/supermachine/testbed/link"
)

const (
	upLimit      = 2 * time.Minute // for the emulated host to come up, on a machine that is busy
	killLimit    = 5 * time.Second // for the command to end after it was killed, and for its files to be written
	beatLimit    = 24              // how often beatTick may pass without a sign of life
	beatTick     = 5 * time.Second // on a machine that stood still it passes once, however long that was
	interruptGap = 5 * time.Second // two interrupts within this time end the emulated host
)

// outcome is how the emulated host's frames ended.
type outcome struct {
	status int
	err    error
}

// brokenError is a failure of the emulated host itself.
type brokenError struct{ what, console string }

func (e *brokenError) Error() string {
	return "the emulated host " + e.what + "; its console ended with\n" + e.console
}

// emulate runs the command in an emulated host.
func emulate(o *options, path string) (int, error) {
	cmd, err := o.describe(path)
	if err != nil {
		return exitBroken, err
	}
	kernel, err := o.prepareQEMU()
	if err != nil {
		return exitBroken, err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, append(slices.Clone(forwarded), unix.SIGWINCH)...)
	var stdin io.Reader = os.Stdin
	for again := o.again; ; again-- {
		status, err := emulateOnce(o, cmd, kernel, signals, stdin)
		if _, broken := errors.AsType[*brokenError](err); !broken || again == 0 {
			return status, err
		}
		fmt.Fprintf(os.Stderr, "testbed: %v\ntestbed: this is a fault of the emulator's: running the command again\n", err)
		stdin = strings.NewReader("")
	}
}

func emulateOnce(o *options, cmd *link.Command, kernel string, signals <-chan os.Signal, stdin io.Reader) (int, error) {
	q, err := startQEMU(o, kernel)
	if err != nil {
		return exitBroken, err
	}
	defer q.kill()
	if o.terminal && isTerminal(0) {
		size := terminalSize()
		cmd.Terminal = &size
		if old, err := term.MakeRaw(0); err == nil {
			defer term.Restore(0, old)
		}
	}
	out := link.NewWriter(q.control)
	began, alive, done := make(chan struct{}), make(chan struct{}, 1), make(chan outcome, 1)
	go func() { done <- serve(q, out, cmd, stdin, began, alive) }()
	tick := time.NewTicker(beatTick)
	defer tick.Stop()
	missed := 0

	var limit <-chan time.Time
	if o.timeLimit > 0 {
		limit = time.After(o.limit())
	}
	up := time.After(upLimit)
	var giveUp <-chan time.Time
	var interrupted time.Time
	timedOut := false
	for {
		select {
		case r := <-done:
			if timedOut {
				return exitTimeLimit, o.limitError()
			}
			return r.status, r.err
		case <-began:
			began, up = nil, nil
		case <-alive:
			missed = 0
		case <-tick.C:
			if missed++; began == nil && missed >= beatLimit {
				return exitBroken, q.broken("hangs")
			}
		case <-up:
			return exitBroken, q.broken(fmt.Sprintf("is not up after %v", upLimit))
		case <-q.console.hung:
			return exitBroken, q.broken("hangs")
		case <-limit:
			if began != nil { // nothing runs yet that could be ended in order
				return exitTimeLimit, o.limitError()
			}
			timedOut = true
			giveUp = time.After(killLimit)
			go out.Bytes(link.Signal, []byte{byte(unix.SIGKILL)})
		case <-giveUp:
			return exitTimeLimit, o.limitError()
		case s := <-signals:
			switch {
			case s == unix.SIGWINCH:
				if cmd.Terminal != nil {
					go out.Value(link.Resize, terminalSize())
				}
				continue
			case began != nil: // nothing runs yet that could take it
				return exitSignalBase + int(s.(syscall.Signal)), nil
			case s == unix.SIGINT && time.Since(interrupted) < interruptGap:
				return exitSignalBase + int(unix.SIGINT), errors.New("interrupted twice: the emulated host is ended")
			case s == unix.SIGINT:
				interrupted = time.Now()
			}
			go out.Bytes(link.Signal, []byte{byte(s.(syscall.Signal))})
		}
	}
}

// serve exchanges frames with the init until the last one. It closes began when the command runs, and alive holds something after each sign
// of life.
func serve(q *qemu, out *link.Writer, cmd *link.Command, stdin io.Reader, began, alive chan<- struct{}) outcome {
	for {
		kind, b, err := link.Read(q.control)
		if err != nil {
			<-q.ended
			return outcome{exitBroken, q.broken("died")}
		}
		switch kind {
		case link.Hello:
			cmd.Now = time.Now()
			err = out.Value(link.Start, cmd)
		case link.Began:
			close(began)
			go sendStdin(q.stdin, stdin)
		case link.Alive:
			select {
			case alive <- struct{}{}:
			default: // one that is not seen yet says the same
			}
		case link.Stdout:
			_, err = os.Stdout.Write(b)
		case link.Stderr:
			_, err = os.Stderr.Write(b)
		case link.Failed:
			return outcome{exitCannotRun, errors.New(string(b))}
		case link.Exit:
			var s link.Status
			if err := link.Decode(b, &s); err != nil {
				return outcome{exitBroken, err}
			}
			if s.Signal != 0 {
				return outcome{status: exitSignalBase + s.Signal}
			}
			return outcome{status: s.Code}
		}
		if err != nil {
			return outcome{exitBroken, err}
		}
	}
}

// sendStdin sends the standard input and its end.
func sendStdin(port io.Writer, stdin io.Reader) {
	out := link.NewWriter(port)
	b := make([]byte, 64<<10)
	for {
		n, err := stdin.Read(b)
		if n > 0 && out.Bytes(link.Data, b[:n]) != nil {
			return
		}
		if err != nil {
			out.Bytes(link.Data, nil)
			return
		}
	}
}

// describe says what to run, as it would run here.
func (o *options) describe(path string) (*link.Command, error) {
	dir, err := unix.Getwd()
	if err != nil {
		return nil, fmt.Errorf("find the working directory: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	umask := unix.Umask(0)
	unix.Umask(umask)
	return &link.Command{
		Path: path, Args: o.command, Dir: dir, Umask: umask, Files: min(files.Max, 1<<20), Hostname: host,
		Env:    append(slices.DeleteFunc(os.Environ(), isMark), mark),
		Shares: shares(append([]string{path, dir}, o.shares...)),
	}, nil
}

// mark tells the command that it runs in the emulated host.
const mark = "SUPERMACHINE_TESTBED=1"

func isMark(e string) bool { return strings.HasPrefix(e, "SUPERMACHINE_TESTBED=") }

// shares returns what must be shared of paths: those that lie in a temporary directory. Of a file it is the directory, if that is
// not a temporary one itself: go test, for one, expects files beside the program that it built.
func shares(paths []string) []string {
	var all []string
	for _, p := range paths {
		for _, temp := range link.TempDirs {
			if !strings.HasPrefix(p, temp+"/") {
				continue
			}
			if st, err := os.Stat(p); err == nil && !st.IsDir() && filepath.Dir(p) != temp {
				p = filepath.Dir(p)
			}
			all = append(all, p)
		}
	}
	slices.Sort(all) // parents are mounted first
	return slices.Compact(all)
}

func terminalSize() link.Size {
	columns, rows, err := term.GetSize(0)
	if err != nil {
		return link.Size{Rows: 24, Columns: 80}
	}
	return link.Size{Rows: uint16(rows), Columns: uint16(columns)}
}
