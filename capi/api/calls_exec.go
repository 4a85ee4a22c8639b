package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/supermachine/supermachine/core"
)

// process is a program behind a handle.
type process struct {
	*core.Process
	cancel context.CancelFunc // kills it, if it still runs
}

// program are the options that say what to run.
type program struct {
	Args      []string `msgpack:"args" doc:"The program and its arguments; required. A program without a slash is looked up in the guest's PATH."`
	Env       []string `msgpack:"env" doc:"NAME=value, over the image's environment."`
	Workdir   string   `msgpack:"workdir" doc:"Working directory; default: the image's."`
	User      string   `msgpack:"user" doc:"NAME|UID[:GROUP|GID]; default: the image's."`
	TimeoutMS int64    `msgpack:"timeout_ms" doc:"The whole process group is killed after so many milliseconds; 0: never."`
	Limits    []string `msgpack:"limits" doc:"Resource limits, NAME=SOFT[:HARD] as setrlimit has them: nofile=1024, cpu=10, as=1073741824:unlimited. They hold from the program's first instruction on."`
}

func (p program) exec() (core.Exec, error) {
	req := core.Exec{Args: p.Args, Env: p.Env, Dir: p.Workdir, User: p.User, Timeout: ms(p.TimeoutMS)}
	for _, s := range p.Limits {
		l, err := core.ParseRlimit(s)
		if err != nil {
			return req, err
		}
		req.Limits = append(req.Limits, l)
	}
	return req, nil
}

// ms returns milliseconds as a duration. Those that a duration cannot hold are the longest it can.
func ms(n int64) time.Duration {
	const most = int64(1<<63-1) / int64(time.Millisecond)
	return time.Duration(min(n, most)) * time.Millisecond
}

type exitStatus struct {
	Code       int   `msgpack:"code" doc:"Exit status, 0 to 255; 128 + signal if a signal ended the program."`
	Signal     int   `msgpack:"signal" doc:"The signal that ended the program; 0 if it exited."`
	TimedOut   bool  `msgpack:"timed_out" doc:"timeout_ms passed and the program was killed."`
	Truncated  bool  `msgpack:"truncated" doc:"A background child still held the output when the program exited; what it wrote later is lost."`
	DurationUS int64 `msgpack:"duration_us" doc:"From the request to the end, in microseconds."`
	UserUS     int64 `msgpack:"user_us" doc:"CPU time in user mode, in microseconds."`
	SystemUS   int64 `msgpack:"system_us" doc:"CPU time in the guest's kernel, in microseconds."`
	MaxRSS     int64 `msgpack:"max_rss" doc:"Most memory resident at once, in bytes."`
}

func exitOf(st core.ExitStatus) exitStatus {
	return exitStatus{
		Code: st.Code, Signal: int(st.Signal), TimedOut: st.TimedOut, Truncated: st.Truncated, DurationUS: st.Duration.Microseconds(),
		UserUS: st.User.Microseconds(), SystemUS: st.System.Microseconds(), MaxRSS: st.MaxRSS,
	}
}

type runOptions struct {
	program
	Stdin     []byte `msgpack:"stdin" doc:"What the program reads from its standard input."`
	MaxOutput int64  `msgpack:"max_output" doc:"How many bytes are kept of each stream; the program runs on and the rest is dropped. Default: 67108864, and more than that ends the program with an error."`
}

type runResult struct {
	exitStatus
	Stdout          []byte `msgpack:"stdout" doc:"What it wrote, as far as it was kept."`
	Stderr          []byte `msgpack:"stderr" doc:"What it wrote to standard error, as far as it was kept."`
	StdoutBytes     int64  `msgpack:"stdout_bytes" doc:"How much it wrote, what was dropped included."`
	StderrBytes     int64  `msgpack:"stderr_bytes" doc:"How much it wrote to standard error."`
	StdoutTruncated bool   `msgpack:"stdout_truncated" doc:"stdout is the beginning only: max_output was exceeded."`
	StderrTruncated bool   `msgpack:"stderr_truncated" doc:"stderr is the beginning only."`
}

func runResultOf(out core.Output) runResult {
	return runResult{exitOf(out.ExitStatus), out.Stdout, out.Stderr, out.StdoutBytes, out.StderrBytes, out.StdoutTruncated, out.StderrTruncated}
}

type execOptions struct {
	program
	Stdin  bool   `msgpack:"stdin" doc:"Give a stream for standard input; else it is empty."`
	Stdout bool   `msgpack:"stdout" doc:"Give a stream for standard output; else it is dropped."`
	Stderr bool   `msgpack:"stderr" doc:"Give a stream for standard error; else it is dropped."`
	TTY    bool   `msgpack:"tty" doc:"Run it on a terminal: stdout has all its output."`
	Rows   uint16 `msgpack:"rows" doc:"Size of the terminal; default 24."`
	Cols   uint16 `msgpack:"cols" doc:"Size of the terminal; default 80."`
}

type execResult struct {
	Exec   uint64 `msgpack:"exec" holds:"handle" doc:"The program."`
	ID     uint64 `msgpack:"id" doc:"Its number in the guest, for vm_attach."`
	PID    int    `msgpack:"pid" doc:"Its process ID in the guest."`
	Stdin  int    `msgpack:"stdin" holds:"fd" doc:"Write to it; close it to end the input. -1 if it was not asked for."`
	Stdout int    `msgpack:"stdout" holds:"fd" doc:"Read from it until its end. -1 if it was not asked for."`
	Stderr int    `msgpack:"stderr" holds:"fd" doc:"Read from it until its end. -1 if it was not asked for."`
}

