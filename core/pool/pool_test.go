package pool

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPoolFillsToMinAndRefillsWhatIsTaken(t *testing.T) {
	run(t, Config[*fake]{Min: 3, Max: 5}, func(t *testing.T, p *Pool[*fake], f *factory) {
		sleep(startTime)
		require.Equal(t, 3, p.Stats().Idle)
		began := time.Now()
		g := acquire(t, p)
		require.Zero(t, time.Since(began), "an idle instance is taken without waiting")
		require.Equal(t, 2, p.Stats().Idle)
		require.Equal(t, 1, p.Stats().Starting)
		sleep(startTime)
		require.Equal(t, 3, p.Stats().Idle)
		require.Equal(t, 4, p.Stats().Alive)
		g2, g3 := acquire(t, p), acquire(t, p)
		sleep(startTime)
		require.Equal(t, 2, p.Stats().Idle, "Max allows no more")
		require.Equal(t, 5, p.Stats().Alive)
		for _, g := range []*Guard[*fake]{g, g2, g3} {
			g.Release()
		}
	})
}

func TestPoolReleaseWithoutResetReplaces(t *testing.T) {
	run(t, Config[*fake]{Max: 2}, func(t *testing.T, p *Pool[*fake], f *factory) {
		g := acquire(t, p)
		used := g.Value()
		began := time.Now()
		g.Release()
		require.Zero(t, time.Since(began), "Release does not block")
		require.Nil(t, g.Value(), "a released guard shows nothing")
		sleep(startTime)
		require.Equal(t, 1, p.Stats().Idle, "a fresh one is ready before the used one is closed")
		require.Equal(t, 1, p.Stats().Closing)
		sleep(closeTime)
		require.Equal(t, int32(1), used.closed.Load())
		require.Zero(t, p.Stats().Closing)
		g = acquire(t, p)
		require.NotSame(t, used, g.Value())
		g.Release()
	})
}

func TestPoolReleaseResetsInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		p := newPool(t, f, withReset(f, Config[*fake]{Max: 1}))
		g := acquire(t, p)
		used := g.Value()
		g.Release()
		require.Equal(t, 1, p.Stats().Resetting)
		next := acquire(t, p)
		require.Same(t, used, next.Value())
		require.NoError(t, g.Close())
		g.Release()
		g.Discard()
		require.Equal(t, 1, p.Stats().InUse, "a late release of an earlier use does nothing")

		f.noReset.Store(true)
		next.Release()
		sleep(resetTime + startTime)
		s := p.Stats()
		require.Equal(t, []uint64{1, 1, 2}, []uint64{s.Resets, s.ResetFailures, s.Starts})
		g = acquire(t, p)
		require.NotSame(t, used, g.Value())
		g.Discard()
		sleep(closeTime)
		require.Zero(t, p.Stats().Alive, "a discarded instance is not replaced without need")
		require.NoError(t, p.Close())
		require.Zero(t, f.alive.Load())
	})
}

func TestPoolServesInOrderOfArrival(t *testing.T) {
	run(t, Config[*fake]{Max: 1}, func(t *testing.T, p *Pool[*fake], f *factory) {
		g := acquire(t, p)
		var waiting []<-chan result[*fake]
		for range 5 {
			waiting = append(waiting, asyncAcquire(t.Context(), p))
		}
		require.Equal(t, 5, p.Stats().Waiting)
		for i, w := range waiting {
			g.Release()
			sleep(startTime)
			g = got(t, w).guard
			for _, later := range waiting[i+1:] {
				pending(t, later)
			}
		}
		g.Release()
		require.LessOrEqual(t, f.most.Load(), int64(1+DefaultReapers), "at most Max, and Reapers that are being closed")
	})
}

func TestPoolServesFirstWithWhateverIsReadyFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		p := newPool(t, f, withReset(f, Config[*fake]{Max: 2}))
		g := acquire(t, p)
		used := g.Value()
		w := asyncAcquire(t.Context(), p)
		require.Equal(t, 1, p.Stats().Starting)
		g.Release()
		sleep(resetTime)
		r := got(t, w)
		require.Same(t, used, r.guard.Value())
		sleep(startTime)
		require.Equal(t, 1, p.Stats().Idle, "what was started for it is kept")
		r.guard.Release()
		require.NoError(t, p.Close())
	})
}

