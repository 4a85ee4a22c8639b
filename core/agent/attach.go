package agent

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// Rlimit is a resource limit of one program (setrlimit(2)).
type Rlimit = wire.Rlimit

// Unlimited is the value of a limit that does not limit. Of "nofile" it is 1,048,576, the most that the kernel allows.
const Unlimited = wire.Unlimited

// Program describes a program in the guest. What it says is the guest's claim.
type Program = wire.Program

// ErrDetached means that a program runs on by itself in the guest: Client.Attach tells how it ends.
var ErrDetached = errors.New("the program is detached")

// AttachRequest says where the streams of a detached program go.
type AttachRequest struct {
	// Stdin, if not nil, is read until its end, which is the end of the program's input, or until the program or the attachment ends. A program that was
	// started without ExecRequest.OpenStdin gets nothing of it.
	Stdin  io.Reader
	Stdout io.Writer // nil: discarded. A slow Writer slows nothing but may miss output: ExitStatus.Lost
	Stderr io.Writer // nil: discarded

	Pipes bool // Process.Stdin, Stdout and Stderr are used instead of the three above, which must be nil
}

// Attach follows a detached program by its ID, over this connection or another to the same guest, or to a guest that was copied from that: first
// what the guest has kept of its output, then what it writes. The Process ends with the program and has its exit status; signals and sizes of the
// terminal go to the program; when ctx is done only the attachment ends. Any number may be attached at once. Once one of them has got the exit
// status, the guest forgets the program. Errors: an *Error of kind "not_found" without such a program, "invalid" if it is not detached.
func (c *Client) Attach(ctx context.Context, id uint64, req AttachRequest) (*Process, error) {
	return c.join(ctx, wire.Request{Attach: &wire.Attach{ID: id, Stdin: req.Stdin != nil || req.Pipes}}, req)
}

func (c *Client) join(ctx context.Context, wr wire.Request, req AttachRequest) (*Process, error) {
	p, err := c.start(ctx, wr, ExecRequest{Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Pipes: req.Pipes})
	if err == nil {
		p.joined = true
	}
	return p, err
}

// ID returns the program's number for Client.Attach: the guest gives it once in its life, which copies of it continue.
func (p *Process) ID() uint64 { return p.id }

// Detach makes a running program run on by itself, as ExecRequest.Detach does from the start: Wait returns ErrDetached when all output up to then is
// written, and what comes later is kept for Attach. The program's stdin ends, but a terminal's. Of an attachment it ends that alone.
func (p *Process) Detach(ctx context.Context) error {
	if p.joined {
		p.s.abandon(ErrDetached)
		return nil
	}
	return p.s.c.call(ctx, wire.Request{Detach: &wire.Detach{ID: p.id}})
}

// Programs returns the programs that run in the guest, and the detached ones that have ended and whose exit status nobody has got, oldest first: at most
// 4096, and whether there are more. Their texts are made harmless for terminals.
func (c *Client) Programs(ctx context.Context) (programs []Program, more bool, err error) {
	s, err := c.open(ctx, wire.Request{List: &wire.Empty{}})
	if err != nil {
		return nil, false, err
	}
	defer context.AfterFunc(ctx, func() { s.abandon(ctx.Err()) })()
	for r := wire.NewRecordReader(s.out); ; {
		var p Program
		err := r.Read(&p)
		if err == io.EOF {
			break
		}
		if err == nil && len(programs) == wire.MaxListed {
			err = fmt.Errorf("%w: more than %d programs in a list", wire.ErrProtocol, wire.MaxListed)
		}
		if err != nil {
			s.abandon(err)
			return nil, false, err
		}
		for i, arg := range p.Args {
			p.Args[i] = printable(arg)
		}
		programs = append(programs, p)
	}
	r, err := s.finish(ctx)
	return programs, r.Truncated, err
}
