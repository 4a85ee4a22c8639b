package api

import (
	"context"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core"
)

// The kinds of completions.
const (
	CompletionNone   = 0 // the queue is empty
	CompletionResult = 1 // the end of a call
	CompletionEvent  = 2 // something that a call tells before its end
)

// Completion is what comes out of a queue.
type Completion struct {
	Tag     uint64 // as the call was given
	Call    uint64 // the call's handle
	Kind    int32
	Code    int32  // of a result
	Payload []byte // msgpack: the result, the error, or the event

	release func() // releases what a result holds that nobody takes
}

// maxEvents is how many events wait in a queue at most; later ones are dropped until some are taken. Results are never dropped.
const maxEvents = 4096

// Queue collects the outcomes and events of calls. Its file descriptor is readable while there are any.
type Queue struct {
	ctx    context.Context // of its calls
	cancel context.CancelFunc

	mu     sync.Mutex
	fd     int // an eventfd; -1 once the queue is closed
	items  []Completion
	events int             // among the items
	calls  map[uint64]bool // those that run; whether somebody still waits for them
}

// OpenQueue makes a queue and returns its handle and its file descriptor, which stays the queue's: the caller may poll it, no more.
func (l *Library) OpenQueue() (uint64, int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		err = os.NewSyscallError("eventfd", err)
		return 0, -1, &core.Error{Code: core.CodeOf(err), Op: "open a queue", Err: err}
	}
	q := &Queue{fd: fd, calls: map[uint64]bool{}}
	q.ctx, q.cancel = context.WithCancel(context.Background())
	return l.handles.put(KindQueue, q), fd, nil
}

// begin notes a call that will have a result. It reports false if the queue is closed.
func (q *Queue) begin(token uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fd < 0 {
		return false
	}
	q.calls[token] = true
	return true
}

// event adds an event of a call that somebody waits for.
func (q *Queue) event(c Completion) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fd < 0 || !q.calls[c.Call] || q.events == maxEvents {
		return
	}
	q.events++
	q.push(c)
}

// result adds the end of a call, or releases it if nobody waits for it.
func (q *Queue) result(c Completion) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wanted := q.calls[c.Call] && q.fd >= 0
	delete(q.calls, c.Call)
	if !wanted {
		c.release()
		return
	}
	q.push(c)
}

func (q *Queue) push(c Completion) {
	q.items = append(q.items, c)
	if len(q.items) == 1 {
		unix.Write(q.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// abandon forgets a call and what it has left in the queue.
func (q *Queue) abandon(token uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, runs := q.calls[token]; runs {
		q.calls[token] = false
	}
	had := len(q.items) > 0
	q.items = slices.DeleteFunc(q.items, func(c Completion) bool {
		switch {
		case c.Call != token:
			return false
		case c.Kind == CompletionEvent:
			q.events--
		default:
			c.release()
		}
		return true
	})
	if had && len(q.items) == 0 {
		q.empty()
	}
}

// empty has the file descriptor no longer readable.
func (q *Queue) empty() {
	q.items = nil
	var b [8]byte
	unix.Read(q.fd, b[:])
}

// next takes the oldest item; its kind is CompletionNone if there is none.
func (q *Queue) next() Completion {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return Completion{}
	}
	c := q.items[0]
	q.items[0] = Completion{}
	q.items = q.items[1:]
	if c.Kind == CompletionEvent {
		q.events--
	}
	if len(q.items) == 0 {
		q.empty()
	}
	return c
}

// Next takes the oldest item of a queue without waiting.
func (l *Library) Next(token uint64) (Completion, error) {
	o, err := l.handles.get(token, KindQueue)
	if err != nil {
		return Completion{}, &core.Error{Code: core.ErrInvalidHandle, Op: "call", Object: "sm_queue_next", Err: err}
	}
	c := o.(*Queue).next()
	if c.Kind == CompletionResult {
		l.handles.take(c.Call, KindCall)
	}
	return c, nil
}

// CloseQueue cancels the calls whose outcomes were to come out of the queue. What they still make, and what was not taken, is released.
func (l *Library) CloseQueue(token uint64) error {
	o, err := l.handles.take(token, KindQueue)
	if err != nil {
		return &core.Error{Code: core.ErrInvalidHandle, Op: "call", Object: "sm_queue_close", Err: err}
	}
	for _, call := range o.(*Queue).close() {
		l.handles.take(call, KindCall)
	}
	return nil
}

// close returns the calls that have not ended, or whose end was not taken.
func (q *Queue) close() (calls []uint64) {
	q.cancel()
	q.mu.Lock()
	defer q.mu.Unlock()
	unix.Close(q.fd)
	q.fd = -1
	for _, c := range q.items {
		if c.Kind == CompletionResult {
			c.release()
			calls = append(calls, c.Call)
		}
	}
	q.items = nil
	return slices.AppendSeq(calls, maps.Keys(q.calls))
}
