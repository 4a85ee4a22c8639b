package core

import (
	"context"
	"time"

	"github.com/supermachine/supermachine/core/pool"
)

// PoolConfig describes a pool of VMs that are started from one snapshot.
type PoolConfig struct {
	// Min is how many VMs are kept ready, on top of those in use, as far as Max allows: 0 to Max; default 0.
	Min int
	// Max is how many VMs there are at most, 1 to 65536; default the larger of 32 and Min.
	Max int
	// IdleTimeout is after how long with more than Min ready VMs the surplus is closed; 0: never.
	IdleTimeout time.Duration
	// AcquireTimeout is how long Acquire waits at most when all VMs are in use; 0: as long as its context allows.
	AcquireTimeout time.Duration
	// Replace has a released VM closed and a fresh one started, where otherwise the released one is brought back to the snapshot in place,
	// which is faster. Either way nothing of one use is left for the next.
	Replace bool
}

// PoolStats says what a pool has and has done.
type PoolStats = pool.Stats

// PooledVM is a VM that was taken from a pool. Value returns it; Release gives it back, and Discard has it closed instead. Neither blocks.
type PooledVM = pool.Guard[*VM]

// Pool keeps VMs of one snapshot ready. Its methods may be called from any goroutine.
type Pool struct {
	pool *pool.Pool[*VM]
	snap *Snapshot
}

// NewPool returns a pool and starts filling it in the background. The snapshot must stay open as long as the pool.
func NewPool(snap *Snapshot, cfg PoolConfig) (*Pool, error) {
	c := pool.Config[*VM]{
		Start: func(ctx context.Context) (*VM, error) { return snap.Start(ctx, StartOptions{}) },
		Min:   cfg.Min, Max: cfg.Max, IdleTimeout: cfg.IdleTimeout, AcquireTimeout: cfg.AcquireTimeout,
	}
	if !cfg.Replace {
		c.Reset = func(ctx context.Context, vm *VM) error { return vm.rewind(ctx, snap.checkpoint) }
	}
	p, err := pool.New(c)
	if err != nil {
		return nil, wrap("make a pool of snapshot", snap.info.ID, err)
	}
	return &Pool{p, snap}, nil
}

// Acquire takes a VM, in microseconds if one is ready. Otherwise it waits for one, first come, first served: ErrExhausted after
// AcquireTimeout, ErrClosed once the pool is closed, or the error for which no VM could be started. The caller releases or discards it.
func (p *Pool) Acquire(ctx context.Context) (*PooledVM, error) {
	g, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, wrap("acquire a VM of snapshot", p.snap.info.ID, err)
	}
	return g, nil
}

// Stats returns what the pool has and has done so far.
func (p *Pool) Stats() PoolStats { return p.pool.Stats() }

// Close closes the VMs that are not in use and waits for that; those in use are closed when they are released.
func (p *Pool) Close() error { return wrap("close pool of snapshot", p.snap.info.ID, p.pool.Close()) }
