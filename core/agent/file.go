package agent

import (
	"context"
	"io"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// ReadFile opens a regular file in the guest. The reader must be closed; it fails when ctx is done.
func (c *Client) ReadFile(ctx context.Context, path string) (io.ReadCloser, error) {
	s, err := c.open(ctx, wire.Request{Read: &wire.ReadFile{Path: path}})
	if err != nil {
		return nil, err
	}
	if _, err := s.started(ctx); err != nil {
		return nil, err
	}
	return &fileReader{s: s, stop: context.AfterFunc(ctx, func() { s.abandon(ctx.Err()) })}, nil
}

type fileReader struct {
	s    *stream
	stop func() bool
}

func (r *fileReader) Read(p []byte) (int, error) {
	n, err := r.s.out.Read(p)
	if err == io.EOF { // all of it, or as much as could be read
		<-r.s.ended
		if r.s.failure != nil {
			err = r.s.failure
		}
	}
	return n, err
}

func (r *fileReader) Close() error {
	r.stop()
	r.s.abandon(io.ErrClosedPipe)
	return nil
}

// WriteOption changes what WriteFile does.
type WriteOption func(*wire.WriteFile)

// Owner makes the file belong to NAME|UID[:GROUP|GID] of the image's accounts instead of root.
func Owner(user string) WriteOption { return func(w *wire.WriteFile) { w.Owner = user } }

// WriteFile creates or replaces a regular file in the guest with what r yields; mode are its permission bits. It is atomic: the name shows the old
// or the new file, and after any error, also one of r or ctx, the old one. A blocked Read of r delays no error; the caller unblocks it.
func (c *Client) WriteFile(ctx context.Context, path string, r io.Reader, mode uint32, options ...WriteOption) error {
	req := &wire.WriteFile{Path: path, Mode: mode}
	for _, o := range options {
		o(req)
	}
	s, err := c.open(ctx, wire.Request{Write: req})
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
