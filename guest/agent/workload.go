package agent

import (
	"bytes"
	"io"
	"sort"
	"sync"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// logSize is how much of a detached workload's output is kept for those who ask later.
const logSize = 256 << 10

// Bounds on the overhead of a program that writes single bytes: neighbours are put together up to smallPiece, and of programs that
// alternate between their outputs at most maxPieces are kept.
const (
	smallPiece = 4 << 10
	maxPieces  = 8 << 10
)

// record is the output of a detached workload and, once it has ended, its result. What nobody has read in time is dropped.
type record struct {
	proc *process
	pid  int // in the container

	mu      sync.Mutex
	pieces  []piece
	total   uint64 // bytes written since the workload's start
	result  *wire.Result
	changed chan struct{} // closed, and replaced, with each change
}

// piece is what was written to one of the outputs in one go.
type piece struct {
	start   uint64 // position of data in all output
	channel uint8
	data    []byte // only ever appended to: a follower may be sending it
}

func (p piece) end() uint64 { return p.start + uint64(len(p.data)) }

func newRecord(p *process, pid int) *record {
	return &record{proc: p, pid: pid, changed: make(chan struct{})}
}

// writer returns the end into which one of the outputs is copied.
func (r *record) writer(channel uint8) io.Writer { return recordWriter{r, channel} }

type recordWriter struct {
	r       *record
	channel uint8
}

func (w recordWriter) Write(p []byte) (int, error) {
	r := w.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if last := len(r.pieces) - 1; last >= 0 && r.pieces[last].channel == w.channel && len(r.pieces[last].data)+len(p) <= smallPiece {
		r.pieces[last].data = append(r.pieces[last].data, p...)
	} else {
		r.pieces = append(r.pieces, piece{r.total, w.channel, bytes.Clone(p)})
	}
	r.total += uint64(len(p))
	r.trim()
	r.wake()
	return len(p), nil
}

// trim drops what is too old.
func (r *record) trim() {
	for len(r.pieces) > maxPieces || r.total-r.pieces[0].start > logSize {
		first := &r.pieces[0]
		if excess := r.total - logSize; r.total > logSize && excess < first.end() && len(r.pieces) <= maxPieces {
			first.data = first.data[excess-first.start:]
			first.start = excess
			return
		}
		*first = piece{}
		r.pieces = r.pieces[1:]
	}
}

func (r *record) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// end notes how the workload ended.
func (r *record) end(result wire.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result = &result
	r.wake()
}

// next returns output from position at on, as much as is in one piece. Without any it returns the result, or else what to wait for.
func (r *record) next(at uint64) (p piece, result *wire.Result, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := sort.Search(len(r.pieces), func(i int) bool { return r.pieces[i].end() > at })
	if i == len(r.pieces) {
		return piece{}, r.result, r.changed
	}
	p = r.pieces[i]
	if at > p.start {
		p.data = p.data[at-p.start:]
		p.start = at
	}
	return p, nil, nil
}

// detach lets the workload run on without a stream.
func (s *Server) detach(p *process, pid int) {
	r := newRecord(p, pid)
	s.mu.Lock()
	s.record = r
	s.execs++ // the one of the stream that started it is counted out
	s.mu.Unlock()
	go func() {
		result := p.run(r.writer, func() {})
		s.releaseMain()
		s.mu.Lock()
		s.execs--
		s.mu.Unlock()
		r.end(result)
		close(p.finished)
	}()
}

var errNoWorkload = &wire.Error{Kind: wire.KindInvalid, Message: "no workload was started"}

// follow sends what the workload has written and writes, and returns its result.
func (st *stream) follow() (wire.Result, error) {
	s := st.c.s
	s.mu.Lock()
	r := s.record
	s.mu.Unlock()
	if r == nil {
		return wire.Result{}, errNoWorkload
	}
	st.mu.Lock()
	st.followed = r.proc
	st.mu.Unlock()
	st.reply(wire.Reply{PID: r.pid})
	var at uint64
	for {
		p, result, changed := r.next(at)
		switch {
		case p.data != nil:
			at = p.end()
			if _, err := st.outbox(p.channel).Write(p.data); err != nil {
				return wire.Result{}, errCanceled
			}
		case result != nil:
			return *result, nil
		default:
			select {
			case <-changed:
			case <-st.gone:
				return wire.Result{}, errCanceled
			}
		}
	}
}
