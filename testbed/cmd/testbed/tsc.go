//go:build amd64

package main

import (
	"fmt"
	"math"
	"time"
)

// rdtsc returns this machine's time-stamp counter, which TCG also gives to its guest.
func rdtsc() uint64

// stamp is the counter at a point in time.
type stamp struct {
	at  time.Time
	tsc uint64
}

var atStart = now()

// now is read several times, for one that nothing interrupted.
func now() (best stamp) {
	shortest := time.Duration(math.MaxInt64)
	for range 16 {
		before := time.Now()
		tsc := rdtsc()
		if took := time.Since(before); took < shortest {
			shortest, best = took, stamp{before, tsc}
		}
	}
	return best
}

// tscParameter tells a kernel the counter's frequency. On a busy machine the kernel's own short measurement may be wrong by a thousandth;
// KVM, which remembers it, then believes that the counter must be scaled, and its guests' clocks and timers are wrong by tens of seconds.
func tscParameter() string {
	const enough = 100 * time.Millisecond
	time.Sleep(enough - time.Since(atStart.at))
	end := now()
	khz := float64(end.tsc-atStart.tsc) / (float64(end.at.Sub(atStart.at)) / float64(time.Millisecond))
	return fmt.Sprintf("tsc_early_khz=%.0f", khz)
}
