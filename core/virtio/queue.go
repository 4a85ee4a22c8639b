package virtio

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// maxChainBytes bounds a chain's total length (virtio 1.2 §2.7.5: the driver must not make one longer than 2^32 bytes).
const maxChainBytes = 1 << 32

// Chain is one request or buffer that the driver made available: a descriptor chain with indirect descriptors resolved.
//
// The slices are guest memory: their bytes may change at any time, so what is checked must be copied first. Empty descriptors
// are left out. A chain and its slices are valid until Queue.Push of its head or until Reset.
type Chain struct {
	Head     uint16   // identifies the chain to Push
	Readable [][]byte // what the driver wrote for the device, in order
	Writable [][]byte // what the device may write, in order
	ReadLen  uint64   // total bytes in Readable
	WriteLen uint64   // total bytes in Writable
}

// Queue is the device side of one split virtqueue (virtio 1.2 §2.7). It is not safe for concurrent use: one goroutine or one
// lock owns it. The transport changes it only while the device is inactive or paused.
type Queue struct {
	mem       *hypervisor.Memory
	run       *atomic.Uint32 // the transport's run state; see MMIO
	interrupt func()
	maxSize   uint16

	config QueueConfig // what the driver set up

	// The rest is valid while config.Ready.
	desc, avail, used []byte // the rings in guest memory
	eventIdx          bool
	indirect          bool

	lastAvail uint16 // next entry of the available ring to take
	availIdx  uint16 // the driver's idx as last seen
	nextUsed  uint16 // next entry of the used ring to fill
	published uint16 // the idx that the driver sees
	noNotify  bool   // without event index: notifications are switched off
	fence     atomic.Uint32

	inFlight []*Chain // by head: chains popped and not yet pushed
	free     []*Chain
	popped   int // number of chains in flight
}

// QueueConfig is what the driver writes to a queue's registers.
type QueueConfig struct {
	Size   uint16 // entries, a power of two
	Ready  bool
	Desc   uint64 // guest physical address of the descriptor table
	Driver uint64 // guest physical address of the driver area: the available ring
	Device uint64 // guest physical address of the device area: the used ring
}

// QueueState is the saved state of a queue.
type QueueState struct {
	QueueConfig
	LastAvail uint16 // available ring entries taken, modulo 2^16
	NextUsed  uint16 // used ring entries filled, modulo 2^16
}

// Ready reports whether the driver enabled the queue.
func (q *Queue) Ready() bool { return q.config.Ready }

// Size returns the number of entries that the driver chose.
func (q *Queue) Size() int { return int(q.config.Size) }

// enable checks the driver's configuration and maps the rings.
func (q *Queue) enable(c QueueConfig, features uint64) error {
	if c.Size == 0 || c.Size > q.maxSize || c.Size&(c.Size-1) != 0 {
		return DriverErrorf("queue size %d is not a power of two up to %d", c.Size, q.maxSize)
	}
	eventIdx := features&FeatureEventIdx != 0
	desc, err := q.ring("descriptor table", c.Desc, descBytes(c.Size), descAlign)
	if err != nil {
		return err
	}
	avail, err := q.ring("available ring", c.Driver, availBytes(c.Size, eventIdx), availAlign)
	if err != nil {
		return err
	}
	used, err := q.ring("used ring", c.Device, usedBytes(c.Size, eventIdx), usedAlign)
	if err != nil {
		return err
	}
	q.desc, q.avail, q.used = desc, avail, used
	q.eventIdx, q.indirect = eventIdx, features&FeatureIndirectDesc != 0
	q.lastAvail, q.availIdx, q.nextUsed, q.published = 0, 0, 0, 0
	q.noNotify = false
	q.inFlight = make([]*Chain, c.Size)
	q.free, q.popped = nil, 0
	q.config = c
	q.config.Ready = true
	return nil
}

func (q *Queue) ring(name string, addr, n, align uint64) ([]byte, error) {
	if addr%align != 0 {
		return nil, DriverErrorf("%s at %#x is not aligned to %d", name, addr, align)
	}
	b, ok := q.mem.Slice(addr, n)
	if !ok {
		return nil, DriverErrorf("%s at %#x (%d bytes) is outside memory", name, addr, n)
	}
	return b, nil
}

// disable forgets the rings; the configuration stays readable.
func (q *Queue) disable() {
	q.config.Ready = false
	q.desc, q.avail, q.used, q.inFlight, q.free, q.popped = nil, nil, nil, nil, nil, 0
}

func (q *Queue) live() bool { return q.config.Ready && q.run.Load() == runActive }

// Live reports whether Pop may yield chains: whether the transport neither pauses nor resets and has not failed. A device that makes a driver wait looks at it.
func (q *Queue) Live() bool { return q.live() }

