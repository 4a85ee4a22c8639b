package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// programs are the execs that a client may ask about: those that run, and the detached ones that have ended and whose result nobody has taken yet.
type programs struct {
	mu      sync.Mutex
	last    uint64 // newest ID
	running map[uint64]*process
	records map[uint64]*record // of detached ones
	ended   []uint64           // the records of those that have ended, oldest end first
	claimed int                // places for detached ones that are being started
	main    *record            // of the last detached workload, for Follow
}

// Bounds on what detached programs cost the agent.
const (
	maxDetached = 1024    // that run
	maxEnded    = 64      // results of those that have ended
	keptTotal   = 4 << 20 // bytes of output of all of them, in even parts of at most logSize
)

var errTooManyDetached = &wire.Error{Kind: wire.KindLimit, Message: fmt.Sprintf("%d detached programs run already", maxDetached)}

func newPrograms() programs {
	return programs{running: map[uint64]*process{}, records: map[uint64]*record{}}
}

// add gives a program that runs its ID.
func (s *programs) add(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	p.about.ID = s.last
	s.running[s.last] = p
}

// all returns the programs that run.
func (s *programs) all() []*process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.running))
}

// claim reserves a place for a detached program until unclaim, and reports whether there was one.
func (s *programs) claim() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records)-len(s.ended)+s.claimed >= maxDetached {
		return false
	}
	s.claimed++
	return true
}

func (s *programs) unclaim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claimed--
}

// keep detaches a program: what it writes into the record is kept from now on. It returns nil if the program has ended before.
func (s *programs) keep(p *process) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := p.about.ID
	if r := s.records[id]; r != nil || s.running[id] == nil {
		return r
	}
	r := newRecord(p)
	s.records[id] = r
	if p.about.Main {
		s.main = r
	}
	s.share()
	return r
}

// end takes note of a program's end. Results of detached ones are kept until somebody has collected them or there are too many.
func (s *programs) end(p *process, result wire.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := p.about.ID
	delete(s.running, id)
	p.stream = nil // a record must not hold on to a connection
	r := s.records[id]
	if r == nil {
		return
	}
	r.end(result)
	s.ended = append(s.ended, id)
	if len(s.ended) > maxEnded {
		delete(s.records, s.ended[0])
		s.ended = slices.Delete(s.ended, 0, 1)
		s.share()
	}
}

// collect forgets an ended program whose result was given out; nil is none.
func (s *programs) collect(r *record) {
	if r == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.proc.about.ID
	i := slices.Index(s.ended, id)
	if i < 0 {
		return
	}
	s.ended = slices.Delete(s.ended, i, i+1)
	delete(s.records, id)
	s.share()
}

// share divides the room for output among the records.
func (s *programs) share() {
	for _, r := range s.records {
		r.resize(min(logSize, keptTotal/len(s.records)))
	}
}

// find returns the record of a detached program.
func (s *programs) find(id uint64) (*record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.records[id]; r != nil {
		return r, nil
	}
	if s.main != nil && s.main.proc.about.ID == id {
		return s.main, nil
	}
	if s.running[id] != nil {
		return nil, &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("program %d is not detached", id)}
	}
	return nil, &wire.Error{Kind: wire.KindNotFound, Message: fmt.Sprintf("there is no program %d, or its result was collected", id)}
}

// workload returns the record of the last detached workload.
func (s *programs) workload() (*record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main == nil {
		return nil, errNoWorkload
	}
	return s.main, nil
}

// list describes the programs, oldest first.
func (s *programs) list() []wire.Program {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]wire.Program, 0, len(s.running)+len(s.ended))
	for id, p := range s.running {
		about := p.about
		about.Detached = s.records[id] != nil
		all = append(all, about)
	}
	for _, id := range s.ended {
		r := s.records[id]
		about := r.proc.about
		about.Detached, about.Ended = true, true
		about.Code, about.Signal = r.status()
		all = append(all, about)
	}
	slices.SortFunc(all, func(a, b wire.Program) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// list sends the client what runs.
func (st *stream) list() (wire.Result, error) {
	all := st.c.s.programs.list()
	cut := len(all) > wire.MaxListed
	w := wire.NewRecordWriter(st.out)
	for i := range all[:min(len(all), wire.MaxListed)] {
		if err := w.Write(&all[i]); err != nil {
			return wire.Result{}, err
		}
	}
	if w.Flush() != nil {
		return wire.Result{}, errCanceled
	}
	return wire.Result{Truncated: cut}, st.out.CloseWrite()
}

// listedArgs returns as much of a program's arguments as a list shows, and whether that is not all. It holds on to nothing else.
func listedArgs(args []string) (listed []string, cut bool) {
	const overhead = 5 // of a string in msgpack, at most
	left := wire.MaxListedArgs
	for _, arg := range args {
		if left <= overhead {
			return listed, true
		}
		left -= overhead
		if len(arg) > left {
			return append(listed, strings.Clone(arg[:left])), true
		}
		listed = append(listed, arg)
		left -= len(arg)
	}
	return listed, false
}

// ended takes note of a program's end, before anybody learns of it.
func (s *Server) ended(p *process, result wire.Result) {
	if p.about.Main {
		s.releaseMain()
	}
	s.programs.end(p, result)
}

// detachRunning detaches a program that a stream runs. The stream ends with all output up to then.
func (s *Server) detachRunning(id uint64) error {
	s.programs.mu.Lock()
	p := s.programs.running[id]
	var st *stream
	if p != nil {
		st = p.stream
	}
	s.programs.mu.Unlock()
	if p == nil {
		return &wire.Error{Kind: wire.KindNotFound, Message: fmt.Sprintf("there is no program %d", id)}
	}
	if st == nil {
		return errDetachedAlready(id)
	}
	if !s.programs.claim() {
		return errTooManyDetached
	}
	defer s.programs.unclaim()
	return st.letGo(p)
}

func errDetachedAlready(id uint64) error {
	return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("program %d is detached already, or about to end", id)}
}

// letGo ends the stream that runs p with the result that says so.
func (st *stream) letGo(p *process) error {
	programs := &st.c.s.programs
	st.mu.Lock()
	if st.proc != p || st.abandoned || st.settled || st.detached {
		st.mu.Unlock()
		return errDetachedAlready(p.about.ID)
	}
	st.detached = true
	st.mu.Unlock()
	r := programs.keep(p)
	if r == nil || !st.settle() { // it has ended, with a result for the stream
		programs.collect(r)
		return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf("program %d has ended", p.about.ID)}
	}
	st.abandon()
	for i := range st.sending { // whoever is sending the last output will have done so
		st.sending[i].Lock()
		st.sending[i].Unlock()
	}
	st.c.remove(st)
	body, err := msgpack.Marshal(wire.Result{Detached: true})
	if err == nil {
		err = st.c.w.Post(wire.Frame{Type: wire.TypeResult, Stream: st.id, Body: body})
	}
	return err
}
