package agent

import (
	"context"
	"fmt"
	"io"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// ReadOption changes what ReadFile does.
type ReadOption func(*wire.ReadFile)

// Range reads at most length bytes from offset on; a negative length means to the end. Past the end there is nothing to read.
func Range(offset, length int64) ReadOption {
	return func(r *wire.ReadFile) {
		if r.Offset = offset; length >= 0 {
			r.Length = &length
		}
	}
}

// ReadFile opens a regular file in the guest. The reader must be closed; it fails when ctx is done.
func (c *Client) ReadFile(ctx context.Context, path string, options ...ReadOption) (io.ReadCloser, error) {
	req := &wire.ReadFile{Path: path}
	for _, o := range options {
		o(req)
	}
	request := wire.Request{Read: req}
	if req.Offset != 0 || req.Length != nil {
		request = wire.Request{Files: &wire.Files{Read: req}}
	}
	_, r, err := c.receive(ctx, request)
	if err != nil {
		return nil, err
	}
	if req.Length != nil {
		r.most, r.left = true, *req.Length
	}
	return r, nil
}

// receive makes a request whose answer comes on ChannelOut.
func (c *Client) receive(ctx context.Context, req wire.Request) (wire.Reply, *fileReader, error) {
	s, err := c.open(ctx, req)
	if err != nil {
		return wire.Reply{}, nil, err
	}
	reply, err := s.started(ctx)
	if err != nil {
		return reply, nil, err
	}
	return reply, &fileReader{s: s, stop: context.AfterFunc(ctx, func() { s.abandon(ctx.Err()) })}, nil
}

type fileReader struct {
	s    *stream
	stop func() bool
	most bool  // no more than left bytes were asked for
	left int64 //
}

func (r *fileReader) Read(p []byte) (int, error) {
	n, err := r.s.out.Read(p)
	if r.left -= int64(n); r.most && r.left < 0 {
		err := fmt.Errorf("%w: more data than asked for", wire.ErrProtocol)
		r.s.abandon(err)
		return 0, err
	}
	if err == io.EOF { // all of it, or as much as could be read
		<-r.s.ended
		if r.s.failure != nil {
			err = r.s.failure
		}
	}
	return n, err
}

// Close ends the reading, also a Read that waits.
func (r *fileReader) Close() error {
	r.stop()
	r.s.abandon(io.ErrClosedPipe)
	return nil
}

// WriteOption changes what WriteFile does.
type WriteOption func(*wire.WriteFile)

// Owner makes the file belong to NAME|UID[:GROUP|GID] of the image's accounts instead of root.
func Owner(user string) WriteOption { return func(w *wire.WriteFile) { w.Owner = user } }

// Append adds to the end of the file, which is made with mode and owner if there is none. It is not atomic: after an error a part may have been added.
func Append() WriteOption { return func(w *wire.WriteFile) { w.Append = true } }

// At writes over the contents of an existing file from offset on; mode and owner stay as they are. It is not atomic.
func At(offset int64) WriteOption { return func(w *wire.WriteFile) { w.At = &offset } }

// WriteFile creates or replaces a regular file in the guest with what r yields; mode are its permission bits. It is atomic, but for Append and At: the
// name shows the old or the new file, and after any error, also one of r or ctx, the old one. A blocked Read of r delays no error; the caller unblocks it.
func (c *Client) WriteFile(ctx context.Context, path string, r io.Reader, mode uint32, options ...WriteOption) error {
	req := &wire.WriteFile{Path: path, Mode: mode}
	for _, o := range options {
		o(req)
	}
	if req.Append || req.At != nil {
		return c.transmit(ctx, wire.Request{Files: &wire.Files{Write: req}}, r)
	}
	return c.transmit(ctx, wire.Request{Write: req}, r)
}

// transmit makes a request with what r yields on ChannelIn. An error of r abandons it.
func (c *Client) transmit(ctx context.Context, req wire.Request, r io.Reader) error {
	s, err := c.open(ctx, req)
	if err != nil {
		return err
	}
	go func() {
		src := &readErrors{r: r}
		_, err := io.CopyBuffer(struct{ io.Writer }{s.in}, src, make([]byte, wire.MaxData))
		switch {
		case src.err != nil:
			s.abandon(src.err)
		case err == nil:
			s.in.CloseWrite()
		} // any other failure shows in the result
	}()
	_, err = s.finish(ctx)
	return err
}

// readErrors tells failures of reading from those of writing.
type readErrors struct {
	r   io.Reader
	err error // the first but io.EOF
}

func (r *readErrors) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}
