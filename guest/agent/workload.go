package agent

import (
	"errors"
	"io"
	"sync"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// logSize is how much of a detached workload's output is kept for those who ask later.
const logSize = 256 << 10

// record is the output of a detached workload and, once it has ended, its result. What nobody has read in time is dropped.
type record struct {
	proc *process

	mu      sync.Mutex
	pieces  []piece
	first   uint64 // number of pieces[0], counted from the workload's start
	size    int    // bytes in pieces
	result  *wire.Result
	changed chan struct{} // closed, and replaced, with each change
}

// piece is what was read from one of the outputs at a time.
type piece struct {
	channel uint8
	data    []byte
}

func newRecord(p *process) *record { return &record{proc: p, changed: make(chan struct{})} }

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
	r.pieces = append(r.pieces, piece{w.channel, append([]byte(nil), p...)})
	r.size += len(p)
	for r.size > logSize && len(r.pieces) > 1 {
		r.size -= len(r.pieces[0].data)
		r.pieces[0] = piece{}
		r.pieces = r.pieces[1:]
		r.first++
	}
	r.wake()
	return len(p), nil
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

// next returns the oldest piece from number n on, and its number. Without one it returns the result, or else what to wait for.
func (r *record) next(n uint64) (p piece, number uint64, result *wire.Result, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = max(n, r.first)
	if i := n - r.first; i < uint64(len(r.pieces)) {
		return r.pieces[i], n, nil, nil
	}
	return piece{}, n, r.result, r.changed
}

// detach lets the workload run on without a stream.
func (s *Server) detach(p *process) {
	r := newRecord(p)
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
	st.reply(wire.Reply{PID: pidIn(s.pidns, r.proc.pid)})
	var n uint64
	for {
		p, number, result, changed := r.next(n)
		switch {
		case p.data != nil:
			n = number + 1
			if _, err := st.outbox(p.channel).Write(p.data); err != nil {
				return wire.Result{}, errors.New("nobody follows any more")
			}
		case result != nil:
			return *result, nil
		default:
			select {
			case <-changed:
			case <-st.gone:
				return wire.Result{}, errors.New("nobody follows any more")
			}
		}
	}
}
