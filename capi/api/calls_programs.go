package api

import (
	"bytes"
	"context"
	"os"

	"github.com/supermachine/supermachine/core"
)

type spawnResult struct {
	ID  uint64 `msgpack:"id" doc:"Its number in the guest, for vm_attach; copies of the VM have it too."`
	PID int    `msgpack:"pid" doc:"Its process ID in the guest."`
}

type programInfo struct {
	ID        uint64      `msgpack:"id" doc:"Its number, for vm_attach."`
	PID       int         `msgpack:"pid" doc:"Its process ID in the guest."`
	Args      []guestText `msgpack:"args" doc:"The program and its arguments, at most 4096 bytes of them."`
	UID       uint32      `msgpack:"uid" doc:"The user's number."`
	StartedMS int64       `msgpack:"started_ms" doc:"When it was started, by the guest's clock, in milliseconds since 1970."`
	Workload  bool        `msgpack:"workload" doc:"It is the workload."`
	Detached  bool        `msgpack:"detached" doc:"It runs by itself: vm_attach attaches to it."`
	TTY       bool        `msgpack:"tty" doc:"It runs on a terminal."`
	Ended     bool        `msgpack:"ended" doc:"It has ended, and nobody has got its exit status yet."`
}

type programsResult struct {
	Programs []programInfo `msgpack:"programs" doc:"One map for each, the oldest first: at most 4096."`
	More     bool          `msgpack:"more" doc:"There are more."`
}

type chainFile struct {
	Path  string `msgpack:"path" doc:"In the guest, absolute; required."`
	Data  []byte `msgpack:"data" doc:"What shall be in it."`
	Mode  uint32 `msgpack:"mode" doc:"Permission bits; default 0644."`
	Owner string `msgpack:"owner" doc:"NAME|UID[:GROUP|GID]; default: root."`
}

type chainOptions struct {
	Files           []chainFile `msgpack:"files" doc:"Files that are written first."`
	Commands        []program   `msgpack:"commands" doc:"Programs that run after that, one after another; required."`
	ContinueOnError bool        `msgpack:"continue_on_error" doc:"A program that fails does not keep the others from running."`
	TimeoutMS       int64       `msgpack:"timeout_ms" doc:"For all together, in milliseconds; 0: none."`
	MaxOutput       int64       `msgpack:"max_output" doc:"Of each program, as in vm_run."`
}

type chainResult struct {
	Outputs []runResult `msgpack:"outputs" doc:"Of the programs, in order, with the keys of vm_run; zeros for one that could not be run."`
	Failed  int         `msgpack:"failed" doc:"Which was the first to fail, counted from 0; -1: none."`
	Error   string      `msgpack:"error" doc:"Why a program could not be run; empty if all were."`
}

func init() {
	define("vm_spawn", KindVM, 0, "Starts a program that runs by itself: the guest keeps the end of its output, up to 256 KiB, and how it ends, for vm_attach.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			program
			TTY   bool   `msgpack:"tty" doc:"Run it on a terminal."`
			Rows  uint16 `msgpack:"rows" doc:"Size of the terminal; default 24."`
			Cols  uint16 `msgpack:"cols" doc:"Size of the terminal; default 80."`
			Stdin bool   `msgpack:"stdin" doc:"Leave its input open for who attaches; else it is empty."`
		}) (spawnResult, error) {
			req, err := o.exec()
			if err != nil {
				return spawnResult{}, err
			}
			req.Detach, req.OpenStdin, req.TTY, req.Rows, req.Cols = true, o.Stdin, o.TTY, o.Rows, o.Cols
			p, err := m.Exec(ctx, req)
			if err != nil {
				return spawnResult{}, err
			}
			return spawnResult{p.ID(), p.PID()}, nil
		})
	define("vm_attach", KindVM, 0, "Attaches to a program that runs by itself: what the guest has kept of its output comes first, then what it writes. Any number may be attached. "+
		"Closing the handle ends the attachment alone. Once one has got the exit status the guest forgets the program.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			ID     uint64 `msgpack:"id" doc:"The program's number; required."`
			Stdin  bool   `msgpack:"stdin" doc:"Give a stream for its standard input."`
			Stdout bool   `msgpack:"stdout" doc:"Give a stream for its standard output; else that is dropped."`
			Stderr bool   `msgpack:"stderr" doc:"Give a stream for its standard error; else that is dropped."`
		}) (execResult, error) {
			return startStreams(ctx, e, m, wanted{o.Stdin, o.Stdout, o.Stderr, true}, func(life context.Context) (*core.Process, error) {
				return m.Attach(life, o.ID, core.Attachment{Pipes: true})
			})
		})
	define("exec_detach", KindExec, 0, "Has a program run on by itself: its streams and exec_wait end, and vm_attach attaches to it. Of an attachment it ends that alone.",
		func(ctx context.Context, e *env, p *process, _ *None) (None, error) { return None{}, p.Detach(ctx) })
	define("vm_programs", KindVM, 0, "Lists the programs that run in the VM, and those that run by themselves, have ended, and whose exit status nobody has got.",
		func(ctx context.Context, e *env, m *vm, _ *None) (programsResult, error) {
			all, more, err := m.Programs(ctx)
			r := programsResult{Programs: []programInfo{}, More: more}
			for _, p := range all {
				i := programInfo{
					ID: p.ID, PID: p.PID, UID: p.UID, StartedMS: p.StartTime().UnixMilli(), Workload: p.Main, Detached: p.Detached, TTY: p.TTY, Ended: p.Ended,
					Args: []guestText{},
				}
				for _, a := range p.Args {
					i.Args = append(i.Args, guestText(a))
				}
				r.Programs = append(r.Programs, i)
			}
			return r, err
		})
	define("vm_chain", KindVM, 0, "Writes files and runs programs one after another, until one of them fails.", runChain)
}

func runChain(ctx context.Context, e *env, m *vm, o *chainOptions) (chainResult, error) {
	c := core.Chain{ContinueOnError: o.ContinueOnError, Timeout: ms(o.TimeoutMS)}
	for _, f := range o.Files {
		mode, err := writeOptions{pathOption: pathOption{f.Path}, Mode: f.Mode}.mode()
		if err != nil {
			return chainResult{}, err
		}
		c.Files = append(c.Files, core.ChainFile{Path: f.Path, Data: bytes.NewReader(f.Data), Mode: os.FileMode(mode), Owner: f.Owner})
	}
	for _, p := range o.Commands {
		req, err := p.exec()
		if err != nil {
			return chainResult{}, err
		}
		req.MaxOutput = o.MaxOutput
		c.Commands = append(c.Commands, req)
	}
	outputs, failed, err := m.RunChain(ctx, c)
	if err != nil && len(outputs) == 0 {
		return chainResult{}, err
	}
	r := chainResult{Outputs: []runResult{}, Failed: failed}
	for _, out := range outputs {
		r.Outputs = append(r.Outputs, runResultOf(out))
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r, nil
}
