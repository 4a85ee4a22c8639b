package balloon

import (
	"encoding/binary"
	"slices"
	"unsafe"

	"github.com/supermachine/supermachine/core/virtio"
)

// maxPFNs is the most pages that one inflate request may hold, so that it ends in bounded time even if every page needs a system
// call of its own. Linux sends 256, others up to 1024.
const maxPFNs = 16 << 10

const pfnBytes = 4

// inflate releases the pages that a driver put into the balloon (virtio 1.2 §5.5.6 step 2): the chain holds an array of 32-bit page
// numbers. They must be those of the guest's memory; §5.5.6 knows no others.
func (d *Device) inflate(env *virtio.Env, c *virtio.Chain) error {
	if c.ReadLen%pfnBytes != 0 || c.ReadLen > maxPFNs*pfnBytes {
		return virtio.DriverErrorf("balloon: %d bytes of page numbers", c.ReadLen)
	}
	raw := make([]byte, 0, c.ReadLen) // a copy: the array may be cut anywhere, and may change
	for _, b := range c.Readable {
		raw = append(raw, b...)
	}
	pfns := make([]uint32, len(raw)/pfnBytes)
	for i := range pfns {
		pfns[i] = binary.LittleEndian.Uint32(raw[i*pfnBytes:])
	}
	// Linux sends runs of pages upwards and downwards alike; a run is one system call.
	slices.Sort(pfns)
	var run []byte
	var start uint64
	for _, pfn := range slices.Compact(pfns) {
		addr := uint64(pfn) * PageSize
		if len(run) > 0 && addr == start+uint64(len(run)) {
			// Not so at the border of two regions, whose bytes are apart on the host.
			if longer, ok := env.Memory.Slice(start, uint64(len(run))+PageSize); ok {
				run = longer
				continue
			}
		}
		d.discard(run)
		var ok bool
		if run, ok = env.Memory.Slice(addr, PageSize); !ok {
			return virtio.DriverErrorf("balloon: page %#x is outside memory", addr)
		}
		start = addr
	}
	d.discard(run)
	return nil
}

// report releases the free pages that a driver reported (virtio 1.2 §5.5.6.7): they are the chain's writable buffers, of any size.
// That they lie in guest memory was checked by Queue.Pop, and their number is bounded by the queue's size.
func (d *Device) report(c *virtio.Chain) error {
	for _, b := range c.Writable {
		d.discard(b)
	}
	return nil
}

// discard releases the whole pages of the host in b.
func (d *Device) discard(b []byte) {
	if b = wholePages(b, d.hostPage); len(b) == 0 {
		return
	}
	if err := d.release(b); err != nil {
		d.failed.Store(&err)
		return
	}
	d.reclaimed.Add(int64(len(b)))
}

// wholePages returns the part of b that is whole pages in the address space of this process. page is a power of two.
func wholePages(b []byte, page uintptr) []byte {
	if len(b) == 0 {
		return nil
	}
	skip := -uintptr(unsafe.Pointer(&b[0])) & (page - 1)
	if skip >= uintptr(len(b)) {
		return nil
	}
	b = b[skip:]
	return b[:uintptr(len(b))&^(page-1)]
}
