package pool

import (
	"context"
	"testing"
	"time"
)

// still is an instance that costs nothing.
type still struct{ done chan struct{} }

func (s still) Done() <-chan struct{} { return s.done }
func (s still) Close() error          { return nil }

func newStill(context.Context) (still, error) { return still{make(chan struct{})}, nil }

// BenchmarkAcquireIdle measures Acquire alone, with an idle instance: all that the caller of a warm pool waits for.
func BenchmarkAcquireIdle(b *testing.B) {
	p, err := New(Config[still]{Start: newStill, Max: 1 << 16})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	const batch = 1000
	guards := make([]*Guard[still], batch)
	fill := func() {
		for range guards {
			p.mu.Lock()
			g := p.newGuard(&member[still]{gone: make(chan struct{}), done: make(chan struct{})})
			p.offer(g)
			p.mu.Unlock()
		}
	}
	fill()
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		g, err := p.Acquire(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		guards[n] = g
		if n++; n == batch {
			b.StopTimer()
			for _, g := range guards {
				g.Discard()
			}
			fill()
			n = 0
			b.StartTimer()
		}
	}
	for _, g := range guards[:n] {
		g.Discard()
	}
	s := p.Stats()
	b.ReportMetric(float64(s.AcquireP50), "p50-ns")
	b.ReportMetric(float64(s.AcquireP99), "p99-ns")
}

// Acquire as in a program: once in a while, when everything else sleeps, and with a start to begin for what was taken.
func BenchmarkAcquireRefill(b *testing.B) {
	p, err := New(Config[still]{Start: newStill, Min: 4})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		time.Sleep(200 * time.Microsecond)
		g, err := p.Acquire(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		g.Discard()
	}
	s := p.Stats()
	b.ReportMetric(float64(s.AcquireP50), "p50-ns")
	b.ReportMetric(float64(s.AcquireP99), "p99-ns")
}

// A use with a reset that costs nothing: the rest is two uses of the lock, and in the background the guard of the next use.
func BenchmarkAcquireRelease(b *testing.B) {
	p, err := New(Config[still]{Start: newStill, Reset: func(context.Context, still) error { return nil }, Min: 16, Max: 16})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	for p.Stats().Idle < 16 {
	}
	b.ReportAllocs()
	for b.Loop() {
		g, err := p.Acquire(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		g.Release()
	}
	s := p.Stats()
	b.ReportMetric(float64(s.AcquireP50), "p50-ns")
	b.ReportMetric(float64(s.AcquireP99), "p99-ns")
}

// The yardstick: taking from and giving back to a channel, without any of a pool's promises.
func BenchmarkChannel(b *testing.B) {
	c := make(chan still, 16)
	for range cap(c) {
		c <- still{}
	}
	b.ReportAllocs()
	for b.Loop() {
		c <- <-c
	}
}

func BenchmarkHistogram(b *testing.B) {
	var h histogram
	for b.Loop() {
		h.add(1234)
	}
}

func BenchmarkClock(b *testing.B) {
	p := Pool[still]{epoch: time.Now()}
	for b.Loop() {
		p.now()
	}
}
