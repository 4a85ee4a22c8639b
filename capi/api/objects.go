package api

import (
	"context"
	"reflect"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
)

// store is where images and snapshots are kept.
type store struct {
	images    *core.Images
	snapshots *core.Snapshots
	dir       string // for scratch files; empty: the default
	assets    string // of kernel and initramfs; empty: as core.FindAssets
}

func openStore(dir, assets string) (*store, error) {
	var imageDir, snapshotDir string
	if dir != "" {
		imageDir, snapshotDir = dir+"/images", dir+"/snapshots"
	}
	images, err := core.OpenImages(imageDir)
	if err != nil {
		return nil, err
	}
	snapshots, err := core.OpenSnapshots(snapshotDir, images)
	if err != nil {
		return nil, err
	}
	return &store{images, snapshots, dir, assets}, nil
}

// ownStore is the user's own store, opened when it is first needed. A failure is not kept: the next call may fare better.
type ownStore struct {
	mu sync.Mutex
	s  *store
}

func (o *ownStore) open() (*store, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.s != nil {
		return o.s, nil
	}
	s, err := openStore("", "")
	if err == nil {
		o.s = s
	}
	return s, err
}

// use counts the calls that run on an object, so that it is released only when none does, and has them end when it is closed.
type use struct {
	ctx     context.Context
	cancel  context.CancelFunc
	release func() // called once, when the object is closed and no call runs on it

	mu     sync.Mutex
	calls  int
	closed bool
}

func newUse(release func()) *use {
	u := &use{release: release}
	u.ctx, u.cancel = context.WithCancel(context.Background())
	return u
}

func (u *use) context() context.Context { return u.ctx }

// enter begins a call. It reports false if the object is closed.
func (u *use) enter() (leave func(), ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, false
	}
	u.calls++
	return u.leave, true
}

func (u *use) leave() {
	u.mu.Lock()
	u.calls--
	last := u.closed && u.calls == 0
	u.mu.Unlock()
	if last {
		u.release()
	}
}

// close ends the calls that run, and releases the object once they have ended.
func (u *use) close() {
	u.mu.Lock()
	u.closed = true
	last := u.calls == 0
	u.mu.Unlock()
	u.cancel()
	if last {
		u.release()
	}
}

// vm is a VM behind a handle. One that was taken from a pool goes back to it when it is closed, and only when no call can reach it any
// more: what one use asked for must not happen in the next.
type vm struct {
	*use
	*core.VM
	pooled *core.PooledVM // nil for one that is its own
	keep   bool           // a pooled one is given back for the next, not thrown away
	done   chan struct{}  // closed when it is released
	err    error          // of the release
}

func newVM(v *core.VM, pooled *core.PooledVM) *vm {
	m := &vm{VM: v, pooled: pooled, keep: true, done: make(chan struct{})}
	m.use = newUse(func() {
		defer close(m.done)
		switch {
		case pooled == nil:
			m.err = v.Close()
		case m.keep:
			pooled.Release()
		default:
			pooled.Discard()
		}
	})
	return m
}

// closer is an object that a handle can be closed on.
type closer interface {
	closeHandle(ctx context.Context) error
}

func (s *store) closeHandle(context.Context) error { return nil }

func (m *vm) closeHandle(ctx context.Context) error {
	if m.pooled == nil {
		m.VM.Halt() // calls that wait for the guest end
	}
	m.use.close()
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *process) closeHandle(context.Context) error {
	p.cancel()
	return nil
}

type image struct{ *core.Snapshot }

func (i image) closeHandle(context.Context) error { return i.Snapshot.Close() }

type forward struct{ *core.Forward }

func (f forward) closeHandle(context.Context) error { return f.Forward.Close() }

type pool struct{ *core.Pool }

func (p pool) closeHandle(context.Context) error { return p.Pool.Close() }

// defineClose adds the call that closes handles of a kind.
func defineClose(name string, kind Kind, doc string) {
	define(name, kind, 0, doc, func(ctx context.Context, e *env, o any, _ *None) (None, error) {
		return None{}, o.(closer).closeHandle(ctx)
	})
	calls[len(calls)-1].takes = true
}

// drop releases what a result holds that nobody will receive: handles and file descriptors, found by the tags of its fields.
func (l *Library) drop(result any) {
	v := reflect.ValueOf(result)
	if v.Kind() != reflect.Struct {
		return
	}
	for _, f := range reflect.VisibleFields(v.Type()) {
		field := v.FieldByIndex(f.Index)
		switch f.Tag.Get("holds") {
		case "handle":
			l.dropHandle(field.Uint())
		case "handles":
			for i := range field.Len() {
				l.dropHandle(field.Index(i).Uint())
			}
		case "fd":
			if fd := int(field.Int()); fd >= 0 {
				unix.Close(fd)
			}
		}
	}
}

func (l *Library) dropHandle(token uint64) {
	if o, err := l.handles.take(token, Kind(token>>kindShift)); err == nil {
		go o.(closer).closeHandle(context.Background())
	}
}
