package pool

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPoolTellsWhyNothingStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		f.broken.Store(true)
		p := newPool(t, f, Config[*fake]{Min: 1, Max: 4})
		_, err := p.Acquire(t.Context()) // comes during the first fill
		require.ErrorIs(t, err, ErrStart)
		require.ErrorIs(t, err, errFake)
		began := time.Now()
		_, err = p.Acquire(t.Context()) // comes in the pause
		require.Zero(t, time.Since(began))
		var e *StartError
		require.ErrorAs(t, err, &e)
		require.Equal(t, StartError{Err: errFake, Failures: 1, Retry: firstPause}, *e)
		require.ErrorContains(t, err, "no kernel (failures in a row: 1; next attempt in 10ms)")

		sleep(10 * time.Second)
		n := f.attempts.Load()
		require.InDelta(t, 13, n, 2, "the pauses double up to the longest")
		sleep(100 * longestPause)
		require.InDelta(t, 100, f.attempts.Load()-n, 1)

		f.broken.Store(false)
		sleep(longestPause + 2*startTime)
		require.Equal(t, 1, p.Stats().Idle, "recovers by itself")
		require.Equal(t, uint64(f.attempts.Load()-1), p.Stats().StartFailures)
		acquire(t, p).Discard()
		acquire(t, p).Discard()
		require.NoError(t, p.Close())
	})
}

func TestPoolWithoutMinTriesOnDemandOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		f.broken.Store(true)
		p := newPool(t, f, Config[*fake]{Max: 4})
		for range 100 {
			_, err := p.Acquire(t.Context())
			require.ErrorIs(t, err, errFake)
		}
		require.Equal(t, int64(1), f.attempts.Load(), "no attempt in the pause")
		sleep(time.Hour)
		require.Equal(t, int64(1), f.attempts.Load())
		f.broken.Store(false)
		acquire(t, p).Release()
		require.NoError(t, p.Close())
	})
}

func TestPoolOneFailureFailsOneCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		var n atomic.Int64
		p, err := New(Config[*fake]{Max: 8, Parallel: 8, Start: func(ctx context.Context) (*fake, error) {
			if n.Add(1) == 1 {
				return nil, errFake
			}
			return f.start(ctx)
		}})
		require.NoError(t, err)
		gate := make(chan struct{})
		p.cfg.Gate = gateFunc(func() { <-gate })
		var waiting []<-chan result[*fake]
		for range 5 {
			waiting = append(waiting, asyncAcquire(t.Context(), p))
		}
		require.Equal(t, 5, p.Stats().Starting)
		close(gate)
		synctest.Wait()
		require.ErrorIs(t, got(t, waiting[4]).err, errFake, "the last one has no instance")
		sleep(startTime)
		for _, w := range waiting[:4] {
			got(t, w).guard.Discard()
		}
		require.NoError(t, p.Close())
	})
}

// gateFunc is a gate that lets everybody in after a call.
type gateFunc func()

func (g gateFunc) Enter(context.Context) (func(), error) {
	g()
	return func() {}, nil
}

// oneByOne is a gate for one at a time.
type oneByOne struct {
	turn chan struct{}
	err  error
}

func (g *oneByOne) Enter(ctx context.Context) (func(), error) {
	if g.err != nil {
		return nil, g.err
	}
	select {
	case g.turn <- struct{}{}:
		time.Sleep(time.Microsecond)
		return func() { <-g.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestPoolGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		gate := &oneByOne{turn: make(chan struct{}, 1)}
		p := newPool(t, f, Config[*fake]{Min: 4, Max: 4, Gate: gate})
		sleep(2 * startTime)
		require.Equal(t, 1, p.Stats().Idle, "one at a time")
		sleep(5 * startTime)
		require.Equal(t, 4, p.Stats().Idle)
		require.NoError(t, p.Close())

		full := errors.New("no memory")
		p = newPool(t, f, Config[*fake]{Gate: &oneByOne{err: full}})
		_, err := p.Acquire(t.Context())
		require.ErrorIs(t, err, full)
		require.NoError(t, p.Close())
	})
}

func TestPoolWaitsForReleaseWhenNothingStarts(t *testing.T) {
	run(t, Config[*fake]{Max: 1}, func(t *testing.T, p *Pool[*fake], f *factory) {
		g := acquire(t, p)
		f.broken.Store(true)
		w := asyncAcquire(t.Context(), p)
		sleep(time.Hour)
		pending(t, w) // Max is reached
		g.Release()
		sleep(startTime)
		require.ErrorIs(t, got(t, w).err, errFake)
		require.Zero(t, p.Stats().Alive)
	})
}

func TestPoolInstancesThatDieAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		f.dud.Store(true)
		p := newPool(t, f, Config[*fake]{Min: 4, Max: 8})
		sleep(5 * time.Second)
		require.Less(t, f.started.Load(), int64(60), "no hot loop")
		_, err := p.Acquire(t.Context())
		require.ErrorIs(t, err, ErrStart)
		require.ErrorContains(t, err, "the instance ended, unused, 1ms after it was ready")
		f.dud.Store(false)
		sleep(longestPause + startTime)
		require.Equal(t, 4, p.Stats().Idle)
		require.NoError(t, p.Close())
		require.Zero(t, f.alive.Load())
	})
}

func TestPoolForgetsOldFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		f.broken.Store(true)
		p := newPool(t, f, Config[*fake]{Min: 1, Max: 2})
		sleep(time.Minute)
		f.broken.Store(false)
		sleep(time.Minute)
		require.Equal(t, 1, p.Stats().Idle)
		f.broken.Store(true)
		g := acquire(t, p)
		_, err := p.Acquire(t.Context())
		var e *StartError
		require.ErrorAs(t, err, &e)
		require.Equal(t, 1, e.Failures)
		g.Release()
		require.NoError(t, p.Close())
	})
}

func TestPoolCloseWhileStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		deaf := make(chan struct{})
		p, err := New(Config[*fake]{Min: 1, Max: 2, Start: func(context.Context) (*fake, error) {
			<-deaf // Start that does not heed its context
			return f.start(context.Background())
		}})
		require.NoError(t, err)
		w := asyncAcquire(t.Context(), p)
		closed := make(chan error, 1)
		go func() { closed <- p.Close() }()
		require.Equal(t, ErrClosed, got(t, w).err)
		require.Empty(t, closed)
		close(deaf)
		require.NoError(t, <-closed)
		require.Zero(t, f.alive.Load(), "what was started too late is closed")
	})
}

// failingClose is an instance whose Close fails.
type failingClose struct{ *fake }

func (f failingClose) Close() error {
	f.fake.Close()
	return errFake
}

func TestPoolCloseTellsFirstError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		p, err := New(Config[failingClose]{Start: func(ctx context.Context) (failingClose, error) {
			i, err := f.start(ctx)
			return failingClose{i}, err
		}})
		require.NoError(t, err)
		g, err := p.Acquire(t.Context())
		require.NoError(t, err)
		g.Discard()
		require.Equal(t, errFake, p.Close())
	})
}
