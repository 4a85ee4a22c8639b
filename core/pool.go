package core

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/supermachine/supermachine/core/pool"
	"github.com/supermachine/supermachine/core/trace"
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
	// Start says what each VM has: mounts, volumes that are only read, a network, limits. VMs with a network are replaced as Replace says, as its
	// connections belong to one use. It can give no name, lifetime or idle timeout, and no volume to write to, which only one VM may have.
	Start StartOptions
}

// check returns what of Start a pool cannot give.
func (c PoolConfig) check() error {
	bad := func(text string) error {
		return &Error{Code: ErrInvalidArgument, Op: "make a pool", Err: errors.New(text)}
	}
	switch {
	case c.Start.Name != "":
		return bad("its VMs cannot have one name")
	case c.Start.Lifetime != 0 || c.Start.IdleTimeout != 0:
		return bad("its VMs have no lifetime and idle timeout: they wait to be used")
	case slices.ContainsFunc(c.Start.Volumes, func(v Volume) bool { return !v.ReadOnly }):
		return bad("its VMs cannot all write to one volume: give it :ro")
	}
	return errors.Join(c.Start.Network.check(), checkAttachments(c.Start.Volumes, c.Start.Mounts))
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
	if err := cfg.check(); err != nil {
		return nil, err
	}
	c := pool.Config[*VM]{
		Start: func(ctx context.Context) (*VM, error) {
			op := trace.Begin(trace.Pool, snap.info.ID)
			vm, err := snap.Start(ctx, cfg.Start)
			op.Step("start a VM")
			return vm, notePool(err)
		},
		Min: cfg.Min, Max: cfg.Max, IdleTimeout: cfg.IdleTimeout, AcquireTimeout: cfg.AcquireTimeout,
	}
	if !cfg.Replace && cfg.Start.Network == nil {
		c.Reset = func(ctx context.Context, vm *VM) error {
			op := trace.Begin(trace.Pool, snap.info.ID)
			err := vm.rewind(ctx, snap.checkpoint)
			op.Step("bring VM %s back", vm.id)
			counters.reset.Add(1)
			return notePool(err)
		}
	}
	p, err := pool.New(c)
	if err != nil {
		return nil, wrap("make a pool of snapshot", snap.info.ID, err)
	}
	return &Pool{p, snap}, nil
}

func notePool(err error) error {
	if err != nil {
		counters.poolFailed.Add(1)
	}
	return err
}

// Acquire takes a VM, in microseconds if one is ready. Otherwise it waits for one, first come, first served: ErrExhausted after
// AcquireTimeout, ErrClosed once the pool is closed, or the error for which no VM could be started. The caller releases or discards it.
func (p *Pool) Acquire(ctx context.Context) (*PooledVM, error) {
	g, err := p.pool.Acquire(ctx)
	if err != nil {
		return nil, wrap("acquire a VM of snapshot", p.snap.info.ID, err)
	}
	counters.acquired.Add(1)
	return g, nil
}

// Stats returns what the pool has and has done so far.
func (p *Pool) Stats() PoolStats { return p.pool.Stats() }

// Close closes the VMs that are not in use and waits for that; those in use are closed when they are released.
func (p *Pool) Close() error { return wrap("close pool of snapshot", p.snap.info.ID, p.pool.Close()) }

// The snapshot's own pool keeps one VM ready from the first Acquire on, and those that were released for half a minute.
var ownPool = PoolConfig{Min: 1, IdleTimeout: 30 * time.Second}

// Acquire takes a VM from the snapshot's own pool, which begins with the first call and is closed by Close. NewPool makes one with other limits.
func (s *Snapshot) Acquire(ctx context.Context) (*PooledVM, error) {
	p, err := s.pool()
	if err != nil {
		return nil, err
	}
	return p.Acquire(ctx)
}

// PoolStats returns what the snapshot's own pool has and has done; zeros before the first Acquire.
func (s *Snapshot) PoolStats() PoolStats {
	s.poolMu.Lock()
	defer s.poolMu.Unlock()
	if s.own == nil {
		return PoolStats{}
	}
	return s.own.Stats()
}

func (s *Snapshot) pool() (*Pool, error) {
	s.poolMu.Lock()
	defer s.poolMu.Unlock()
	switch {
	case s.closed:
		return nil, &Error{Code: ErrClosed, Op: "acquire a VM of snapshot", Object: s.info.ID, Err: os.ErrClosed}
	case s.own != nil:
		return s.own, nil
	}
	var err error
	s.own, err = NewPool(s, ownPool)
	return s.own, err
}

// Close releases the snapshot and the VMs that its own pool keeps ready. VMs in use go on, and are closed when they are released. Closing
// twice is allowed.
func (s *Snapshot) Close() error {
	s.poolMu.Lock()
	again, own := s.closed, s.own
	s.closed = true
	s.poolMu.Unlock()
	if again {
		return nil
	}
	var err error
	if own != nil {
		err = own.Close()
	}
	return errors.Join(err, s.checkpoint.Close())
}
