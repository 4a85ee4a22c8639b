package vsock

import (
	"sync"
	"time"
)

// side is what one goroutine at a time needs to wait for its half of a connection. The endpoint's lock guards everything but busy.
type side struct {
	busy   sync.Mutex    // held by the goroutine in Read or Write
	wakeup chan struct{} // holds a token after wake
	asleep bool

	deadline time.Time
	expired  bool
	timer    *time.Timer
}

// wake has a sleeping goroutine look again. Caller holds the lock.
func (s *side) wake() {
	if s.asleep {
		s.asleep = false
		s.wakeup <- struct{}{}
	}
}

// sleep waits for wake, with e.mu released meanwhile. Whoever changes what the goroutine waits for does it under the lock and
// then calls wake, so no change is missed.
func (s *side) sleep(e *endpoint) {
	s.asleep = true
	e.mu.Unlock()
	<-s.wakeup
	e.mu.Lock()
}

// setDeadline replaces the deadline; zero means none. Caller holds e.mu.
func (s *side) setDeadline(e *endpoint, t time.Time) {
	s.deadline, s.expired = t, false
	if s.timer != nil {
		s.timer.Stop()
	}
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	switch {
	case left <= 0:
		s.expired = true
		s.wake()
	case s.timer == nil:
		s.timer = time.AfterFunc(left, func() { s.expire(e) })
	default:
		s.timer.Reset(left)
	}
}

// expire runs when the timer fires, which may have been set for an earlier deadline.
func (s *side) expire(e *endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.deadline.IsZero() || s.expired {
		return
	}
	if left := time.Until(s.deadline); left > 0 {
		s.timer.Reset(left)
		return
	}
	s.expired = true
	s.wake()
}
