package admission

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

// fakeHost has memory that tests take and give back.
type fakeHost struct {
	free  atomic.Int64
	reads atomic.Int64
	lost  atomic.Bool
}

var errLost = errors.New("no /proc")

func (h *fakeHost) headroom() (int64, string, error) {
	h.reads.Add(1)
	if h.lost.Load() {
		return 0, "", errLost
	}
	return h.free.Load(), "the test's limit", nil
}

func newController(t *testing.T, free, margin int64, policy Policy) (*Controller, *fakeHost) {
	t.Helper()
	h := &fakeHost{}
	h.free.Store(free)
	c, err := New(Config{Headroom: h.headroom, Margin: margin, Policy: policy})
	require.NoError(t, err)
	return c, h
}

func admit(t *testing.T, c *Controller, bytes int64) *Reservation {
	t.Helper()
	r, err := c.Admit(t.Context(), bytes)
	require.NoError(t, err)
	return r
}

func TestAdmitCountsWhatIsReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newController(t, 1000*mib, 100*mib, Fail)
		a := admit(t, c, 600*mib)
		_, err := c.Admit(t.Context(), 400*mib)
		require.ErrorIs(t, err, ErrNoMemory)
		var e *NoMemoryError
		require.ErrorAs(t, err, &e)
		require.Equal(t, NoMemoryError{
			Need: 400 * mib, Have: 300 * mib, Headroom: 1000 * mib, Reserved: 600 * mib, Margin: 100 * mib, Source: "the test's limit",
		}, *e)
		require.EqualError(t, err, "admission: not enough memory: 400.0 MiB needed, 300.0 MiB available: "+
			"the test's limit leaves 1000.0 MiB, of which 600.0 MiB are reserved for VMs that are starting "+
			"and 100.0 MiB are kept free; end VMs, give this one less memory, or raise the limit")
		b := admit(t, c, 300*mib)
		require.Equal(t, Stats{Reserved: 900 * mib, Admitted: 2, Refused: 1}, c.Stats())

		// a has used half of what was expected, and that shows.
		h.free.Add(-300 * mib)
		a.Settle()
		a.Settle()
		require.Equal(t, int64(300*mib), c.Stats().Reserved)
		time.Sleep(minAge)
		admit(t, c, 300*mib).Release()
		_, err = c.Admit(t.Context(), 301*mib)
		require.ErrorIs(t, err, ErrNoMemory)

		b.Release()
		b.Release()
		b.Settle()
		require.Zero(t, c.Stats().Reserved)
		admit(t, c, 600*mib)
	})
}

func TestAdmitOnAnOldReadingCountsWhatWasSettledSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newController(t, 1000, 1, Fail)
		for range 9 {
			r := admit(t, c, 100)
			h.free.Add(-100) // which the controller has not read
			r.Settle()
		}
		require.Equal(t, int64(1), h.reads.Load())
		_, err := c.Admit(t.Context(), 100)
		require.ErrorIs(t, err, ErrNoMemory)
	})
}

func TestAdmitReadsSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newController(t, 1<<40, 0, Fail)
		for range 100 {
			admit(t, c, mib).Release()
			time.Sleep(maxAge / 10)
		}
		require.LessOrEqual(t, h.reads.Load(), int64(10))
		for range 100 {
			_, err := c.Admit(t.Context(), 1<<50)
			require.ErrorIs(t, err, ErrNoMemory)
		}
		require.LessOrEqual(t, h.reads.Load(), int64(11), "nor when it refuses")
	})
}

func TestAdmitManyAtOnce(t *testing.T) {
	c, h := newController(t, 1000, 100, Fail)
	var all sync.WaitGroup
	var admitted atomic.Int64
	for range 100 {
		all.Go(func() {
			r, err := c.Admit(t.Context(), 100)
			if err == nil {
				admitted.Add(1)
				h.free.Add(-100)
				r.Settle()
			}
		})
	}
	all.Wait()
	require.Positive(t, admitted.Load())
	require.GreaterOrEqual(t, h.free.Load(), int64(100), "the margin stays free, whatever was read when")
}

