package virtiotest

import (
	"encoding/binary"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// Descriptor flags (virtio 1.2 §2.7.5).
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Desc is one descriptor of a table.
type Desc struct {
	Addr  uint64
	Len   uint32
	Flags uint16
	Next  uint16
}

// Buffer is one element of a chain: guest memory that the device reads or writes.
type Buffer struct {
	Addr     uint64
	Bytes    []byte
	Writable bool
}

// Used is one entry of the used ring.
type Used struct {
	Head    uint16
	Written uint32
}

// Queue is the driver's side of a split virtqueue. One goroutine may use it at a time.
type Queue struct {
	d                 *Driver
	index, size       int
	desc, avail, used []byte
	eventIdx          bool
	availIdx          uint16
	lastUsed          uint16
	kicked            uint16 // availIdx at the last Kick
	free              []uint16
	fence             uint32
	notify            [4]byte // what Kick writes
}

// Size returns the number of entries.
func (q *Queue) Size() int { return q.size }

// Free returns the number of free descriptors.
func (q *Queue) Free() int { return len(q.free) }

// Out returns a readable buffer in guest memory that holds data.
func (d *Driver) Out(data []byte) Buffer {
	addr, b := d.Alloc(len(data))
	copy(b, data)
	return Buffer{Addr: addr, Bytes: b}
}

// In returns a writable buffer of n bytes in guest memory.
func (d *Driver) In(n int) Buffer {
	addr, b := d.Alloc(n)
	return Buffer{Addr: addr, Bytes: b, Writable: true}
}

// Table returns the descriptor table.
func (q *Queue) Table() []byte { return q.desc }

// SetDesc writes entry i of the descriptor table.
func (q *Queue) SetDesc(i int, e Desc) { PutDesc(q.desc, i, e) }

// PutDesc writes entry i of a descriptor table.
func PutDesc(table []byte, i int, e Desc) {
	b := table[16*i:]
	binary.LittleEndian.PutUint64(b, e.Addr)
	binary.LittleEndian.PutUint32(b[8:], e.Len)
	binary.LittleEndian.PutUint16(b[12:], e.Flags)
	binary.LittleEndian.PutUint16(b[14:], e.Next)
}

// Chain writes a chain of direct descriptors for the buffers and returns its head.
func (q *Queue) Chain(bufs ...Buffer) uint16 {
	q.d.t.Helper()
	require.NotEmpty(q.d.t, bufs)
	require.LessOrEqual(q.d.t, len(bufs), len(q.free), "virtiotest: queue full")
	first := len(q.free) - len(bufs)
	heads := q.free[first:]
	for i, b := range bufs {
		e := b.desc()
		if i+1 < len(bufs) {
			e.Flags |= Next
			e.Next = heads[i+1]
		}
		q.SetDesc(int(heads[i]), e)
	}
	head := heads[0]
	q.free = q.free[:first]
	return head
}

// ChainIndirect writes the buffers into an indirect table and one descriptor that refers to it.
func (q *Queue) ChainIndirect(bufs ...Buffer) uint16 {
	q.d.t.Helper()
	require.NotEmpty(q.d.t, q.free, "virtiotest: queue full")
	addr, table := q.d.Alloc(16 * len(bufs))
	for i, b := range bufs {
		e := b.desc()
		if i+1 < len(bufs) {
			e.Flags |= Next
			e.Next = uint16(i + 1)
		}
		PutDesc(table, i, e)
	}
	head := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	q.SetDesc(int(head), Desc{Addr: addr, Len: uint32(len(table)), Flags: Indirect})
	return head
}

func (b Buffer) desc() Desc {
	e := Desc{Addr: b.Addr, Len: uint32(len(b.Bytes))}
	if b.Writable {
		e.Flags |= Write
	}
	return e
}

// Offer makes a chain available without notifying the device.
func (q *Queue) Offer(head uint16) {
	q.SetAvail(q.availIdx, head)
	q.SetAvailIdx(q.availIdx + 1)
}

// SetAvail writes the entry of the available ring that index idx falls on.
func (q *Queue) SetAvail(idx, head uint16) {
	binary.LittleEndian.PutUint16(q.avail[4+2*(int(idx)%q.size):], head)
}

// SetAvailIdx publishes idx as the available ring's index.
func (q *Queue) SetAvailIdx(idx uint16) {
	q.availIdx = idx
	w := (*uint32)(unsafe.Pointer(&q.avail[0]))
	atomic.StoreUint32(w, atomic.LoadUint32(w)&0xffff|uint32(idx)<<16)
}

// SuppressInterrupts asks the device for no interrupts, or for interrupts again: by flag or by event index.
func (q *Queue) SuppressInterrupts(on bool) {
	w := (*uint32)(unsafe.Pointer(&q.avail[0]))
	v := atomic.LoadUint32(w) &^ 0xffff
	if on {
		v |= 1
	}
	atomic.StoreUint32(w, v)
	event := q.lastUsed
	if on {
		event--
	}
	q.SetUsedEvent(event)
}

// SetUsedEvent asks for an interrupt when the used index passes event (virtio 1.2 §2.7.7).
func (q *Queue) SetUsedEvent(event uint16) {
	binary.LittleEndian.PutUint16(q.avail[4+2*q.size:], event)
	atomic.StoreUint32(&q.fence, 1) // before the used index is read
}

// WantsKick reports whether the device asked for a notification of what was offered since the last Kick.
func (q *Queue) WantsKick() bool {
	if !q.eventIdx {
		return atomic.LoadUint32((*uint32)(unsafe.Pointer(&q.used[0])))&1 == 0
	}
	event := uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&q.used[4+8*q.size]))))
	return q.availIdx-event-1 < q.availIdx-q.kicked
}

