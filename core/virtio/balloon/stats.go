package balloon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/supermachine/supermachine/core/virtio"
)

// ErrNoStats is matched (errors.Is) by errors of Stats when there is no driver that could answer.
var ErrNoStats = errors.New("balloon: the guest gives no memory statistics")

// Stats is what the guest says of its memory (virtio 1.2 §5.5.6.3). All of it are claims. A value that the guest does not tell is
// zero; one that does not fit is the largest.
type Stats struct {
	Total     int64 // bytes of memory that the guest's kernel manages
	Free      int64 // bytes used for nothing
	Available int64 // bytes that programs could get without swapping
	Caches    int64 // bytes of caches, mostly of files; much of them can be dropped
	SwapIn    int64 // bytes swapped in since boot
	SwapOut   int64 // bytes swapped out since boot

	MajorFaults int64 // page faults with I/O since boot
	MinorFaults int64 // page faults without I/O since boot

	HugePagesAllocated int64 // successful allocations of hugetlb pages since boot
	HugePagesFailed    int64 // failed ones
}

const (
	statBytes = 10 // le16 tag, le64 value, packed

	// maxStatBytes is how much of a buffer is looked at. Linux has 16 statistics.
	maxStatBytes = 100 * statBytes
)

// field returns where the value of a tag goes, or nil for an unknown tag (virtio 1.2 §5.5.6.4).
func (s *Stats) field(tag uint16) *int64 {
	fields := [...]*int64{
		0: &s.SwapIn, 1: &s.SwapOut, 2: &s.MajorFaults, 3: &s.MinorFaults, 4: &s.Free, 5: &s.Total, 6: &s.Available,
		7: &s.Caches, 8: &s.HugePagesAllocated, 9: &s.HugePagesFailed,
	}
	if int(tag) < len(fields) {
		return fields[tag]
	}
	return nil
}

// parseStats reads a driver's buffer. §5.5.6.3.1 asks for a multiple of 6 bytes, which contradicts its entries of 10; a rest is
// ignored, like unknown tags.
func parseStats(bufs [][]byte) (s Stats) {
	var raw [maxStatBytes]byte
	n := 0
	for _, b := range bufs {
		n += copy(raw[n:], b)
	}
	for b := raw[:n]; len(b) >= statBytes; b = b[statBytes:] {
		if f := s.field(binary.LittleEndian.Uint16(b)); f != nil {
			*f = int64(min(binary.LittleEndian.Uint64(b[2:]), math.MaxInt64))
		}
	}
	return s
}

// request is the state of the statistics queue (virtio 1.2 §5.5.6.3). The driver keeps one buffer in it. When the device uses the
// buffer, the driver fills it anew. So a request returns the buffer with the old content and waits for it to come back.
// Until the next request the device holds it, but not through a pause. The lock is Device.mu.
type request struct {
	waiting chan<- answer // has room for the answer; nil when nobody waits
	ask     bool          // the old content was not returned yet
	held    *virtio.Chain // popped from the queue, with content that was read
}

type answer struct {
	stats Stats
	err   error
}

func (r *request) finish(s Stats, err error) {
	if r.waiting != nil {
		r.waiting <- answer{s, err}
		r.waiting = nil
	}
}

// giveBack leaves the queue without a chain in flight. A request under way begins anew after the pause: what the driver has filled
// before would be old by then.
func (r *request) giveBack(env *virtio.Env) {
	r.ask = true
	if r.held != nil {
		q := env.Queues[statsQueue]
		q.Push(r.held.Head, 0)
		q.Flush()
		r.held = nil
	}
}

// Stats asks the guest for statistics of its memory and waits for the answer, which takes the guest as long as it likes: ctx must end.
// The error matches ErrNoStats if the guest has no driver or one without statistics, or is reset meanwhile. During a pause it waits.
// Concurrent calls are served in turn.
func (d *Device) Stats(ctx context.Context) (Stats, error) {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return Stats{}, unanswered(ctx)
	}
	defer func() { <-d.turn }()
	answered := make(chan answer, 1)
	if err := d.requestStats(answered); err != nil {
		return Stats{}, err
	}
	select {
	case a := <-answered:
		return a.stats, a.err
	case <-ctx.Done():
		d.mu.Lock()
		d.stats.waiting = nil // the buffer may come when it likes
		d.mu.Unlock()
		return Stats{}, unanswered(ctx)
	}
}

func unanswered(ctx context.Context) error {
	return fmt.Errorf("balloon: memory statistics: %w", context.Cause(ctx))
}

func (d *Device) requestStats(answered chan<- answer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.env == nil:
		return fmt.Errorf("%w: its driver is not up", ErrNoStats)
	case !d.env.Has(FeatureStats):
		return fmt.Errorf("%w: its driver has none", ErrNoStats)
	}
	d.stats.waiting, d.stats.ask = answered, true
	d.serveStats()
	return nil
}

// serveStats carries a request on. While nobody waits, a buffer stays in the queue. Caller holds mu.
func (d *Device) serveStats() {
	r := &d.stats
	if d.paused || r.waiting == nil {
		return
	}
	q := d.env.Queues[statsQueue]
	if r.ask {
		r.ask = false
		old := r.held
		r.held = nil
		if old == nil {
			var err error
			if old, _, err = q.Pop(); err != nil {
				d.failStats(err)
				return
			}
		}
		if old != nil {
			q.Push(old.Head, 0)
		}
		// Without a buffer the driver is just about to fill it, which is as good.
	}
	for more := true; more && r.waiting != nil; more = q.EnableNotify() {
		c, ok, err := q.Pop()
		if err != nil {
			d.failStats(err)
			return
		}
		if ok {
			r.held = c
			r.finish(parseStats(c.Readable), nil)
		}
	}
	q.Flush()
}

func (d *Device) failStats(err error) {
	d.env.Fail(err)
	d.env.Queues[statsQueue].Flush()
	d.stats.finish(Stats{}, fmt.Errorf("%w: %w", ErrNoStats, err))
}
