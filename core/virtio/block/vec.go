package block

// Vec is a cursor over guest memory: the data of one request. Backends consume it from the front. It is not safe for concurrent
// use, and valid only during the call that it is passed to.
type Vec struct {
	segs  [][]byte // what is left, a part of store
	store [][]byte // kept from request to request
	left  int64
	sys   sysVec
}

// reset makes v cover the first n bytes of segs after skip bytes. segs must be that long.
func (v *Vec) reset(segs [][]byte, skip, n int64) {
	v.store = append(v.store[:0], segs...)
	v.segs = v.store
	v.left = skip + n
	v.advance(skip)
	v.left = n
}

// Reset makes v cover all of segs.
func (v *Vec) Reset(segs ...[]byte) {
	var n int64
	for _, s := range segs {
		n += int64(len(s))
	}
	v.reset(segs, 0, n)
}

// Len returns the number of bytes left.
func (v *Vec) Len() int64 { return v.left }

// Next takes the next bytes that are contiguous, at most n of them. It returns nil when none are left or n is 0.
func (v *Vec) Next(n int64) []byte {
	n = min(n, v.left)
	for len(v.segs) > 0 && n > 0 {
		s := v.segs[0]
		if len(s) == 0 {
			v.segs = v.segs[1:]
			continue
		}
		s = s[:min(n, int64(len(s)))]
		v.advance(int64(len(s)))
		return s
	}
	return nil
}

// Zero takes the next n bytes and clears them.
func (v *Vec) Zero(n int64) {
	for n > 0 {
		b := v.Next(n)
		if b == nil {
			return
		}
		clear(b)
		n -= int64(len(b))
	}
}

// copyOut takes the next len(p) bytes and copies them to p.
func (v *Vec) copyOut(p []byte) {
	for len(p) > 0 {
		b := v.Next(int64(len(p)))
		if b == nil {
			return
		}
		p = p[copy(p, b):]
	}
}

// copyIn takes as many bytes as are left, up to len(p), and copies p there. It returns their number.
func (v *Vec) copyIn(p []byte) (n int) {
	for n < len(p) {
		b := v.Next(int64(len(p) - n))
		if b == nil {
			return n
		}
		n += copy(b, p[n:])
	}
	return n
}

func (v *Vec) advance(n int64) {
	v.left -= n
	for n > 0 && len(v.segs) > 0 {
		s := v.segs[0]
		if n < int64(len(s)) {
			v.segs[0] = s[n:]
			return
		}
		n -= int64(len(s))
		v.segs = v.segs[1:]
	}
}