// Pop takes the next available chain. It reports false when there is none, and also while the transport pauses, resets or has
// failed: work left in the ring is announced again by Notify. An error means that the driver broke the rules; the device must
// hand it to Env.Fail. Pop does not block and, after warming up, does not allocate.
func (q *Queue) Pop() (*Chain, bool, error) {
	if !q.live() {
		return nil, false, nil
	}
	if q.lastAvail == q.availIdx {
		q.availIdx = load16(q.avail, 2)
		if q.lastAvail == q.availIdx {
			return nil, false, nil
		}
	}
	size := q.config.Size
	if pending := q.availIdx - q.lastAvail; pending > size {
		return nil, false, DriverErrorf("available index jumped by %d in a queue of %d", pending, size)
	}
	head := binary.LittleEndian.Uint16(q.avail[4+2*int(q.lastAvail&(size-1)):])
	if head >= size {
		return nil, false, DriverErrorf("descriptor head %d in a queue of %d", head, size)
	}
	if q.inFlight[head] != nil {
		return nil, false, DriverErrorf("descriptor head %d made available while in use", head)
	}
	c := q.takeChain(head)
	if err := q.walk(c); err != nil {
		q.free = append(q.free, c)
		return nil, false, fmt.Errorf("chain %d: %w", head, err)
	}
	q.lastAvail++
	q.inFlight[head] = c
	q.popped++
	return c, true, nil
}

func (q *Queue) takeChain(head uint16) *Chain {
	var c *Chain
	if n := len(q.free); n > 0 {
		c = q.free[n-1]
		q.free = q.free[:n-1]
	} else {
		c = new(Chain)
	}
	c.Head = head
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	c.ReadLen, c.WriteLen = 0, 0
	return c
}