func init() {
	define("vm_run", KindVM, 0, "Runs a program to its end and collects its output.",
		func(ctx context.Context, e *env, m *vm, o *runOptions) (runResult, error) {
			req, err := o.exec()
			if err != nil {
				return runResult{}, err
			}
			if len(o.Stdin) > 0 {
				req.Stdin = bytes.NewReader(o.Stdin)
			}
			req.MaxOutput = o.MaxOutput
			out, err := m.Run(ctx, req)
			return runResultOf(out), err
		})
	define("vm_exec", KindVM, 0, "Starts a program and returns once it runs. Its streams are file descriptors that the caller owns.", startExec)
	define("vm_start_workload", KindVM, 0, "Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped.",
		func(ctx context.Context, e *env, m *vm, o *program) (None, error) {
			req, err := o.exec()
			if err != nil {
				return None{}, err
			}
			return None{}, m.StartWorkload(ctx, req)
		})
	define("vm_follow", KindVM, 0, "Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing the handle ends the following alone.",
		func(ctx context.Context, e *env, m *vm, _ *None) (execResult, error) {
			return startStreams(ctx, e, m, wanted{stdout: true, stderr: true, shared: true}, func(life context.Context) (*core.Process, error) {
				return m.Follow(life, core.Attachment{Pipes: true})
			})
		})

	define("exec_wait", KindExec, 0, "Waits until the program has ended. What it wrote can still be read from its streams.",
		func(ctx context.Context, e *env, p *process, _ *None) (exitStatus, error) {
			type result struct {
				st  core.ExitStatus
				err error
			}
			ended := make(chan result, 1)
			go func() {
				st, err := p.Wait()
				ended <- result{st, err}
			}()
			select {
			case r := <-ended:
				return exitOf(r.st), r.err
			case <-ctx.Done():
				return exitStatus{}, ctx.Err()
			}
		})
	define("exec_signal", KindExec, quick, "Sends a signal to the program's process group. It does nothing after the program's end.",
		func(ctx context.Context, e *env, p *process, o *struct {
			Signal string `msgpack:"signal" doc:"Its name, such as TERM or SIGTERM; required."`
		}) (None, error) {
			sig, err := core.ParseSignal(o.Signal)
			if err != nil {
				return None{}, err
			}
			return None{}, p.Signal(sig)
		})
	define("exec_resize", KindExec, quick, "Changes the size of the program's terminal. Without a terminal it does nothing.",
		func(ctx context.Context, e *env, p *process, o *struct {
			Rows uint16 `msgpack:"rows" doc:"Lines."`
			Cols uint16 `msgpack:"cols" doc:"Columns."`
		}) (None, error) {
			return None{}, p.Resize(o.Rows, o.Cols)
		})
	defineClose("exec_close", KindExec, "Kills the program if it still runs, and gives up its handle. Its streams stay the caller's to close.")
}

// startExec starts a program. It is killed when the VM's handle is closed.
func startExec(ctx context.Context, e *env, m *vm, o *execOptions) (execResult, error) {
	req, err := o.exec()
	if err != nil {
		return execResult{}, err
	}
	req.TTY, req.Rows, req.Cols, req.Pipes = o.TTY, o.Rows, o.Cols, true
	return startStreams(ctx, e, m, wanted{stdin: o.Stdin, stdout: o.Stdout, stderr: o.Stderr && !o.TTY}, func(life context.Context) (*core.Process, error) { return m.Exec(life, req) })
}

// wanted says which streams a caller wants. The input of a program that others may write to stays open when it is not wanted.
type wanted struct{ stdin, stdout, stderr, shared bool }

// startStreams starts or attaches to a program whose streams are pipes, and gives those that are wanted to the caller. What begins lives as long as the
// handle and the VM's.
func startStreams(ctx context.Context, e *env, m *vm, w wanted, begin func(life context.Context) (*core.Process, error)) (execResult, error) {
	life, cancel := context.WithCancel(m.use.context())
	stop := context.AfterFunc(ctx, cancel) // while it starts
	p, err := begin(life)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return execResult{}, err
	}
	s := &streams{}
	in, inFD, err1 := s.want(w.stdin)
	out, outFD, err2 := s.want(w.stdout)
	errOut, errFD, err3 := s.want(w.stderr)
	if err := errors.Join(err1, err2, err3); err != nil {
		s.close()
		cancel()
		return execResult{}, err
	}
	if in != nil || !w.shared {
		copyIn(p.Stdin, in)
	}
	copyOut(out, p.Stdout)
	copyOut(errOut, p.Stderr)
	if in != nil {
		go func() { // who still writes learns that nobody reads
			p.Wait()
			in.Close()
		}()
	}
	return execResult{e.lib.handles.put(KindExec, &process{p, cancel}), p.ID(), p.PID(), inFD, outFD, errFD}, nil
}

// copyIn hands what the caller writes to the program; with no conn the program's input is empty.
func copyIn(to io.WriteCloser, conn *net.UnixConn) {
	if conn == nil {
		to.Close()
		return
	}
	go func() {
		io.Copy(to, conn)
		to.Close()
	}()
}

// copyOut hands what the program writes to the caller; with no conn, or once the caller has closed its end, it is dropped.
func copyOut(conn *net.UnixConn, from io.ReadCloser) {
	if conn == nil {
		from.Close()
		return
	}
	go func() {
		io.Copy(conn, from)
		conn.Close()
		from.Close()
	}()
}