func TestPoolStartsOnlyWhatIsNeeded(t *testing.T) {
	run(t, Config[*fake]{Max: 100, Parallel: 2}, func(t *testing.T, p *Pool[*fake], f *factory) {
		ctx, cancel := context.WithCancel(t.Context())
		for range 10 {
			asyncAcquire(ctx, p)
		}
		require.Equal(t, 2, p.Stats().Starting, "Parallel bounds starts")
		cancel()
		synctest.Wait()
		require.Zero(t, p.Stats().Waiting)
		sleep(10 * startTime)
		require.Equal(t, int64(2), f.started.Load(), "nobody waits for the others")
	})
}

func TestPoolExhausted(t *testing.T) {
	run(t, Config[*fake]{Max: 2, AcquireTimeout: time.Second}, func(t *testing.T, p *Pool[*fake], f *factory) {
		g, g2 := acquire(t, p), acquire(t, p)
		first := asyncAcquire(t.Context(), p)
		sleep(time.Second / 2)
		second := asyncAcquire(t.Context(), p)
		sleep(time.Second / 2)
		err := got(t, first).err
		require.ErrorIs(t, err, ErrExhausted)
		var e *ExhaustedError
		require.ErrorAs(t, err, &e)
		require.Equal(t, ExhaustedError{Max: 2, InUse: 2, Waiting: 1, Timeout: time.Second}, *e)
		require.ErrorContains(t, err, "within 1s: 2 of at most 2 are in use, 0 are starting, 1 more callers wait")
		pending(t, second)
		g.Release()
		sleep(startTime)
		got(t, second).guard.Release()
		g2.Release()
	})
}

func TestPoolAcquireContext(t *testing.T) {
	run(t, Config[*fake]{Max: 1, AcquireTimeout: time.Hour}, func(t *testing.T, p *Pool[*fake], f *factory) {
		g := acquire(t, p)
		ctx, cancel := context.WithCancel(t.Context())
		canceled := asyncAcquire(ctx, p)
		late, cancelLate := context.WithTimeout(t.Context(), time.Second)
		defer cancelLate()
		timed := asyncAcquire(late, p)
		cancel()
		require.Equal(t, context.Canceled, got(t, canceled).err)
		sleep(time.Second)
		require.Equal(t, context.DeadlineExceeded, got(t, timed).err)
		require.Zero(t, p.Stats().Waiting)
		_, err := p.Acquire(ctx)
		require.Equal(t, context.Canceled, err)
		g.Release()
		sleep(startTime)
		require.Equal(t, 1, p.Stats().Idle, "nothing is lost to callers that have gone")
		_, err = p.Acquire(ctx)
		require.Equal(t, context.Canceled, err, "even with an idle instance")
	})
}

func TestPoolReplacesIdleDead(t *testing.T) {
	run(t, Config[*fake]{Min: 2, Max: 4}, func(t *testing.T, p *Pool[*fake], f *factory) {
		sleep(2 * infancy)
		p.idle.oldest.member.value.die()
		synctest.Wait()
		require.Equal(t, 1, p.Stats().Idle)
		sleep(startTime)
		require.Equal(t, 2, p.Stats().Idle, "replaced at once")
		require.Equal(t, uint64(1), p.Stats().Deaths)

		sleep(2 * infancy)
		p.idle.newest.member.value.die() // and nobody has noticed yet
		g := acquire(t, p)
		require.Equal(t, uint64(2), p.Stats().Deaths)
		g.Release()
	})
}

func TestPoolDeadInUse(t *testing.T) {
	run(t, Config[*fake]{Max: 2}, func(t *testing.T, p *Pool[*fake], f *factory) {
		g := acquire(t, p)
		v := g.Value()
		v.die()
		synctest.Wait()
		require.Equal(t, 1, p.Stats().InUse)
		g.Release()
		sleep(closeTime)
		require.Equal(t, int32(1), v.closed.Load())
		s := p.Stats()
		require.Equal(t, uint64(1), s.Deaths)
		require.Zero(t, s.Alive, "gone, and nobody needs another")
	})
}

func TestPoolDeadWhileReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		p := newPool(t, f, withReset(f, Config[*fake]{Min: 1, Max: 1}))
		g := acquire(t, p)
		v := g.Value()
		g.Release()
		sleep(resetTime / 2)
		v.die()
		sleep(resetTime)
		require.Zero(t, p.Stats().Idle)
		sleep(firstPause + startTime)
		require.Equal(t, 1, p.Stats().Idle)
		require.NoError(t, p.Close())
		require.Equal(t, int32(1), v.closed.Load())
		require.Zero(t, f.alive.Load())
	})
}

