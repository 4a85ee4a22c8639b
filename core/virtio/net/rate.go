package net

import "time"

// A bucket's burst is what its rate yields in burstTime, but at least minBurst.
const (
	burstTime = 50 * time.Millisecond
	minBurst  = 64 << 10
)

// bucket is a token bucket of bytes. A frame may go while tokens are left, and may leave a debt of its own length, so that a frame longer than
// the burst goes too. The zero value limits nothing.
type bucket struct {
	rate   float64 // bytes per second; 0 is no limit
	burst  float64
	tokens float64
	at     time.Time // of tokens
}

func newBucket(rate int64) bucket {
	burst := max(minBurst, float64(rate)*burstTime.Seconds())
	return bucket{rate: float64(rate), burst: burst, tokens: burst}
}

// wait returns how long it is until a frame may go, 0 if one may now.
func (b *bucket) wait(now time.Time) time.Duration {
	if b.rate == 0 {
		return 0
	}
	if !b.at.IsZero() {
		b.tokens = min(b.burst, b.tokens+now.Sub(b.at).Seconds()*b.rate)
	}
	b.at = now
	if b.tokens > 0 {
		return 0
	}
	// A little more than the debt, so that the frames that follow do not each need a timer.
	return time.Duration((b.burst/8-b.tokens)/b.rate*float64(time.Second)) + 1
}

func (b *bucket) take(n int) {
	if b.rate != 0 {
		b.tokens -= float64(n)
	}
}
