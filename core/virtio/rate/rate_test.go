package rate

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBucketKeepsItsRate(t *testing.T) {
	now := time.Unix(0, 0)
	b := New(1000, 10)
	var taken int64
	for end := now.Add(10 * time.Second); now.Before(end); {
		if w := b.Wait(now); w > 0 {
			now = now.Add(w)
			continue
		}
		b.Take(7)
		taken += 7
	}
	require.InDelta(t, 10_000, taken, 100)
	now = now.Add(time.Hour)
	require.Zero(t, b.Wait(now))
	b.Take(60)
	require.Positive(t, b.Wait(now), "what was not used is not saved up beyond the burst")
}

func TestLargeThingsGoAndLeaveADebt(t *testing.T) {
	now := time.Unix(0, 0)
	b := New(100, 1)
	require.Zero(t, b.Wait(now))
	b.Take(1000)
	w := b.Wait(now)
	require.Greater(t, w, 9*time.Second)
	require.Zero(t, b.Wait(now.Add(w)))
}

func TestNoLimit(t *testing.T) {
	var b Bucket
	b.Take(1 << 40)
	require.Zero(t, b.Wait(time.Unix(0, 0)))
}
