package vsock

import (
	"sync"
	"time"
)

// deadline is a point in time that can be waited for and moved.
type deadline struct {
	mu    *sync.Mutex
	state *deadlineState
}

type deadlineState struct {
	timer *time.Timer
	done  chan struct{} // closed when the deadline has passed
}

func newDeadline() deadline {
	return deadline{&sync.Mutex{}, &deadlineState{done: make(chan struct{})}}
}

// expired returns a channel that is closed once the deadline that is set now has passed. A wait on it ends spuriously when the
// deadline is moved into the past.
func (d deadline) expired() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state.done
}

func (d deadline) passed() bool {
	select {
	case <-d.expired():
		return true
	default:
		return false
	}
}

// set moves the deadline; zero means none.
func (d deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := d.state
	if st.timer != nil && !st.timer.Stop() {
		<-st.done // the timer fires right now
	}
	st.timer = nil
	select {
	case <-st.done:
		st.done = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	done := st.done
	if left := time.Until(t); left > 0 {
		st.timer = time.AfterFunc(left, func() { close(done) })
		return
	}
	close(done)
}
