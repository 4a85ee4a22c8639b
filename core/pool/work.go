package pool

import (
	"fmt"
	"time"
)

// Pauses after failed starts: doubled with each failure in a row, up to the longest.
const (
	firstPause   = 10 * time.Millisecond
	longestPause = 2 * time.Second
	forgetAfter  = 10 * longestPause // after so long without a failure the pauses begin anew
	infancy      = time.Second       // an instance that ends idle and younger counts as a failed start
)

// alive is how many instances there are, those being closed not counted.
func (p *Pool[T]) alive() int { return p.idle.n + p.inUse + p.resetting }

// room is how many more starts Max allows.
func (p *Pool[T]) room() int {
	return p.cfg.Max - p.alive() - p.starting - max(0, p.closing-p.cfg.Reapers)
}

// demand is how many instances are wanted for callers that wait and for Min, beyond those that are ready or about to be.
func (p *Pool[T]) demand() int { return max(0, p.waiters.Len()+p.cfg.Min-p.idle.n-p.resetting) }

// missing is how many starts are needed beyond those that run.
func (p *Pool[T]) missing() int { return p.demand() + p.owed - p.starting }

// balance begins the starts that are needed and possible. It is called with the lock held after each change of what it depends on.
func (p *Pool[T]) balance() {
	if p.closed {
		p.quiet.Broadcast()
		return
	}
	p.owed = min(p.owed, max(0, p.cfg.Max-p.alive()-p.demand())) // demand goes first
	if p.retryAt > 0 {
		if pause := p.retryAt - p.now(); pause > 0 {
			if p.starting == 0 {
				p.shed(p.waiters.Len())
			}
			if p.missing() > 0 {
				p.armRetry(pause)
			}
			return
		}
		p.retryAt = 0
	}
	for p.missing() > 0 && p.starting < p.cfg.Parallel && p.room() > 0 {
		p.starting++
		go p.start()
	}
}

// shed tells up to n of those who wait that nothing can be started: the ones who came last, since whatever becomes ready goes to the
// first. Those for whom an instance is on its way stay, and so do those who, with Max instances there, wait for a release.
func (p *Pool[T]) shed(n int) {
	n = min(n, p.waiters.Len()-p.starting-p.resetting)
	if p.alive() > 0 {
		n = min(n, p.room())
	}
	for ; n > 0; n-- {
		err := &StartError{Err: p.failure, Failures: p.failures, Retry: max(0, p.retryAt-p.now())}
		p.answer(p.waiters.Back().Value.(*waiter[T]), result[T]{err: err})
	}
}

// start makes one instance. The caller has counted it as starting.
func (p *Pool[T]) start() {
	value, err := p.startOne()
	var g *Guard[T]
	if err == nil {
		g = p.newGuard(&member[T]{value: value, done: value.Done(), gone: make(chan struct{})})
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting--
	switch {
	case err == nil && p.closed:
		p.retire(g.member)
	case err == nil:
		p.counts.starts++
		if p.demand() == 0 {
			p.owed = max(0, p.owed-1)
		}
		go p.watch(g.member)
		if p.offer(g) {
			p.failures, p.retryAt = 0, 0 // it works, and well enough that somebody uses the result
		}
	case !p.closed:
		p.counts.failures++
		p.startFailed(err)
		p.shed(1) // others may succeed; when the last start has failed too, balance tells everybody
	}
	p.balance()
}

// startOne calls Start, within the gate.
func (p *Pool[T]) startOne() (T, error) {
	if p.cfg.Gate != nil {
		leave, err := p.cfg.Gate.Enter(p.ctx)
		if err != nil {
			var none T
			return none, err
		}
		defer leave()
	}
	return p.cfg.Start(p.ctx)
}

// startFailed holds up further starts. Failures during a pause belong to the same round and do not make it longer.
func (p *Pool[T]) startFailed(err error) {
	now := p.now()
	p.failure = err
	p.owed = 0 // replacements can wait for demand
	if p.retryAt > now {
		return
	}
	if now-p.failedAt > forgetAfter {
		p.failures = 0
	}
	p.failedAt = now
	p.failures++
	p.retryAt = now + min(longestPause, firstPause<<min(p.failures-1, 20))
}

// armRetry has balance called after the pause.
func (p *Pool[T]) armRetry(pause time.Duration) {
	if p.retryArmed {
		return
	}
	p.retryArmed = true
	if p.retryTimer != nil {
		p.retryTimer.Reset(pause)
		return
	}
	p.retryTimer = time.AfterFunc(pause, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.retryArmed = false
		p.balance()
	})
}

