package agent

import (
	"bytes"
	"io"
	"sort"
	"sync"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// logSize is how much of a detached program's output is kept, at most, for those who ask later.
const logSize = 256 << 10

// Bounds on the overhead of a program that writes single bytes: neighbours are put together up to smallPiece, and of programs that
// alternate between their outputs at most a piece for every bytesPerPiece bytes that may be kept.
const (
	smallPiece    = 4 << 10
	bytesPerPiece = 32
	maxPieces     = logSize / bytesPerPiece
)

// record is the output of a detached program and, once it has ended, its result. What nobody has read in time is dropped.
type record struct {
	proc *process

	mu      sync.Mutex
	size    uint64 // bytes to keep
	pieces  []piece
	total   uint64 // bytes written since the program was detached
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

func newRecord(p *process) *record {
	return &record{proc: p, size: logSize, changed: make(chan struct{})}
}

// resize changes how many bytes are kept.
func (r *record) resize(size int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.size = uint64(size)
	r.trim()
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
	most := int(r.size / bytesPerPiece)
	for len(r.pieces) > most || len(r.pieces) > 0 && r.total-r.pieces[0].start > r.size {
		first := &r.pieces[0]
		if excess := r.total - r.size; r.total > r.size && excess < first.end() && len(r.pieces) <= most {
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

// end notes how the program ended.
func (r *record) end(result wire.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result = &result
	r.wake()
}

// status returns exit status and signal of a program that has ended.
func (r *record) status() (code, signal int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result.Code, r.result.Signal
}

// next returns output from position at on, as much as is in one piece; it begins later if that was dropped. Without any it returns the result, or
// else what to wait for.
func (r *record) next(at uint64) (p piece, result *wire.Result, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := sort.Search(len(r.pieces), func(i int) bool { return r.pieces[i].end() > at })
	if i == len(r.pieces) {
		return piece{start: r.total}, r.result, r.changed
	}
	p = r.pieces[i]
	if at > p.start {
		p.data = p.data[at-p.start:]
		p.start = at
	}
	return p, nil, nil
}

// detach lets a program that was just started run on without a stream. The caller has claimed a place for it.
func (s *Server) detach(p *process) {
	r := s.programs.keep(p)
	s.mu.Lock()
	s.execs++ // the one of the stream that started it is counted out
	s.mu.Unlock()
	go func() {
		result := p.run(r.writer, func() {})
		s.mu.Lock()
		s.execs--
		s.mu.Unlock()
		s.ended(p, result)
		close(p.finished)
	}()
}

var errNoWorkload = &wire.Error{Kind: wire.KindInvalid, Message: "no workload was started"}

// followMain attaches to the workload.
func (st *stream) followMain() (wire.Result, error) {
	r, err := st.c.s.programs.workload()
	if err != nil {
		return wire.Result{}, err
	}
	return st.follow(r, false)
}

// attach attaches to any detached program. Its result is given out once.
func (st *stream) attach(req *wire.Attach) (wire.Result, error) {
	r, err := st.c.s.programs.find(req.ID)
	if err != nil {
		return wire.Result{}, err
	}
	result, err := st.follow(r, req.Stdin)
	if err == nil {
		st.collected = r
	}
	return result, err
}

// follow sends what a detached program has written and writes, and returns its result.
func (st *stream) follow(r *record, stdin bool) (wire.Result, error) {
	st.mu.Lock()
	st.followed = r.proc
	st.mu.Unlock()
	st.reply(r.proc.reply())
	if stdin && r.proc.stdin != nil {
		go st.feed(r.proc)
	} else {
		st.in.Discard()
	}
	var at, lost uint64
	for {
		p, result, changed := r.next(at)
		lost += p.start - at
		at = p.end()
		switch {
		case p.data != nil:
			if _, err := st.outbox(p.channel).Write(p.data); err != nil {
				return wire.Result{}, errCanceled
			}
		case result != nil:
			final := *result
			final.Lost = int64(lost)
			return final, nil
		default:
			select {
			case <-changed:
			case <-st.gone:
				return wire.Result{}, errCanceled
			}
		}
	}
}

// feed hands what this stream's client sends to the program that it is attached to. Only the end of that ends the program's stdin, not the end of
// the attachment.
func (st *stream) feed(p *process) {
	if _, err := st.in.WriteTo(sharedStdin{st, p}); err == nil {
		p.endStdin()
	}
	st.in.Discard() // the program may have closed its stdin
}

// sharedStdin writes to a program's stdin, in turn with others.
type sharedStdin struct {
	st *stream
	p  *process
}

// Write returns when the program has taken b. A program that does not read holds up one attachment, even when that is gone; the others wait for
// their turn only as long as they last.
func (w sharedStdin) Write(b []byte) (int, error) {
	select {
	case w.p.turn <- struct{}{}:
		defer func() { <-w.p.turn }()
		return w.p.stdin.Write(b)
	case <-w.st.gone:
	case <-w.st.finished:
	}
	return 0, errCanceled
}
