package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
)

// maxFile is the most that vm_read_file collects.
const maxFile = 64 << 20

// transfer is a file of the guest that is read or written as a stream.
type transfer struct {
	cancel context.CancelFunc
	conn   net.Conn
	wanted chan struct{} // closed by file_wait: what was written is all there is
	once   sync.Once
	ended  chan struct{}
	err    error
}

// whole is what a caller writes. Its end counts only once file_wait was called: a caller that gives up may close the stream first.
type whole struct {
	io.Reader
	life   context.Context
	wanted chan struct{}
}

func (w whole) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if err == io.EOF {
		select {
		case <-w.wanted:
		case <-w.life.Done():
			err = w.life.Err()
		}
	}
	return n, err
}

// from returns what hands all that r yields to the caller.
func (t *transfer) from(r io.ReadCloser) func() error {
	return func() error {
		defer r.Close()
		_, err := io.Copy(t.conn, r)
		return err
	}
}

func (t *transfer) closeHandle(context.Context) error {
	t.cancel()
	t.conn.Close()
	return nil
}

type transferResult struct {
	File uint64 `msgpack:"file" holds:"handle" doc:"The transfer."`
	FD   int    `msgpack:"fd" holds:"fd" doc:"The stream; the caller's to close."`
}

type dataResult struct {
	Data []byte `msgpack:"data" doc:"What is in it."`
}

type pathOption struct {
	Path string `msgpack:"path" doc:"In the guest, absolute; required."`
}

type rangeOptions struct {
	pathOption
	Offset int64 `msgpack:"offset" doc:"Where to begin, in bytes; default 0. Past the end there is nothing to read."`
	Length int64 `msgpack:"length" doc:"How many bytes to read at most; default: to the end."`
}

func (o rangeOptions) options() []core.ReadOption {
	switch {
	case o.Offset == 0 && o.Length == 0:
		return nil
	case o.Length == 0:
		return []core.ReadOption{core.Range(o.Offset, -1)}
	}
	return []core.ReadOption{core.Range(o.Offset, o.Length)}
}

type writeOptions struct {
	pathOption
	Mode    uint32 `msgpack:"mode" doc:"Permission bits; default 0644."`
	Owner   string `msgpack:"owner" doc:"NAME|UID[:GROUP|GID] of the image's accounts; default: root."`
	Append  bool   `msgpack:"append" doc:"Add to the end of the file, which is made if there is none. This is not atomic."`
	InPlace bool   `msgpack:"in_place" doc:"Write over the contents of an existing file, from offset on, whose mode and owner stay. This is not atomic."`
	Offset  int64  `msgpack:"offset" doc:"With in_place: where to begin, in bytes; default 0."`
}

func (o writeOptions) options() (mode os.FileMode, all []core.WriteOption, err error) {
	if mode, err = o.mode(); err != nil {
		return 0, nil, err
	}
	bad := func(text string) (os.FileMode, []core.WriteOption, error) {
		return 0, nil, &core.Error{Code: core.ErrInvalidArgument, Op: "write", Object: o.Path, Err: errors.New(text)}
	}
	switch {
	case o.Append && o.InPlace:
		return bad("append and in_place exclude each other")
	case o.Offset != 0 && !o.InPlace:
		return bad("offset is only for in_place")
	case o.Append:
		all = append(all, core.Append())
	case o.InPlace:
		all = append(all, core.At(o.Offset))
	}
	if o.Owner != "" {
		all = append(all, core.Owner(o.Owner))
	}
	return mode, all, nil
}

func (o writeOptions) mode() (os.FileMode, error) {
	switch {
	case o.Mode == 0:
		return 0o644, nil
	case o.Mode > 0o777:
		return 0, &core.Error{Code: core.ErrInvalidArgument, Op: "write", Object: o.Path, Err: fmt.Errorf("mode %#o is out of range, 0 to 0777 are possible", o.Mode)}
	}
	return os.FileMode(o.Mode), nil
}