// watch waits for the instance's end and replaces it if it was idle. In use, that is noticed at its release.
func (p *Pool[T]) watch(m *member[T]) {
	select {
	case <-m.gone:
		return
	case <-m.done:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isIdle(m.guard) {
		p.idle.remove(m.guard)
		p.idleDied(m.guard)
		p.balance()
	}
}

// isIdle reports whether the guard is in the list of idle ones. Between resetting and its next use an instance has its old guard.
func (p *Pool[T]) isIdle(g *Guard[T]) bool { return g != nil && g.state.Load() == stateIdle }

// idleDied accounts for an instance that ended unused and is in no list any more. One that did so soon after its start would do it
// again at once if it was replaced at once.
func (p *Pool[T]) idleDied(g *Guard[T]) {
	g.state.Store(stateOver)
	p.counts.deaths++
	if age := p.now() - g.since; age < infancy {
		p.startFailed(fmt.Errorf("the instance ended, unused, %v after it was ready", age.Round(time.Microsecond)))
	}
	p.retire(g.member)
}

// retireIdle closes an idle instance.
func (p *Pool[T]) retireIdle(g *Guard[T]) {
	p.idle.remove(g)
	g.state.Store(stateOver)
	p.retire(g.member)
}

// armEviction has evict called when there are more than Min idle instances and that may have been so for IdleTimeout. A timer that
// runs is left alone: it was set for an instance that became idle no later.
func (p *Pool[T]) armEviction() {
	if p.cfg.IdleTimeout == 0 || p.evictArmed || p.idle.n <= p.cfg.Min {
		return
	}
	p.evictArmed = true
	wait := max(0, p.surplus().since+p.cfg.IdleTimeout-p.now())
	if p.evictTimer != nil {
		p.evictTimer.Reset(wait)
		return
	}
	p.evictTimer = time.AfterFunc(wait, p.evict)
}

// surplus returns the first instance on top of the Min oldest ones: since it became idle there have been more than Min. The age of the
// oldest says nothing, as the Min that are kept may be idle forever. Nil if there is none.
func (p *Pool[T]) surplus() *Guard[T] {
	g := p.idle.oldest
	for i := 0; i < p.cfg.Min && g != nil; i++ {
		g = g.newer
	}
	return g
}

// evict closes the idle instances beyond Min whose time is over.
func (p *Pool[T]) evict() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.evictArmed = false
	if p.closed {
		return
	}
	deadline := p.now() - p.cfg.IdleTimeout
	for g := p.surplus(); g != nil && g.since <= deadline; {
		next := g.newer
		p.counts.evictions++
		p.retireIdle(g)
		g = next
	}
	p.armEviction()
	p.balance()
}

// reset has a used instance reset in the background.
func (p *Pool[T]) reset(m *member[T]) {
	p.resetting++
	p.toReset = append(p.toReset, m)
	if p.resetters < p.cfg.Parallel {
		p.resetters++
		go p.resetter()
	}
}

// resetter resets instances until none is left to do.
func (p *Pool[T]) resetter() {
	for {
		m := p.next(&p.toReset, &p.resetters)
		if m == nil {
			return
		}
		err := p.ctx.Err() // of a closed pool: nobody needs it reset
		if err == nil {
			err = p.cfg.Reset(p.ctx, m.value)
		}
		g := p.newGuard(m)

		p.mu.Lock()
		p.resetting--
		switch {
		case p.closed:
			p.retire(m)
		case err != nil:
			p.counts.resetFailures++
			p.owed++
			p.retire(m)
		default:
			p.counts.resets++
			p.offer(g)
		}
		p.balance()
		p.mu.Unlock()
	}
}

// retire has an instance closed in the background. It is in no list any more.
func (p *Pool[T]) retire(m *member[T]) {
	p.closing++
	p.toClose = append(p.toClose, m)
	if p.reapers < p.cfg.Reapers {
		p.reapers++
		go p.reaper()
	}
}

// reaper closes instances until none is left to do.
func (p *Pool[T]) reaper() {
	for {
		m := p.next(&p.toClose, &p.reapers)
		if m == nil {
			return
		}
		err := m.value.Close()
		close(m.gone)

		p.mu.Lock()
		p.closing--
		if p.closeErr == nil {
			p.closeErr = err
		}
		p.balance()
		p.mu.Unlock()
	}
}

// next takes the last of a list, as instances are alike; if there is none it counts the worker as gone and returns nil.
func (p *Pool[T]) next(l *[]*member[T], workers *int) *member[T] {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(*l) - 1
	if last < 0 {
		*workers--
		return nil
	}
	m := (*l)[last]
	(*l)[last] = nil
	*l = (*l)[:last]
	return m
}
