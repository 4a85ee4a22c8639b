// Package pool keeps instances ready for use, such as VMs restored from a snapshot. Taking an idle one costs the caller a microsecond,
// and some more if a thread has to be woken to start another in its place. What a use leaves behind is never seen by the next: a released
// instance is reset, or closed and replaced.
//
// Everything slow happens on goroutines that the pool starts when there is work and that end after it. Besides, each instance has one
// goroutine that waits for its end. That is a few KiB next to a whole VM; one watcher for all would have to be woken, and to go through
// all instances, at each Acquire.
package pool

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// Pool holds instances. Its methods may be called from any goroutine. It must be closed.
type Pool[T Instance] struct {
	cfg     Config[T]
	ctx     context.Context // of Start and Reset
	cancel  context.CancelFunc
	epoch   time.Time // when the pool's clock was zero
	latency histogram

	mu     sync.Mutex
	closed bool
	quiet  sync.Cond // nothing starts, is reset or is closed, of a closed pool

	idle    idleList[T]
	waiters list.List // of *waiter[T], oldest first; empty if anything is idle

	inUse     int
	starting  int
	resetting int // being reset or waiting for it
	closing   int // being closed or waiting for it
	owed      int // released instances that were closed and have no replacement yet

	toReset   []*member[T] // not yet with a worker
	toClose   []*member[T]
	resetters int
	reapers   int
	closeErr  error // the first one

	// A failed start holds up further ones until retryAt.
	retryAt    time.Duration // on the pool's clock; 0: nothing is held up
	failures   int           // in a row
	failedAt   time.Duration
	failure    error
	retryTimer *time.Timer
	retryArmed bool

	evictTimer *time.Timer
	evictArmed bool

	counts counters
}

// waiter is an Acquire that found nothing idle. Whoever takes it from the queue sends its result.
type waiter[T Instance] struct {
	result chan result[T]
	place  *list.Element // nil once it is off the queue
}

type result[T Instance] struct {
	guard *Guard[T]
	err   error
}

// New makes a pool and begins to start Min instances in the background. If they cannot be started, Acquire tells why. The error is an
// ErrConfig.
func New[T Instance](cfg Config[T]) (*Pool[T], error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	p := &Pool[T]{cfg: cfg, epoch: time.Now()}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.quiet.L = &p.mu
	p.mu.Lock()
	defer p.mu.Unlock()
	p.balance()
	return p, nil
}

// now is the pool's clock: it reads only the monotonic one, at half the price of time.Now.
func (p *Pool[T]) now() time.Duration { return time.Since(p.epoch) }

// Acquire takes an instance for use; the caller must release the guard. If none is idle it waits, behind all who came before, for a
// released instance or for a new one, which is started unless there are Max. An instance that is known to have ended is never
// handed out; it may end at any later time.
//
// Errors: ErrClosed; the context's own error; an *ExhaustedError (ErrExhausted) after AcquireTimeout; a *StartError (ErrStart) with the
// cause if a new instance is needed and cannot be started. After such a failure the pool tries again with pauses from 10 ms up to 2 s;
// an Acquire that comes in a pause and that no idle, starting or reset instance serves is told of the failure at once, unless Max
// instances are in use, when it waits for a release.
func (p *Pool[T]) Acquire(ctx context.Context) (*Guard[T], error) {
	began := p.now()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	if g := p.takeIdle(); g != nil {
		p.balance()
		p.mu.Unlock()
		p.latency.add(p.now() - began)
		return g, nil
	}
	w := &waiter[T]{result: make(chan result[T], 1)}
	w.place = p.waiters.PushBack(w)
	p.balance()
	p.mu.Unlock()

	r := p.wait(ctx, w)
	if r.err == nil {
		p.latency.add(p.now() - began)
	}
	return r.guard, r.err
}

// wait blocks until w has its result, the context ends or AcquireTimeout passes.
func (p *Pool[T]) wait(ctx context.Context, w *waiter[T]) result[T] {
	var timeout <-chan time.Time
	if p.cfg.AcquireTimeout > 0 {
		t := time.NewTimer(p.cfg.AcquireTimeout)
		defer t.Stop()
		timeout = t.C
	}
	select {
	case r := <-w.result:
		return r
	case <-ctx.Done():
	case <-timeout:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.place == nil { // served at the last moment
		return <-w.result
	}
	p.unqueue(w)
	if err := ctx.Err(); err != nil {
		return result[T]{err: err}
	}
	return result[T]{err: &ExhaustedError{
		Max: p.cfg.Max, InUse: p.inUse, Starting: p.starting, Waiting: p.waiters.Len(), Timeout: p.cfg.AcquireTimeout,
	}}
}

// unqueue takes w off the queue.
func (p *Pool[T]) unqueue(w *waiter[T]) {
	p.waiters.Remove(w.place)
	w.place = nil
}

// answer takes w off the queue and gives it its result.
func (p *Pool[T]) answer(w *waiter[T], r result[T]) {
	p.unqueue(w)
	w.result <- r
}

// takeIdle returns an idle instance, now in use; nil if there is none. The one that became idle last comes first: its memory is the
// most likely to be in the processor's caches.
func (p *Pool[T]) takeIdle() *Guard[T] {
	for p.idle.n > 0 {
		g := p.idle.newest
		p.idle.remove(g)
		if g.member.ended() {
			p.idleDied(g)
			continue
		}
		p.hold(g)
		return g
	}
	return nil
}

// hold counts the instance as in use.
func (p *Pool[T]) hold(g *Guard[T]) {
	g.state.Store(stateHeld)
	p.inUse++
}

// offer gives an instance that is ready to whoever waits the longest, else makes it idle. It reports whether somebody got it.
func (p *Pool[T]) offer(g *Guard[T]) bool {
	g.member.guard, g.since = g, p.now()
	switch {
	case g.member.ended():
		p.idleDied(g)
	case p.waiters.Len() > 0:
		p.hold(g)
		p.answer(p.waiters.Front().Value.(*waiter[T]), result[T]{guard: g})
		return true
	default:
		p.idle.push(g)
		p.armEviction()
	}
	return false
}

// release ends a use.
func (p *Pool[T]) release(g *Guard[T], reuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g.state.Load() != stateHeld {
		return
	}
	g.state.Store(stateOver)
	p.inUse--
	m := g.member
	switch {
	case p.closed:
		p.retire(m)
	case m.ended():
		p.counts.deaths++
		p.retire(m)
	case !reuse:
		p.retire(m)
	case p.cfg.Reset == nil:
		p.owed++
		p.retire(m)
	default:
		p.reset(m)
	}
	p.balance()
}

// Close ends the pool: whoever waits in Acquire gets ErrClosed, starts are canceled, and all instances but those in use are closed. It
// waits until that is done, about as long as Start takes to notice and Close takes for Max/Reapers instances. An instance in use is
// closed, in the background, when its guard is released. Closing twice is allowed. The error is the first one that closing an
// instance ever gave.
func (p *Pool[T]) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		p.cancel()
		for _, t := range []*time.Timer{p.retryTimer, p.evictTimer} {
			if t != nil {
				t.Stop()
			}
		}
		for p.waiters.Len() > 0 {
			p.answer(p.waiters.Front().Value.(*waiter[T]), result[T]{err: ErrClosed})
		}
		for p.idle.n > 0 {
			p.retireIdle(p.idle.newest)
		}
	}
	for p.starting+p.resetting+p.closing > 0 {
		p.quiet.Wait()
	}
	return p.closeErr
}