// Kick notifies the device, whether it asked for it or not; the device's work is done on the caller's goroutine.
func (q *Queue) Kick() {
	q.Kicked()
	binary.LittleEndian.PutUint32(q.notify[:], uint32(q.index))
	q.d.MMIO.Write(RegQueueNotify, q.notify[:])
}

// Kicked tells WantsKick that what was offered so far was announced, or need not be.
func (q *Queue) Kicked() { q.kicked = q.availIdx }

// Submit writes a chain of the buffers, offers it and notifies the device. It returns the chain's head.
func (q *Queue) Submit(bufs ...Buffer) uint16 {
	q.d.t.Helper()
	head := q.Chain(bufs...)
	q.Offer(head)
	q.Kick()
	return head
}

// UsedIdx reads the used ring's index.
func (q *Queue) UsedIdx() uint16 {
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Pointer(&q.used[0]))) >> 16)
}

// Take returns the next used entry, if there is one. Its descriptors stay as they are, so the chain may be offered again.
func (q *Queue) Take() (Used, bool) {
	if q.UsedIdx() == q.lastUsed {
		return Used{}, false
	}
	e := q.used[4+8*(int(q.lastUsed)%q.size):]
	u := Used{Head: uint16(binary.LittleEndian.Uint32(e)), Written: binary.LittleEndian.Uint32(e[4:])}
	q.lastUsed++
	q.SetUsedEvent(q.lastUsed)
	return u, true
}

// Poll is Take, and frees the chain's descriptors.
func (q *Queue) Poll() (Used, bool) {
	u, ok := q.Take()
	if ok {
		q.release(u.Head)
	}
	return u, ok
}

// release puts the descriptors of the chain at head back on the free list.
func (q *Queue) release(head uint16) {
	var chain []uint16
	for i := head; ; {
		chain = append(chain, i)
		b := q.desc[16*int(i):]
		if binary.LittleEndian.Uint16(b[12:])&Next == 0 {
			break
		}
		i = binary.LittleEndian.Uint16(b[14:])
	}
	for i := len(chain) - 1; i >= 0; i-- {
		q.free = append(q.free, chain[i])
	}
}

// Wait returns the next used entry, waiting for interrupts until there is one.
func (q *Queue) Wait() Used {
	q.d.t.Helper()
	for deadline := time.Now().Add(Timeout); ; {
		if u, ok := q.Poll(); ok {
			return u
		}
		require.True(q.d.t, time.Now().Before(deadline), "virtiotest: queue %d: no used entry", q.index)
		q.d.WaitInterrupt()
	}
}

func offsetIn(whole, part []byte) int {
	return int(uintptr(unsafe.Pointer(&part[0])) - uintptr(unsafe.Pointer(&whole[0])))
}
