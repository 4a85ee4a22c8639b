package console

import (
	"io"
	"sync"
)

// RingSize is the bytes that NewRing(0) keeps: enough for the whole boot log of a small kernel.
const RingSize = 64 << 10

// Ring keeps the last bytes written to it. It is safe for concurrent use; a write never blocks and never fails.
type Ring struct {
	mu    sync.Mutex
	size  int
	buf   []byte // grows up to size, then is overwritten from next on
	next  int
	total int64

	changed chan struct{} // closed when something is written or the ring is closed; nil while nobody waits
	closed  bool
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
	if n > 0 {
		r.wake()
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

// Close says that nothing more will be written: readers come to their end.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.wake()
}

// wake has the readers look again. The caller holds mu.
func (r *Ring) wake() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// Reader reads what a ring keeps and then what comes. Its Close may be called at any time.
type Reader struct {
	ring   *Ring
	pos    int64 // in all that was ever written
	closed chan struct{}
	once   sync.Once
}

// NewReader returns a Reader that begins with the oldest byte that is kept.
func (r *Ring) NewReader() *Reader { return &Reader{ring: r, closed: make(chan struct{})} }

// Read implements io.Reader. It blocks until there is something, and returns io.EOF once the ring is closed and io.ErrClosedPipe once the reader is. A
// reader that is slow misses what the ring has dropped.
func (d *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r := d.ring
	for {
		select {
		case <-d.closed:
			return 0, io.ErrClosedPipe
		default:
		}
		r.mu.Lock()
		kept := r.total - int64(len(r.buf))
		if d.pos = max(d.pos, kept); d.pos < r.total {
			n := 0
			for n < len(p) && d.pos < r.total {
				at := (r.next + int(d.pos-kept)) % len(r.buf) // next is the oldest once the buffer is full, and 0 before
				end := min(len(r.buf), at+int(r.total-d.pos))
				m := copy(p[n:], r.buf[at:end])
				n += m
				d.pos += int64(m)
			}
			r.mu.Unlock()
			return n, nil
		}
		if r.closed {
			r.mu.Unlock()
			return 0, io.EOF
		}
		if r.changed == nil {
			r.changed = make(chan struct{})
		}
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-d.closed:
		}
	}
}

// Closed is closed with the reader.
func (d *Reader) Closed() <-chan struct{} { return d.closed }

// Close implements io.Closer.
func (d *Reader) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}
