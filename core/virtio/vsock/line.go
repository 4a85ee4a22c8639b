package vsock

// A Conn can stand in two lines.
const (
	controlLine = iota
	writerLine
	lines
)

// line is a queue of connections, each in it at most once. All operations take constant time.
type line struct {
	which       int
	first, last *Conn
}

type place struct {
	in         bool
	prev, next *Conn
}

// add puts c at the end unless it is in line already.
func (l *line) add(c *Conn) {
	p := &c.places[l.which]
	if p.in {
		return
	}
	*p = place{in: true, prev: l.last}
	if l.last == nil {
		l.first = c
	} else {
		l.last.places[l.which].next = c
	}
	l.last = c
}

// remove takes c out, wherever it stands.
func (l *line) remove(c *Conn) {
	p := &c.places[l.which]
	if !p.in {
		return
	}
	if p.prev == nil {
		l.first = p.next
	} else {
		p.prev.places[l.which].next = p.next
	}
	if p.next == nil {
		l.last = p.prev
	} else {
		p.next.places[l.which].prev = p.prev
	}
	*p = place{}
}

// resetPacket is a reset that waits to be sent.
type resetPacket struct {
	cid  uint64 // that it comes from
	key  key
	kind uint16
}

// resetQueue is a queue of them that reuses its memory.
type resetQueue struct {
	items []resetPacket
	done  int // items that were taken
}

func (q *resetQueue) len() int { return len(q.items) - q.done }

func (q *resetQueue) push(r resetPacket) {
	if q.done > len(q.items)/2 {
		q.items = q.items[:copy(q.items, q.items[q.done:])]
		q.done = 0
	}
	q.items = append(q.items, r)
}

func (q *resetQueue) pop() resetPacket {
	r := q.items[q.done]
	if q.done++; q.done == len(q.items) {
		q.items, q.done = q.items[:0], 0
	}
	return r
}