// walk follows the descriptors of c.Head (virtio 1.2 §2.7.5). The number of steps is bounded by the queue's size, and in an
// indirect table by the size that the device offers, so a loop ends as a chain that is too long.
func (q *Queue) walk(c *Chain) error {
	table, limit, inTable := q.desc, uint32(q.config.Size), false
	i := uint32(c.Head)
	for steps := uint32(1); ; steps++ {
		if steps > limit {
			return DriverErrorf("descriptor loop or more than %d descriptors", limit)
		}
		d := loadDescriptor(table, i)
		if d.flags&descIndirect != 0 {
			if err := q.checkIndirect(d, inTable); err != nil {
				return err
			}
			t, ok := q.mem.Slice(d.addr, uint64(d.len))
			if !ok {
				return DriverErrorf("indirect table at %#x (%d bytes) is outside memory", d.addr, d.len)
			}
			// §2.7.5.3.2: the write flag of this descriptor is ignored.
			table, inTable, i = t, true, 0
			limit, steps = min(d.len/descSize, uint32(q.maxSize)), 0
			continue
		}
		if err := c.add(q.mem, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		i = uint32(d.next)
		if i >= uint32(len(table)/descSize) {
			return DriverErrorf("next descriptor %d is outside a table of %d", i, len(table)/descSize)
		}
	}
}

func (q *Queue) checkIndirect(d descriptor, inTable bool) error {
	switch {
	case !q.indirect:
		return DriverErrorf("indirect descriptor without the feature")
	case inTable:
		return DriverErrorf("indirect descriptor inside an indirect table")
	case d.flags&descNext != 0:
		return DriverErrorf("indirect descriptor with a next descriptor")
	case d.len == 0 || d.len%descSize != 0:
		return DriverErrorf("indirect table of %d bytes", d.len)
	}
	return nil
}

func (c *Chain) add(mem *hypervisor.Memory, d descriptor) error {
	writable := d.flags&descWrite != 0
	if d.len == 0 {
		return nil
	}
	if !writable && len(c.Writable) > 0 {
		return DriverErrorf("readable descriptor after a writable one")
	}
	b, ok := mem.Slice(d.addr, uint64(d.len))
	if !ok {
		return DriverErrorf("buffer at %#x (%d bytes) is outside memory", d.addr, d.len)
	}
	if c.ReadLen+c.WriteLen+uint64(d.len) > maxChainBytes {
		return DriverErrorf("chain longer than 2^32 bytes")
	}
	if writable {
		c.Writable = append(c.Writable, b)
		c.WriteLen += uint64(d.len)
	} else {
		c.Readable = append(c.Readable, b)
		c.ReadLen += uint64(d.len)
	}
	return nil
}

// Push gives a popped chain back to the driver; written is how many bytes the device wrote, from the start of Writable. The
// driver sees it after Flush. A head that is not in flight is ignored, as happens after a reset. Push does not block.
func (q *Queue) Push(head uint16, written uint32) {
	if int(head) >= len(q.inFlight) || q.inFlight[head] == nil {
		return
	}
	q.free = append(q.free, q.inFlight[head])
	q.inFlight[head] = nil
	q.popped--
	elem := q.used[4+8*int(q.nextUsed&(q.config.Size-1)):][:8]
	binary.LittleEndian.PutUint32(elem, uint32(head))
	binary.LittleEndian.PutUint32(elem[4:], written)
	q.nextUsed++
}

// Unpop makes it as if c had not been popped: the next Pop yields its descriptors anew. c must be the latest chain popped that is
// neither pushed nor unpopped, and is invalid afterwards. A chain that is not in flight is ignored, as happens after a reset. A device
// that needs several chains for one request gives them back so in Pauser.Pause.
func (q *Queue) Unpop(c *Chain) {
	if int(c.Head) >= len(q.inFlight) || q.inFlight[c.Head] != c {
		return
	}
	q.inFlight[c.Head] = nil
	q.free = append(q.free, c)
	q.popped--
	q.lastAvail--
}

// Flush lets the driver see what was pushed and raises the interrupt if the driver asked for one (virtio 1.2 §2.7.7); it reports
// whether it did. It does not block and does nothing when nothing was pushed.
func (q *Queue) Flush() (interrupted bool) {
	if !q.FlushQuietly() {
		return false
	}
	q.interrupt()
	return true
}

// FlushQuietly is Flush without the interrupt. If it returns true the driver asked for one, and the device owes it: an interrupt for
// another queue will do, since drivers look at every queue then (§4.2.2.1), or Env.Interrupt before long.
func (q *Queue) FlushQuietly() (owed bool) {
	if !q.config.Ready || q.nextUsed == q.published {
		return false
	}
	old := q.published
	q.published = q.nextUsed
	// An atomic store orders the entries before the index, and the index before the loads below.
	q.storeUsed()
	return q.wantsInterrupt(old)
}

func (q *Queue) wantsInterrupt(old uint16) bool {
	if !q.eventIdx {
		return load16(q.avail, 0)&availNoInterrupt == 0
	}
	event := load16(q.avail, 4+2*int(q.config.Size))
	return q.published-event-1 < q.published-old
}

// storeUsed writes the used ring's flags and idx, which share an aligned word that only the device writes.
func (q *Queue) storeUsed() {
	v := uint32(q.published) << 16
	if q.noNotify {
		v |= usedNoNotify
	}
	store32(q.used, 0, v)
}

// DisableNotify tells the driver that it need not notify for now. The device then drains the queue until EnableNotify.
func (q *Queue) DisableNotify() {
	if !q.config.Ready || q.eventIdx || q.noNotify {
		// With the event index the driver stays silent by itself until the index set by EnableNotify is passed.
		return
	}
	q.noNotify = true
	q.storeUsed()
}

// EnableNotify asks the driver for a notification when it makes the next chain available. It reports true if there is one
// already, for which no notification will come: the device must drain the queue again.
func (q *Queue) EnableNotify() (more bool) {
	if !q.config.Ready {
		return false
	}
	if q.eventIdx {
		binary.LittleEndian.PutUint16(q.used[4+8*int(q.config.Size):], q.lastAvail)
		// Orders the plain store above before the load below: on amd64 an atomic store is a full barrier, on arm64 it is a
		// store-release, which the load-acquire below cannot pass.
		q.fence.Store(1)
	} else {
		q.noNotify = false
		q.storeUsed()
	}
	q.availIdx = load16(q.avail, 2)
	return q.availIdx != q.lastAvail && q.live()
}

// save returns the queue's state. It fails if the device still holds chains, which is a bug of the device.
func (q *Queue) save() (QueueState, error) {
	if q.popped != 0 || q.published != q.nextUsed {
		return QueueState{}, fmt.Errorf("virtio: queue not quiet: %d chains in flight, %d not flushed",
			q.popped, q.nextUsed-q.published)
	}
	return QueueState{QueueConfig: q.config, LastAvail: q.lastAvail, NextUsed: q.nextUsed}, nil
}

// restore loads a saved state, which is checked like the driver's own writes. The available index in memory is checked by Pop.
func (q *Queue) restore(s QueueState, features uint64) error {
	if !s.Ready {
		q.config = s.QueueConfig
		return nil
	}
	if err := q.enable(s.QueueConfig, features); err != nil {
		return err
	}
	q.lastAvail, q.availIdx = s.LastAvail, s.LastAvail
	q.nextUsed, q.published = s.NextUsed, s.NextUsed
	return nil
}