func TestPoolEvictsSurplus(t *testing.T) {
	const timeout = time.Minute
	run(t, Config[*fake]{Min: 1, Max: 10, IdleTimeout: timeout}, func(t *testing.T, p *Pool[*fake], f *factory) {
		sleep(10 * timeout)
		require.Equal(t, 1, p.Stats().Idle, "Min stay forever")
		var guards []*Guard[*fake]
		for range 4 {
			guards = append(guards, acquire(t, p))
		}
		for _, g := range guards {
			g.Release()
		}
		sleep(closeTime)
		require.Equal(t, 5, p.Stats().Idle)
		require.Zero(t, p.Stats().Evictions, "the surplus has just come")
		sleep(timeout / 2)
		g := acquire(t, p)
		g.Release()
		sleep(timeout/2 + closeTime)
		require.Equal(t, 2, p.Stats().Idle, "one was needed meanwhile")
		sleep(timeout)
		s := p.Stats()
		require.Equal(t, 1, s.Idle)
		require.Equal(t, uint64(4), s.Evictions)
		require.Equal(t, int64(1), f.alive.Load())
	})
}

func TestPoolCloseServesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		p := newPool(t, f, withReset(f, Config[*fake]{Min: 1, Max: 3}))
		g, resetting := acquire(t, p), acquire(t, p)
		sleep(startTime)
		require.Equal(t, 1, p.Stats().Idle)
		starting := acquire(t, p)
		starting.Discard()
		require.Equal(t, 1, p.Stats().Starting)
		var waiting []<-chan result[*fake]
		for range 3 {
			waiting = append(waiting, asyncAcquire(t.Context(), p))
		}
		resetting.Release()
		require.NoError(t, p.Close())
		for _, w := range waiting {
			require.Equal(t, ErrClosed, got(t, w).err)
		}
		_, err := p.Acquire(t.Context())
		require.Equal(t, ErrClosed, err)
		require.Equal(t, int64(1), f.alive.Load(), "the one in use")
		require.Equal(t, 1, p.Stats().Alive)
		v := g.Value()
		require.Zero(t, v.closed.Load())
		g.Release()
		require.NoError(t, p.Close(), "closing twice; it waits for what was released meanwhile")
		require.Equal(t, int32(1), v.closed.Load())
	})
}

func TestPoolClosesInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &factory{}
		p := newPool(t, f, Config[*fake]{Min: 64, Max: 64, Parallel: 64})
		sleep(startTime)
		began := time.Now()
		require.NoError(t, p.Close())
		require.Equal(t, 2*closeTime, time.Since(began))
		require.Zero(t, f.alive.Load())
	})
}

func TestPoolBoundsWhatIsBeingClosed(t *testing.T) {
	run(t, Config[*fake]{Max: 4, Reapers: 2}, func(t *testing.T, p *Pool[*fake], f *factory) {
		for range 20 {
			acquire(t, p).Discard()
		}
		require.LessOrEqual(t, f.most.Load(), int64(4+2))
	})
}

func TestConfigCheck(t *testing.T) {
	start := (&factory{}).start
	require.NoError(t, Config[*fake]{Start: start}.Check())
	require.NoError(t, Config[*fake]{Start: start, Min: 100}.Check(), "Max follows Min")
	for want, cfg := range map[string]Config[*fake]{
		"Start is required": {},
		"Max: -1 is out of range, 1 to 65536 are possible":     {Start: start, Max: -1},
		"Min: 70000 is out of range, 0 to 65536 are possible":  {Start: start, Min: 70000},
		"Min: 3 is out of range, 0 to 2 are possible":          {Start: start, Min: 3, Max: 2},
		"Min: -3 is out of range, 0 to 32 are possible":        {Start: start, Min: -3},
		"Parallel: -1 is out of range, 1 to 1024 are possible": {Start: start, Parallel: -1},
		"Reapers: 2000 is out of range":                        {Start: start, Reapers: 2000},
		"IdleTimeout: -1ns is out of range":                    {Start: start, IdleTimeout: -1},
		"AcquireTimeout: -1ns is out of range":                 {Start: start, AcquireTimeout: -1},
	} {
		err := cfg.Check()
		require.ErrorIs(t, err, ErrConfig)
		require.ErrorContains(t, err, want)
		_, err = New(cfg)
		require.ErrorIs(t, err, ErrConfig)
	}
}
