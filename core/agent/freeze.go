package agent

import (
	"context"
	"net"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// Identity tells one copy of a guest from all others.
type Identity = wire.Identity

// EntropySize is how many random bytes an Identity has.
const EntropySize = wire.EntropySize

// Freeze stops every process of the workload until Thaw, or until this client's connection ends. The client must have made no other
// request: then the connection can be continued in a copy of the guest, by Resume. lean asks the guest to give up its caches first.
func (c *Client) Freeze(ctx context.Context, lean bool) error {
	return c.call(ctx, wire.Request{Freeze: &wire.Freeze{Lean: lean}})
}

// Thaw lets the workload run again; in a copy of the frozen guest with an identity of its own, and with what is attached to it, which both take
// effect before.
func (c *Client) Thaw(ctx context.Context, id *Identity, mount Mount) error {
	return c.call(ctx, wire.Request{Thaw: &wire.Thaw{Identity: id, Mount: mount}})
}

// What the host gives to the guest.
type (
	FileSystem = wire.FileSystem
	Network    = wire.Network
	Mount      = wire.Mount
)

// Mount sets up what is on the guest's board for it.
func (c *Client) Mount(ctx context.Context, m Mount) error {
	return c.call(ctx, wire.Request{Mount: &m})
}

// frozenStreams is how many streams a connection has had when it is continued: the one of Freeze.
const frozenStreams = 1

// Resume continues a connection over which a Freeze was answered, in a copy of the guest. The client owns conn from now on.
func Resume(conn net.Conn) *Client {
	c := newClient(conn)
	c.last = frozenStreams
	go c.read(true)
	return c
}

// StartWorkload starts a program as the workload, like Exec with Main, and lets it run on by itself: the guest keeps the end of its output
// for Follow. The request's streams must be unset. It returns once the program runs.
func (c *Client) StartWorkload(ctx context.Context, req ExecRequest) error {
	s, err := c.open(ctx, wire.Request{Exec: &wire.Exec{
		Args: req.Args, Env: req.Env, Dir: req.Dir, User: req.User, Timeout: req.Timeout, Limits: req.Limits, Main: true, Detach: true,
	}})
	if err != nil {
		return err
	}
	_, err = s.finish(ctx)
	return err
}

// Follow attaches to the workload that StartWorkload started, perhaps in the guest that this one was copied from: what the guest has kept of
// its output (256 KiB) comes first, then what it writes. The Process ends with the workload; signals go to it; when ctx is done only the
// following ends. An *Error says that there is no workload.
func (c *Client) Follow(ctx context.Context, to AttachRequest) (*Process, error) {
	return c.join(ctx, wire.Request{Follow: &wire.Empty{}}, to)
}
