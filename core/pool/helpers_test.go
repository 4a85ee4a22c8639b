package pool

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Times of the fake instances, which are those of real VMs.
const (
	startTime = time.Millisecond
	resetTime = 500 * time.Microsecond
	closeTime = 20 * time.Millisecond
)

var errFake = errors.New("no kernel")

// fake is an instance that notes who used it.
type fake struct {
	factory *factory
	done    chan struct{}
	end     sync.Once
	closed  atomic.Int32
	secret  atomic.Int64 // what a user left behind
}

func (f *fake) Done() <-chan struct{} { return f.done }

func (f *fake) die() { f.end.Do(func() { close(f.done) }) }

func (f *fake) Close() error {
	f.die()
	time.Sleep(closeTime)
	if f.closed.Add(1) == 1 {
		f.factory.alive.Add(-1)
	}
	return nil
}

// factory starts and resets fakes.
type factory struct {
	started  atomic.Int64
	attempts atomic.Int64
	alive    atomic.Int64 // started and not yet closed
	most     atomic.Int64
	broken   atomic.Bool // Start fails
	dud      atomic.Bool // Start gives instances that end by themselves a millisecond later
	noReset  atomic.Bool // Reset fails
}

func (f *factory) start(ctx context.Context) (*fake, error) {
	f.attempts.Add(1)
	select {
	case <-time.After(startTime):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if f.broken.Load() {
		return nil, errFake
	}
	n := f.alive.Add(1)
	for m := f.most.Load(); n > m && !f.most.CompareAndSwap(m, n); m = f.most.Load() {
	}
	f.started.Add(1)
	i := &fake{factory: f, done: make(chan struct{})}
	if f.dud.Load() {
		time.AfterFunc(time.Millisecond, i.die)
	}
	return i, nil
}

func (f *factory) reset(_ context.Context, i *fake) error {
	time.Sleep(resetTime)
	if f.noReset.Load() {
		return errFake
	}
	i.secret.Store(0)
	return nil
}

// run runs test with a pool in a bubble with a fake clock; after it the pool is closed, and nothing may be left of it.
func run(t *testing.T, cfg Config[*fake], test func(t *testing.T, p *Pool[*fake], f *factory)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		p := newPool(t, f, cfg)
		test(t, p, f)
		require.NoError(t, p.Close())
		require.Equal(t, int64(p.Stats().InUse), f.alive.Load(), "instances left that nobody uses")
	})
}

func newPool(t *testing.T, f *factory, cfg Config[*fake]) *Pool[*fake] {
	t.Helper()
	cfg.Start = f.start
	setDefault(&cfg.Parallel, 8) // whatever machine this is
	p, err := New(cfg)
	require.NoError(t, err)
	return p
}

// withReset is cfg with the factory's Reset, for pools that are made by hand.
func withReset(f *factory, cfg Config[*fake]) Config[*fake] {
	cfg.Reset = f.reset
	return cfg
}

func acquire(t *testing.T, p *Pool[*fake]) *Guard[*fake] {
	t.Helper()
	g, err := p.Acquire(t.Context())
	require.NoError(t, err)
	select {
	case <-g.Value().Done():
		require.Fail(t, "an instance that has ended was handed out")
	default:
	}
	require.Zero(t, g.Value().secret.Load(), "seen by the next user")
	g.Value().secret.Store(42)
	return g
}

// asyncAcquire is an Acquire in another goroutine, which waits when asyncAcquire returns, unless it is served at once.
func asyncAcquire(ctx context.Context, p *Pool[*fake]) <-chan result[*fake] {
	c := make(chan result[*fake], 1)
	go func() {
		g, err := p.Acquire(ctx)
		c <- result[*fake]{g, err}
	}()
	synctest.Wait()
	return c
}

// got returns what has come of an asyncAcquire; it must have come.
func got(t *testing.T, c <-chan result[*fake]) result[*fake] {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-c:
		return r
	default:
		require.FailNow(t, "Acquire still waits")
		return result[*fake]{}
	}
}

// pending requires that nothing has come of an asyncAcquire.
func pending(t *testing.T, c <-chan result[*fake]) {
	t.Helper()
	synctest.Wait()
	select {
	case r := <-c:
		require.FailNow(t, "Acquire has returned", "%v %v", r.guard, r.err)
	default:
	}
}

// sleep lets the fake clock go on and what is due happen.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
