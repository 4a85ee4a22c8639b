package net

import (
	"encoding/binary"
	"sync"
	"time"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/rate"
)

// receiver moves frames to the guest. Its lock guards the receive queue too.
type receiver struct {
	sync.Mutex
	env    *virtio.Env // nil while the driver is not there
	paused bool
	broken bool // the driver broke the rules, and has not reset the device yet
	rate   rate.Bucket
	timer  *time.Timer // continues when rate allows; nil unless it waits

	waiting frames
	held    []*virtio.Chain // popped for the next frame, which needs more than there were
	room    uint64          // bytes in held
	single  [1][]byte
	targets [][]byte

	bytes, packets, dropped uint64
}

// deliver is what the link calls with a frame for the guest.
func (d *Device) deliver(parts [][]byte) bool {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	r := &d.rx
	r.Lock()
	defer r.Unlock()
	if n < ethernetBytes || n > d.mtu+ethernetBytes || r.env == nil || r.broken {
		r.dropped++
		return false
	}
	if r.waiting.empty() && !r.paused && r.try(parts, n) {
		r.flush()
		if r.broken {
			r.dropped++
		}
		return !r.broken
	}
	if r.broken || r.waiting.bytes+n+frameOverhead > d.queueBytes {
		r.dropped++
		return false
	}
	r.waiting.push(parts, n)
	r.pump() // the first try may have found too few buffers, with a notification yet to be asked for
	return !r.broken
}

// pump moves frames that wait, as long as the guest has buffers and the rate allows. Caller holds the lock.
func (r *receiver) pump() {
	if r.env == nil || r.paused {
		return
	}
	q := r.env.Queues[rxQueue]
	for !r.waiting.empty() {
		f := r.waiting.first()
		r.single[0] = f
		if r.try(r.single[:], len(f)) {
			if r.broken { // nothing waits any more
				break
			}
			r.waiting.pop()
			continue
		}
		if r.timer != nil || !q.EnableNotify() {
			break // the timer goes on, or Notify when the guest adds buffers
		}
	}
	r.single[0] = nil
	r.flush()
}

// flush lets the guest see its frames. While none wait it need not tell of new buffers.
func (r *receiver) flush() {
	q := r.env.Queues[rxQueue]
	q.Flush()
	if r.waiting.empty() {
		q.DisableNotify()
	}
}

// try moves a frame of n bytes to the guest, or drops it if no buffer will do. It returns false if the frame must wait: for the rate, or for buffers,
// of which it holds those there are. If the driver broke the rules, the device is broken afterwards. Caller holds the lock.
func (r *receiver) try(parts [][]byte, n int) bool {
	if r.timer != nil {
		return false
	}
	if wait := r.rate.Wait(time.Now()); wait > 0 {
		r.startTimer(wait)
		return false
	}
	q := r.env.Queues[rxQueue]
	need, merge := uint64(headerBytes+n), r.env.Has(FeatureMergeBuffers)
	for r.room < need {
		if len(r.held) > 0 && !merge { // the frame is larger than the driver's buffer, which stays for the next one
			r.dropped++
			return true
		}
		if len(r.held) == q.Size() {
			r.fail(virtio.DriverErrorf("network receive buffers of %d bytes in all, too few for a frame of %d", r.room, n))
			return true
		}
		c, ok, err := q.Pop()
		if err != nil {
			r.fail(err)
			return true
		}
		if !ok {
			return false
		}
		if c.WriteLen < headerBytes { // §5.1.6.3.1: the header is not split between buffers
			r.held = append(r.held, c)
			r.fail(virtio.DriverErrorf("network receive buffer of %d bytes, less than a header", c.WriteLen))
			return true
		}
		r.held = append(r.held, c)
		r.room += c.WriteLen
	}
	r.fill(parts, need)
	r.rate.Take(int64(n))
	r.bytes += uint64(n)
	r.packets++
	return true
}

// fill writes header and frame into the chains held and pushes them.
func (r *receiver) fill(parts [][]byte, need uint64) {
	var h [headerBytes]byte
	if r.env.Has(FeatureGuestChecksum) {
		h[0] = flagDataValid
	}
	binary.LittleEndian.PutUint16(h[10:], uint16(len(r.held))) // num_buffers; 1 without the feature (§5.1.6.4.1)
	targets := r.targets[:0]
	for _, c := range r.held {
		targets = append(targets, c.Writable...)
	}
	w := writer{targets: targets}
	w.write(h[:])
	for _, p := range parts {
		w.write(p)
	}
	clear(targets)
	r.targets = targets[:0]
	q := r.env.Queues[rxQueue]
	for _, c := range r.held {
		k := min(need, c.WriteLen)
		need -= k
		q.Push(c.Head, uint32(k))
	}
	clear(r.held)
	r.held, r.room = r.held[:0], 0
}

// writer writes on through a list of buffers.
type writer struct {
	targets [][]byte
	off     int // in the first
}

func (w *writer) write(p []byte) {
	for len(p) > 0 && len(w.targets) > 0 {
		n := copy(w.targets[0][w.off:], p)
		p = p[n:]
		if w.off += n; w.off == len(w.targets[0]) {
			w.targets, w.off = w.targets[1:], 0
		}
	}
}

// giveBack returns the chains held, for a device that pauses.
func (r *receiver) giveBack() {
	q := r.env.Queues[rxQueue]
	for i := len(r.held) - 1; i >= 0; i-- {
		q.Unpop(r.held[i])
	}
	clear(r.held)
	r.held, r.room = r.held[:0], 0
	r.stopTimer()
}

// fail gives the device up until the driver resets it, and drops what waits.
func (r *receiver) fail(err error) {
	q := r.env.Queues[rxQueue]
	r.broken = true
	r.env.Fail(err)
	for _, c := range r.held {
		q.Push(c.Head, 0)
	}
	clear(r.held)
	r.held, r.room = r.held[:0], 0
	r.dropped += uint64(r.waiting.clear())
}

// reset returns to the initial state.
func (r *receiver) reset() {
	r.stopTimer()
	r.dropped += uint64(r.waiting.clear())
	r.env, r.paused, r.broken, r.held, r.room, r.targets = nil, false, false, nil, 0, nil
}

func (r *receiver) startTimer(wait time.Duration) {
	var t *time.Timer
	t = time.AfterFunc(wait, func() {
		r.Lock()
		defer r.Unlock()
		if r.timer == t {
			r.timer = nil
			r.pump()
		}
	})
	r.timer = t
}

func (r *receiver) stopTimer() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// frameOverhead is what a frame that waits takes beside its bytes, so that many short ones are bounded too.
const frameOverhead = 64

// frames is a queue of copies of frames.
type frames struct {
	list  [][]byte
	next  int // of list: the first
	bytes int // with overhead
}

func (f *frames) empty() bool   { return f.next == len(f.list) }
func (f *frames) first() []byte { return f.list[f.next] }

func (f *frames) push(parts [][]byte, n int) {
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = append(b, p...)
	}
	if f.next > len(f.list)/2 {
		k := copy(f.list, f.list[f.next:])
		clear(f.list[k:])
		f.list, f.next = f.list[:k], 0
	}
	f.list = append(f.list, b)
	f.bytes += n + frameOverhead
}

func (f *frames) pop() {
	f.bytes -= len(f.list[f.next]) + frameOverhead
	f.list[f.next] = nil
	if f.next++; f.next == len(f.list) {
		f.list, f.next = f.list[:0], 0
	}
}

// clear drops all and returns how many there were.
func (f *frames) clear() int {
	n := len(f.list) - f.next
	*f = frames{}
	return n
}