// wait is an Admit in another goroutine.
func wait(ctx context.Context, c *Controller, bytes int64) *waiting {
	w := &waiting{}
	go func() {
		r, err := c.Admit(ctx, bytes)
		w.reservation, w.err = r, err
		w.returned.Store(true)
	}()
	synctest.Wait()
	return w
}

type waiting struct {
	reservation *Reservation
	err         error
	returned    atomic.Bool
}

func TestAdmitWaitsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newController(t, 1001, 1, Wait)
		a := admit(t, c, 600)
		large := wait(t.Context(), c, 1000)
		small := wait(t.Context(), c, 100)
		require.False(t, large.returned.Load())
		require.False(t, small.returned.Load(), "it fits, but is behind")
		require.Equal(t, 2, c.Stats().Waiting)

		began := time.Now()
		a.Release()
		synctest.Wait()
		require.True(t, large.returned.Load())
		require.NoError(t, large.err)
		require.Zero(t, time.Since(began), "a release serves at once")
		require.False(t, small.returned.Load())

		large.reservation.Settle()
		h.free.Store(50)
		time.Sleep(time.Second)
		require.False(t, small.returned.Load())
		h.free.Store(101) // nobody tells the controller
		time.Sleep(pollInterval)
		synctest.Wait()
		require.True(t, small.returned.Load())
		require.NoError(t, small.err)

		small.reservation.Release()
		n := h.reads.Load()
		time.Sleep(time.Minute)
		require.LessOrEqual(t, h.reads.Load(), n+1, "no polling without need")
	})
}

func TestAdmitWaitsUntilContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := newController(t, 1001, 1, Wait)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		large := wait(ctx, c, 2000)
		small := wait(t.Context(), c, 1000)
		require.False(t, small.returned.Load())
		time.Sleep(time.Second)
		synctest.Wait()
		require.True(t, large.returned.Load())
		require.ErrorIs(t, large.err, ErrNoMemory)
		require.ErrorIs(t, large.err, context.DeadlineExceeded)
		require.ErrorContains(t, large.err, "not enough memory after waiting: context deadline exceeded: ")
		require.True(t, small.returned.Load(), "who is in front no more does not hold up the others")
		require.NoError(t, small.err)
		_, err := c.Admit(ctx, 0)
		require.Equal(t, context.DeadlineExceeded, err)
		require.Equal(t, Stats{Reserved: 1000, Admitted: 1, Refused: 1}, c.Stats())
		time.Sleep(pollInterval)
	})
}

func TestAdmitTellsWhatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h := newController(t, 10, 1, Wait)
		w := wait(t.Context(), c, 100)
		h.lost.Store(true)
		time.Sleep(pollInterval)
		synctest.Wait()
		require.True(t, w.returned.Load())
		require.Equal(t, errLost, w.err)
		time.Sleep(maxAge)
		_, err := c.Admit(t.Context(), 1)
		require.Equal(t, errLost, err)
		require.Zero(t, c.Stats().Reserved)
	})
}

func TestControllerStorm(t *testing.T) {
	const total, each = 1000, 100
	c, h := newController(t, total, 1, Wait)
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() {
			for i := range 20 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
				r, err := c.Admit(ctx, each)
				cancel()
				if err != nil {
					continue
				}
				if h.free.Add(-each) < 0 {
					t.Error("more was admitted than there is")
				}
				if i%2 == 0 {
					r.Settle()
				}
				h.free.Add(each)
				r.Release()
			}
		})
	}
	all.Wait()
	s := c.Stats()
	require.Zero(t, s.Reserved)
	require.Zero(t, s.Waiting)
	require.Positive(t, s.Admitted)
}

func TestNewChecks(t *testing.T) {
	_, err := New(Config{Margin: -1})
	require.ErrorIs(t, err, ErrConfig)
	require.ErrorContains(t, err, "Margin: -1 is out of range, 1 byte or more is possible")
	_, err = New(Config{Policy: 7})
	require.ErrorContains(t, err, "Policy: 7 is neither Fail nor Wait")
	c, err := New(Config{})
	require.NoError(t, err)
	_, err = c.Admit(t.Context(), -1)
	require.ErrorIs(t, err, ErrConfig)
	admit(t, c, 1).Release()
}
