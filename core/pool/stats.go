package pool

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats is the state of a pool at one moment, and what it has done since New.
type Stats struct {
	Min, Max int // as configured

	Alive     int // instances there are: Idle + InUse + Resetting
	Idle      int // ready
	InUse     int
	Resetting int // released, not yet reset
	Starting  int
	Closing   int // released, ended or evicted, not yet closed
	Waiting   int // callers in Acquire that found nothing idle

	Starts        uint64 // instances started, such as by a restore
	StartFailures uint64
	Resets        uint64 // instances reset in place
	ResetFailures uint64 // resets that failed, so that the instance was replaced
	Evictions     uint64 // instances closed because they were idle for IdleTimeout
	Deaths        uint64 // instances that ended by themselves, idle or in use

	Acquires   uint64        // successful ones
	AcquireP50 time.Duration // how long the successful ones took, median; ±3 %
	AcquireP99 time.Duration // 99th percentile
}

type counters struct {
	starts, failures, resets, resetFailures, evictions, deaths uint64
}

// Stats returns the pool's state. It takes some microseconds.
func (p *Pool[T]) Stats() Stats {
	p.mu.Lock()
	s := Stats{
		Min: p.cfg.Min, Max: p.cfg.Max,
		Alive: p.alive(), Idle: p.idle.n, InUse: p.inUse, Resetting: p.resetting,
		Starting: p.starting, Closing: p.closing, Waiting: p.waiters.Len(),
		Starts: p.counts.starts, StartFailures: p.counts.failures, Resets: p.counts.resets, ResetFailures: p.counts.resetFailures,
		Evictions: p.counts.evictions, Deaths: p.counts.deaths,
	}
	p.mu.Unlock()
	var q [2]time.Duration
	s.Acquires, q = p.latency.quantiles([2]float64{0.5, 0.99})
	s.AcquireP50, s.AcquireP99 = q[0], q[1]
	return s
}

// histogram counts durations in buckets whose width is a 16th of their power of two. It is 5 KiB, whatever it counts, and needs no lock.
type histogram struct {
	buckets [numBuckets]atomic.Uint64
}

const (
	subBits    = 4
	subBuckets = 1 << subBits
	maxExp     = 42 // the last power of two with buckets of its own: 2^42 ns is more than an hour
	numBuckets = subBuckets * (maxExp - subBits + 2)
)

// bucketOf returns the bucket of a duration of ns. Below subBuckets each value has its own.
func bucketOf(ns uint64) int {
	if ns < subBuckets {
		return int(ns)
	}
	exp := bits.Len64(ns) - 1
	if exp > maxExp {
		return numBuckets - 1
	}
	return subBuckets*(exp-subBits) + int(ns>>(exp-subBits))
}

// middleOf returns the middle of a bucket.
func middleOf(bucket int) time.Duration {
	if bucket < 2*subBuckets {
		return time.Duration(bucket)
	}
	shift := bucket/subBuckets - 1
	return time.Duration(subBuckets+bucket%subBuckets)<<shift + 1<<shift/2
}

func (h *histogram) add(d time.Duration) { h.buckets[bucketOf(uint64(max(0, d)))].Add(1) }

// quantiles returns how many durations were counted, and the ones below which the shares of them lie, which ascend.
func (h *histogram) quantiles(shares [2]float64) (total uint64, at [2]time.Duration) {
	var counts [numBuckets]uint64
	for i := range h.buckets {
		counts[i] = h.buckets[i].Load()
		total += counts[i]
	}
	var seen uint64
	next := 0
	for i, n := range counts {
		seen += n
		for next < len(shares) && n > 0 && float64(seen) >= shares[next]*float64(total) {
			at[next] = middleOf(i)
			next++
		}
	}
	return total, at
}
