package vsock

import "sync"

// chunk is a piece of received data that waits for its reader: b[r:w].
type chunk struct {
	next *chunk
	r, w int
	b    [32 << 10]byte
}

// A chunk belongs to the pool unless it holds unread data, so an idle connection costs none.
var chunks = sync.Pool{New: func() any { return new(chunk) }}

// receiveQueue is the received data of one connection that was not read yet. The endpoint's lock guards it; what peek returned
// stays valid without the lock until consume, which only the reader calls.
type receiveQueue struct {
	head, tail *chunk
	len        int
}

// space returns where the next received bytes go, at least one.
func (q *receiveQueue) space() []byte {
	if q.tail == nil || q.tail.w == len(q.tail.b) {
		c := chunks.Get().(*chunk)
		c.next, c.r, c.w = nil, 0, 0
		if q.tail == nil {
			q.head = c
		} else {
			q.tail.next = c
		}
		q.tail = c
	}
	return q.tail.b[q.tail.w:]
}

// add tells that n bytes were put into space.
func (q *receiveQueue) add(n int) {
	q.tail.w += n
	q.len += n
}

// peek returns the first unread bytes that lie together.
func (q *receiveQueue) peek() []byte { return q.head.b[q.head.r:q.head.w] }

// consume removes the first n bytes of what peek returned.
func (q *receiveQueue) consume(n int) {
	c := q.head
	c.r += n
	q.len -= n
	if c.r < c.w {
		return
	}
	q.head = c.next
	if q.head == nil {
		q.tail = nil
	}
	chunks.Put(c)
}

// drop forgets all data and returns how much it was. A reader may still be looking at it, so the chunks are left to the
// garbage collector.
func (q *receiveQueue) drop() int {
	n := q.len
	*q = receiveQueue{}
	return n
}
