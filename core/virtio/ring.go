package virtio

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// Layout of the split virtqueue (virtio 1.2 §2.7). All fields are little endian, as are the hosts this runs on.
const (
	descSize = 16 // struct virtq_desc

	descNext     = 1 // VIRTQ_DESC_F_NEXT
	descWrite    = 2 // VIRTQ_DESC_F_WRITE
	descIndirect = 4 // VIRTQ_DESC_F_INDIRECT

	availNoInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	usedNoNotify     = 1 // VIRTQ_USED_F_NO_NOTIFY

	descAlign  = 16
	availAlign = 2
	usedAlign  = 4
)

func descBytes(size uint16) uint64 { return descSize * uint64(size) }

func availBytes(size uint16, eventIdx bool) uint64 {
	n := 4 + 2*uint64(size)
	if eventIdx {
		n += 2
	}
	return n
}

func usedBytes(size uint16, eventIdx bool) uint64 {
	n := 4 + 8*uint64(size)
	if eventIdx {
		n += 2
	}
	return n
}

// descriptor is struct virtq_desc, copied out of guest memory so that a driver that rewrites it meanwhile changes nothing.
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

func loadDescriptor(table []byte, i uint32) descriptor {
	b := table[uint64(i)*descSize:][:descSize]
	return descriptor{
		addr:  binary.LittleEndian.Uint64(b),
		len:   binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}
}

// load16 reads the 16-bit field b[off:off+2] of guest memory with the ordering of an atomic load. sync/atomic has nothing
// shorter than 32 bits, so it loads the aligned word that holds the field; guest memory regions are page-aligned, so that word
// is guest memory too, even where it begins two bytes before the ring.
func load16(b []byte, off int) uint16 {
	p := unsafe.Pointer(&b[off : off+2][0])
	if uintptr(p)&3 == 0 {
		return uint16(atomic.LoadUint32((*uint32)(p)))
	}
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Add(p, -2))) >> 16)
}

// store32 writes the aligned 32-bit field b[off:off+4] of guest memory with the ordering of an atomic store.
func store32(b []byte, off int, v uint32) {
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[off : off+4][0])), v)
}
