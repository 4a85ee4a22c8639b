package main

import (
	"context"
	"time"

	"github.com/supermachine/supermachine/core/pool"
)

// still is an instance that costs nothing.
type still struct{ done chan struct{} }

func (s still) Done() <-chan struct{} { return s.done }
func (s still) Close() error          { return nil }

// acquire: taking an idle instance from a pool, against taking a value from a channel that has one. With refill the pool has to start another
// in its place, for which the caller wakes a thread.
func acquire(name string, refill bool, n int) (result, error) {
	const idle = 16
	cfg := pool.Config[still]{
		Start: func(context.Context) (still, error) { return still{make(chan struct{})}, nil },
		Reset: func(context.Context, still) error { return nil },
		Min:   idle, Max: idle,
	}
	if refill {
		cfg.Max = 2 * idle
	}
	p, err := pool.New(cfg)
	if err != nil {
		return result{}, err
	}
	defer p.Close()
	c := make(chan still, 1)
	var ours, floor []time.Duration
	for range n {
		// Once in a while, as in a program: what it needs is neither in the caches nor awake.
		for time.Sleep(200 * time.Microsecond); p.Stats().Idle < idle; {
			time.Sleep(100 * time.Microsecond)
		}
		start := time.Now()
		g, err := p.Acquire(context.Background())
		if err != nil {
			return result{}, err
		}
		ours = append(ours, time.Since(start))
		if refill {
			g.Discard() // Release would start the replacement before the next Acquire
		} else {
			g.Release()
		}
		c <- still{}
		time.Sleep(200 * time.Microsecond)
		start = time.Now()
		<-c
		floor = append(floor, time.Since(start))
	}
	return summarize(name, "us", ours, floor), nil
}
