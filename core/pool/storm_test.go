package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Many users at once, on the real clock and the race detector, with everything going wrong now and then.
func TestPoolStorm(t *testing.T) {
	f := &factory{}
	cfg := Config[*fake]{Min: 4, Max: 16, Parallel: 8, IdleTimeout: 2 * time.Millisecond, AcquireTimeout: 50 * time.Millisecond}
	cfg.Start = func(ctx context.Context) (*fake, error) {
		if rand.IntN(50) == 0 {
			return nil, errFake
		}
		i, err := f.start(ctx)
		if err == nil && rand.IntN(20) == 0 {
			time.AfterFunc(time.Millisecond, i.die)
		}
		return i, err
	}
	cfg.Reset = func(ctx context.Context, i *fake) error {
		if rand.IntN(20) == 0 {
			return errFake
		}
		return f.reset(ctx, i)
	}
	p, err := New(cfg)
	require.NoError(t, err)
	before := runtime.NumGoroutine()

	var users sync.WaitGroup
	var uses atomic.Int64
	for range 64 {
		users.Go(func() {
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(100))*time.Millisecond)
				g, err := p.Acquire(ctx)
				cancel()
				if err != nil {
					if !errors.Is(err, ErrStart) && !errors.Is(err, ErrExhausted) && !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("unexpected error: %v", err)
					}
					continue
				}
				uses.Add(1)
				if !g.Value().secret.CompareAndSwap(0, 1) {
					t.Error("an instance has two users, or was not reset")
				}
				switch rand.IntN(10) {
				case 0:
					g.Value().die()
				case 1:
					g.Discard()
				}
				g.Release()
				go g.Close()
			}
		})
	}
	users.Wait()
	require.NoError(t, p.Close())
	s := p.Stats()
	require.Zero(t, s.Alive+s.Starting+s.Closing+s.Waiting+s.InUse)
	require.Zero(t, f.alive.Load(), "instances that were never closed")
	require.LessOrEqual(t, f.most.Load(), int64(16+DefaultReapers), "Max and Reapers")
	require.Equal(t, uint64(uses.Load()), s.Acquires)
	require.Positive(t, s.Acquires)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before }, 5*time.Second, time.Millisecond, "goroutines left")
}

func TestPoolStats(t *testing.T) {
	run(t, Config[*fake]{Max: 1}, func(t *testing.T, p *Pool[*fake], f *factory) {
		for range 50 {
			acquire(t, p).Release() // each but the first waits for the replacement
		}
		s := p.Stats()
		require.Equal(t, uint64(50), s.Acquires)
		require.InEpsilon(t, startTime, s.AcquireP50, 0.04)
		require.InEpsilon(t, startTime, s.AcquireP99, 0.04)
		synctest.Wait()
	})
}

func TestHistogram(t *testing.T) {
	last := -1
	for ns := uint64(0); ns < 1<<50; ns += 1 + ns/1000 {
		b := bucketOf(ns)
		require.True(t, b == last || b == last+1, "buckets are in order and without gaps: %d ns", ns)
		last = b
		if ns < 1<<maxExp {
			require.InDelta(t, float64(ns), float64(middleOf(b)), float64(ns)/30, "%d ns", ns)
		}
	}
	require.Equal(t, numBuckets-1, last)

	var h histogram
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Microsecond)
	}
	h.add(-1)
	n, q := h.quantiles([2]float64{0.5, 0.99})
	require.Equal(t, uint64(1001), n)
	require.InEpsilon(t, 500*time.Microsecond, q[0], 0.04)
	require.InEpsilon(t, 990*time.Microsecond, q[1], 0.04)
	_, q = new(histogram).quantiles([2]float64{0.5, 0.99})
	require.Zero(t, q)
}
