// Package admission decides what may start in this process: a Gate bounds how many VMs are restored at the same time, a Controller
// sees to it that there is memory for them.
package admission

import (
	"container/list"
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// Gate lets at most n in at the same time, in the order in which they came. More restores at once than there are processors only make
// each of them slower. Its methods may be called from any goroutine.
type Gate struct {
	limit int

	mu      sync.Mutex
	running int
	waiting list.List // of *entry, oldest first; empty unless running is limit
}

// entry is a caller that waits; admitted is closed when it has its place.
type entry struct {
	admitted chan struct{}
	place    *list.Element // nil once it is off the queue
}

// GateStats is the state of a gate at one moment.
type GateStats struct {
	Limit   int // how many may be inside
	Running int // how many are
	Waiting int // callers in Enter
}

// NewGate returns a gate for n at the same time; if n is less than 1, as many as Go uses processors (GOMAXPROCS).
func NewGate(n int) *Gate {
	if n < 1 {
		n = runtime.GOMAXPROCS(0)
	}
	return &Gate{limit: n}
}

// Enter blocks until there is a place, behind all who came before, or ctx ends, with its error. The caller must call leave when it is
// done; calling it again does nothing.
func (g *Gate) Enter(ctx context.Context) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g.mu.Lock()
	if g.running < g.limit {
		g.running++
		g.mu.Unlock()
		return g.leaveOnce(), nil
	}
	e := &entry{admitted: make(chan struct{})}
	e.place = g.waiting.PushBack(e)
	g.mu.Unlock()

	select {
	case <-e.admitted:
		return g.leaveOnce(), nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	if e.place != nil {
		g.waiting.Remove(e.place)
		g.mu.Unlock()
		return nil, ctx.Err()
	}
	g.mu.Unlock()
	return g.leaveOnce(), nil // the place came at the last moment
}

// leaveOnce returns a function that gives a place back, once.
func (g *Gate) leaveOnce() func() {
	var left atomic.Bool
	return func() {
		if !left.Swap(true) {
			g.leave()
		}
	}
}

// leave hands the place to who waits the longest.
func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	first := g.waiting.Front()
	if first == nil {
		g.running--
		return
	}
	e := g.waiting.Remove(first).(*entry)
	e.place = nil
	close(e.admitted)
}

// Stats returns the gate's state.
func (g *Gate) Stats() GateStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return GateStats{Limit: g.limit, Running: g.running, Waiting: g.waiting.Len()}
}
