package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// stream is one request under way.
type stream struct {
	c        *Client
	id       uint32
	in       *wire.Outbox
	out, err *wire.Inbox

	unuse   func()          // ends the use that TrackUse's function was told of
	lasts   bool            // the use is over with the reply
	replied chan wire.Reply // at most one
	answers int             // replies seen; of the reading goroutine
	ended   chan struct{}
	result  wire.Result // this, failure and when are written before ended is closed
	failure error
	when    time.Time
	once    sync.Once
}

// open starts a request.
func (c *Client) open(ctx context.Context, req wire.Request) (*stream, error) {
	s := &stream{c: c, replied: make(chan wire.Reply, 1), ended: make(chan struct{}), unuse: func() {}}
	if c.use != nil && req.Info == nil { // who watches a guest does not use it
		s.unuse = c.use()
		s.lasts = req.Exec != nil && req.Exec.Main || req.Follow != nil || req.Attach != nil || req.Reverse != nil || req.Files != nil && req.Files.Watch != nil
	}
	opened := false
	defer func() {
		if !opened {
			s.unuse()
		}
	}()
	select {
	case c.opening <- struct{}{}:
		defer func() { <-c.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.last++
	s.id = c.last
	s.in = wire.NewOutbox(c.w, s.id, wire.ChannelIn)
	s.out, s.err = s.newInbox(wire.ChannelOut), s.newInbox(wire.ChannelErr)
	c.streams[s.id] = s
	c.mu.Unlock()
	err := c.w.Send(ctx.Done(), wire.TypeOpen, s.id, 0, req)
	if err == nil {
		opened = true
		return s, nil
	}
	c.forget(s)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case c.Err() != nil:
		return nil, c.Err()
	}
	return nil, err
}

func (s *stream) newInbox(channel uint8) *wire.Inbox {
	return wire.NewInbox(func(n uint32) {
		s.c.w.Send(s.ended, wire.TypeWindow, s.id, channel, wire.Window{Bytes: n}) // if it fails, so does the connection
	})
}

// forget takes the stream out of the client's list and reports whether it was there.
func (c *Client) forget(s *stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, live := c.streams[s.id]
	delete(c.streams, s.id)
	return live
}

// dispatch handles what the agent sends for this stream.
func (s *stream) dispatch(f wire.Frame) error {
	switch f.Type {
	case wire.TypeReply:
		var r wire.Reply
		if err := wire.Decode(f, &r); err != nil {
			return err
		}
		if s.answers++; s.answers > 1 {
			return fmt.Errorf("%w: a second reply on stream %d", wire.ErrProtocol, s.id)
		}
		s.replied <- r
		if s.lasts {
			s.unuse()
		}
		return nil
	case wire.TypeData, wire.TypeEOF:
		inbox := s.out
		switch f.Channel {
		case wire.ChannelOut:
		case wire.ChannelErr:
			inbox = s.err
		default:
			return fmt.Errorf("%w: data for the wrong end of stream %d", wire.ErrProtocol, s.id)
		}
		if f.Type == wire.TypeData {
			return inbox.Put(f)
		}
		inbox.Close(nil)
		return nil
	case wire.TypeWindow:
		var win wire.Window
		if err := wire.Decode(f, &win); err != nil {
			return err
		}
		return s.in.Grant(win.Bytes)
	case wire.TypeResult:
		var r wire.Result
		if err := wire.Decode(f, &r); err != nil {
			s.end(r, err)
			return err
		}
		if r.Code < 0 || r.Code > 255 || r.Signal < 0 || r.Signal > maxSignal {
			err := fmt.Errorf("%w: exit status %d by signal %d", wire.ErrProtocol, r.Code, r.Signal)
			s.end(r, err)
			return err
		}
		s.end(r, nil)
		return nil
	}
	return fmt.Errorf("%w: a server sent a frame of type %d", wire.ErrProtocol, f.Type)
}

const maxSignal = 64 // Linux's SIGRTMAX

// abandon gives the request up: the agent kills what it runs.
func (s *stream) abandon(err error) {
	if s.c.forget(s) {
		s.c.w.Post(wire.Frame{Type: wire.TypeAbandon, Stream: s.id})
	}
	s.end(wire.Result{}, err)
}

// end records the stream's outcome; the first call counts.
func (s *stream) end(r wire.Result, err error) {
	s.once.Do(func() {
		s.result, s.failure, s.when = r, err, time.Now()
		if err == nil && r.Error != nil {
			r.Error.Message = printable(r.Error.Message)
			s.failure = r.Error
		}
		s.unuse()
		s.in.Close()
		s.out.Close(err)
		s.err.Close(err)
		close(s.ended)
	})
}

// started waits for the reply. A stream that ends without one has failed.
func (s *stream) started(ctx context.Context) (wire.Reply, error) {
	select {
	case r := <-s.replied:
		return r, nil
	case <-s.ended:
	case <-ctx.Done():
		s.abandon(ctx.Err())
		return wire.Reply{}, ctx.Err()
	}
	select {
	case r := <-s.replied: // both were there
		return r, nil
	default:
	}
	if s.failure == nil {
		return wire.Reply{}, fmt.Errorf("%w: a result without a reply", wire.ErrProtocol)
	}
	return wire.Reply{}, s.failure
}

// finish waits for the result.
func (s *stream) finish(ctx context.Context) (wire.Result, error) {
	select {
	case <-s.ended:
		return s.result, s.failure
	case <-ctx.Done():
		s.abandon(ctx.Err())
		return wire.Result{}, ctx.Err()
	}
}
