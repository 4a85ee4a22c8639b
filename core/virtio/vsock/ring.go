package vsock

import "math/bits"

// Rings have sizes of powers of two from smallestRing to maxWindow.
const (
	smallestRing = 4 << 10
	ringClasses  = 9
	maxSpares    = 4 // of each size
)

// spares are rings' buffers that nobody uses, kept so that receiving does not allocate.
type spares [ringClasses][][]byte

func ringClass(n int) int { return max(0, bits.Len(uint(n-1))-bits.Len(uint(smallestRing-1))) }

// get returns a buffer of at least n bytes, at most maxWindow.
func (s *spares) get(n int) []byte {
	class := ringClass(n)
	l := s[class]
	if len(l) == 0 {
		return make([]byte, smallestRing<<class)
	}
	b := l[len(l)-1]
	s[class] = l[:len(l)-1]
	return b
}

func (s *spares) put(b []byte) {
	if len(b) == 0 {
		return
	}
	if class := ringClass(len(b)); len(s[class]) < maxSpares {
		s[class] = append(s[class], b)
	}
}

// ring holds received bytes until they are read, its window at most; the caller sees to that. Empty, it has no buffer.
type ring struct {
	b    []byte
	r, n int // first unread byte, unread bytes
}

// put appends n bytes of bufs from offset off.
func (r *ring) put(s *spares, bufs [][]byte, off, n int) {
	r.reserve(s, n)
	for _, b := range bufs {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		b = b[off:]
		off = 0
		for b = b[:min(n, len(b))]; len(b) > 0; {
			w := (r.r + r.n) & (len(r.b) - 1)
			k := copy(r.b[w:min(len(r.b), w+len(r.b)-r.n)], b)
			b = b[k:]
			r.n += k
			n -= k
		}
	}
}

// reserve makes room for n more bytes.
func (r *ring) reserve(s *spares, n int) {
	if r.n+n <= len(r.b) {
		return
	}
	b := s.get(r.n + n)
	r.peek(b)
	s.put(r.b)
	r.b, r.r = b, 0
}

// peek copies the first unread bytes to p.
func (r *ring) peek(p []byte) int {
	p = p[:min(len(p), r.n)]
	if len(p) > 0 {
		k := copy(p, r.b[r.r:])
		copy(p[k:], r.b)
	}
	return len(p)
}

// take moves the first unread bytes to p.
func (r *ring) take(s *spares, p []byte) int {
	n := r.peek(p)
	if n == r.n {
		r.drop(s)
		return n
	}
	r.r = (r.r + n) & (len(r.b) - 1)
	r.n -= n
	return n
}

// drop forgets what is unread.
func (r *ring) drop(s *spares) {
	s.put(r.b)
	*r = ring{}
}
