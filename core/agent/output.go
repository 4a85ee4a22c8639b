package agent

import (
	"bytes"
	"context"
	"errors"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// Output is what a program wrote and how it ended.
type Output struct {
	Stdout, Stderr []byte
	ExitStatus

	StdoutBytes, StderrBytes         int64 // how much the program wrote, what was dropped included
	StdoutTruncated, StderrTruncated bool  // ExecRequest.MaxOutput was exceeded: Stdout or Stderr are the beginning only
}

// MaxOutput is the most bytes that Run collects of each of stdout and stderr, unless the request says how many.
const MaxOutput = 64 << 20

// ErrOutputTooLarge means that a program run by Run wrote more than MaxOutput and the request did not say how much was expected; it was killed.
var ErrOutputTooLarge = errors.New("the program wrote more output than can be collected")

// Run runs a program to its end and collects its output. Stdout and Stderr of req must be nil, Pipes and Detach false. With an error comes
// the output up to then.
func (c *Client) Run(ctx context.Context, req ExecRequest) (Output, error) {
	if req.MaxOutput < 0 || req.Detach {
		return Output{}, &Error{Kind: wire.KindInvalid, Message: "the output of a detached program, or less than none, cannot be collected"}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out, errOut := &collector{most: req.MaxOutput, full: cancel}, &collector{most: req.MaxOutput, full: cancel}
	req.Stdout, req.Stderr = out, errOut
	p, err := c.Exec(ctx, req)
	if err != nil {
		return Output{}, err
	}
	st, err := p.Wait()
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return Output{
		Stdout: out.b.Bytes(), Stderr: errOut.b.Bytes(), ExitStatus: st, StdoutBytes: out.seen, StderrBytes: errOut.seen,
		StdoutTruncated: out.seen > int64(out.b.Len()), StderrTruncated: errOut.seen > int64(errOut.b.Len()),
	}, err
}

// collector keeps the first bytes that are written to it, most of them. If most is 0 it keeps MaxOutput, and more cancel the run.
type collector struct {
	b    bytes.Buffer
	most int64
	seen int64
	full context.CancelCauseFunc
}

func (c *collector) Write(p []byte) (int, error) {
	c.seen += int64(len(p))
	if c.most == 0 && c.seen > MaxOutput {
		c.full(ErrOutputTooLarge)
		return 0, ErrOutputTooLarge
	}
	if left := c.most - int64(c.b.Len()); c.most > 0 && int64(len(p)) > left {
		c.b.Write(p[:left])
	} else {
		c.b.Write(p)
	}
	return len(p), nil
}
