// Package rate limits what a device does: token buckets.
package rate

import "time"

// burstTime is how long a bucket takes to fill.
const burstTime = 50 * time.Millisecond

// Bucket is a token bucket. Something may go while tokens are left, and may leave a debt of its own size, so that what is larger than the burst goes
// too. The zero value limits nothing. It is not safe for concurrent use.
type Bucket struct {
	rate   float64 // tokens per second; 0 is no limit
	burst  float64
	tokens float64
	at     time.Time // of tokens
}

// New returns a full bucket of so many tokens per second, 0 for no limit. Its burst is what comes in 50 ms, but at least minBurst.
func New(rate, minBurst int64) Bucket {
	burst := max(float64(minBurst), float64(rate)*burstTime.Seconds())
	return Bucket{rate: float64(rate), burst: burst, tokens: burst}
}

// Wait returns how long it is until something may go, 0 if it may now.
func (b *Bucket) Wait(now time.Time) time.Duration {
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
	// A little more than the debt, so that what follows does not need a timer each.
	return time.Duration((b.burst/8-b.tokens)/b.rate*float64(time.Second)) + 1
}

// Take takes n tokens.
func (b *Bucket) Take(n int64) {
	if b.rate != 0 {
		b.tokens -= float64(n)
	}
}
