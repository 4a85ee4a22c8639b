package console

import "sync"

// RingSize is the bytes that NewRing(0) keeps: enough for the whole boot log of a small kernel.
const RingSize = 64 << 10

// Ring keeps the last bytes written to it. It is safe for concurrent use; a write never blocks and never fails.
type Ring struct {
	mu    sync.Mutex
	size  int
	buf   []byte // grows up to size, then is overwritten from next on
	next  int
	total int64
}

// NewRing returns a ring that keeps size bytes, RingSize if size is not positive. Memory is taken as bytes come.
func NewRing(size int) *Ring {
	if size <= 0 {
		size = RingSize
	}
	return &Ring{size: size}
}

// Write implements io.Writer. It takes all of p and returns len(p) and no error.
func (r *Ring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(p)
	r.total += int64(n)
	if len(p) > r.size {
		p = p[len(p)-r.size:]
	}
	if room := r.size - len(r.buf); room > 0 {
		m := min(room, len(p))
		r.buf = append(r.buf, p[:m]...)
		p = p[m:]
	}
	for len(p) > 0 {
		m := copy(r.buf[r.next:], p)
		p = p[m:]
		r.next = (r.next + m) % r.size
	}
	return n, nil
}

// Tail returns a copy of the last n bytes, or of all that is kept if that is less.
func (r *Ring) Tail(n int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = max(0, min(n, len(r.buf)))
	out := make([]byte, 0, n)
	// In order of age the bytes are buf[next:], then buf[:next].
	if older := len(r.buf) - r.next; n > r.next {
		out = append(out, r.buf[r.next+older-(n-r.next):]...)
		n = r.next
	}
	return append(out, r.buf[r.next-n:r.next]...)
}

// Total returns how many bytes were ever written.
func (r *Ring) Total() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// Clear forgets what is kept.
func (r *Ring) Clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buf, r.next = r.buf[:0], 0
}