func init() {
	define("vm_read_file", KindVM, 0, "Reads a file of the guest.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			rangeOptions
			MaxBytes int64 `msgpack:"max_bytes" doc:"A larger file is an error; default and most: 67108864. vm_open_file reads files of any size."`
		}) (r dataResult, err error) {
			limit := o.MaxBytes
			if limit <= 0 || limit > maxFile {
				limit = maxFile
			}
			f, err := m.ReadFile(ctx, o.Path, o.options()...)
			if err != nil {
				return r, err
			}
			defer f.Close()
			r.Data, err = io.ReadAll(io.LimitReader(f, limit+1))
			if err == nil && int64(len(r.Data)) > limit {
				r.Data, err = nil, &core.Error{Code: core.ErrLimit, Op: "read", Object: o.Path, Err: fmt.Errorf("it is larger than %d bytes; use a stream", limit)}
			}
			return r, err
		})
	define("vm_write_file", KindVM, 0, "Creates or replaces a file of the guest. It appears under its name only when all of it is written.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			writeOptions
			Data []byte `msgpack:"data" doc:"What shall be in it."`
		}) (None, error) {
			mode, options, err := o.options()
			if err != nil {
				return None{}, err
			}
			return None{}, m.WriteFile(ctx, o.Path, bytes.NewReader(o.Data), mode, options...)
		})
	define("vm_open_file", KindVM, 0, "Reads a file of the guest as a stream. After its end file_wait tells whether all of the file was read.",
		func(ctx context.Context, e *env, m *vm, o *rangeOptions) (transferResult, error) {
			return startTransfer(ctx, e, m, func(life context.Context, t *transfer) (func() error, error) {
				f, err := m.ReadFile(life, o.Path, o.options()...)
				return t.from(f), err
			})
		})
	define("vm_create_file", KindVM, 0, "Creates or replaces a file of the guest with what is written to a stream. Shut the stream's writing side down or close it, then call "+
		"file_wait: only then the file appears under its name. file_close before that leaves the old file.",
		func(ctx context.Context, e *env, m *vm, o *writeOptions) (transferResult, error) {
			mode, options, err := o.options()
			if err != nil {
				return transferResult{}, err
			}
			return startTransfer(ctx, e, m, func(life context.Context, t *transfer) (func() error, error) {
				return func() error { return m.WriteFile(life, o.Path, whole{t.conn, life, t.wanted}, mode, options...) }, nil
			})
		})
	define("file_wait", KindFile, 0, "Waits for the end of a transfer and tells how it went.",
		func(ctx context.Context, e *env, t *transfer, _ *None) (None, error) {
			t.once.Do(func() { close(t.wanted) })
			select {
			case <-t.ended:
				return None{}, t.err
			case <-ctx.Done():
				return None{}, ctx.Err()
			}
		})
	defineClose("file_close", KindFile, "Ends a transfer that still runs, and gives up its handle. The stream stays the caller's to close.")
}

// startTransfer prepares a transfer, and runs it in the background if that succeeds.
func startTransfer(ctx context.Context, e *env, m *vm, prepare func(context.Context, *transfer) (func() error, error)) (transferResult, error) {
	conn, fd, err := socketPair()
	if err != nil {
		return transferResult{}, err
	}
	life, cancel := context.WithCancel(m.use.context())
	t := &transfer{cancel: cancel, conn: conn, wanted: make(chan struct{}), ended: make(chan struct{})}
	stop := context.AfterFunc(ctx, cancel)
	run, err := prepare(life, t)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		conn.Close()
		unix.Close(fd)
		return transferResult{}, err
	}
	go func() {
		if t.err = run(); t.err != nil && life.Err() != nil {
			t.err = life.Err() // the handle or the VM's was closed
		}
		conn.Close()
		close(t.ended)
	}()
	return transferResult{e.lib.handles.put(KindFile, t), fd}, nil
}
