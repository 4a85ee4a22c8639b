package pool

import (
	"sync/atomic"
	"time"
)

// Guard is one use of an instance, made for it while the instance was reset or started: a guard that is released late, or twice,
// cannot touch the next use. Its methods may be called from any goroutine.
type Guard[T Instance] struct {
	pool   *Pool[T]
	member *member[T]
	state  atomic.Int32 // changed under the pool's lock only

	// The pool's list of idle instances. Under its lock.
	newer, older *Guard[T]
	since        time.Duration // on the pool's clock
}

// States of a guard: waiting for its user, with its user, over.
const (
	stateIdle = iota
	stateHeld
	stateOver
)

// member is an instance with what the pool knows of it, from its start until it is closed.
type member[T Instance] struct {
	value T
	done  <-chan struct{}
	gone  chan struct{} // closed when value has been closed
	guard *Guard[T]     // the use that waits or runs. Under the pool's lock
}

// ended reports whether the instance has ended.
func (m *member[T]) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// newGuard returns a guard for the member's next use.
func (p *Pool[T]) newGuard(m *member[T]) *Guard[T] { return &Guard[T]{pool: p, member: m} }

// Value returns the instance; once the guard is released the zero value, so that a late use fails rather than reaches the VM of
// somebody else. What Value returned must not be used any more after Release.
func (g *Guard[T]) Value() T {
	if g.state.Load() != stateHeld {
		var zero T
		return zero
	}
	return g.member.value
}

// Release gives the instance back. It does not block: in the background the instance is reset or, if that is not possible, closed and
// replaced by a fresh one. One that has ended meanwhile is closed. Releasing twice does nothing.
func (g *Guard[T]) Release() { g.pool.release(g, true) }

// Discard gives the instance back to be closed, not to be used again, such as when its state is in doubt. It does not block. A fresh
// one is started if somebody waits or less than Min are idle. Discarding a released one does nothing.
func (g *Guard[T]) Discard() { g.pool.release(g, false) }

// Close is Release, as io.Closer; it returns nil.
func (g *Guard[T]) Close() error {
	g.Release()
	return nil
}

// idleList is a stack of idle instances in the order in which they became idle.
type idleList[T Instance] struct {
	newest, oldest *Guard[T]
	n              int
}

func (l *idleList[T]) push(g *Guard[T]) {
	g.older = l.newest
	if g.older != nil {
		g.older.newer = g
	} else {
		l.oldest = g
	}
	l.newest = g
	l.n++
}

func (l *idleList[T]) remove(g *Guard[T]) {
	if g.newer != nil {
		g.newer.older = g.older
	} else {
		l.newest = g.older
	}
	if g.older != nil {
		g.older.newer = g.newer
	} else {
		l.oldest = g.newer
	}
	g.newer, g.older = nil, nil
	l.n--
}
