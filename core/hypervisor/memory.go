package hypervisor

import "sort"

// Region is one run of guest physical RAM, backed by host memory outside the Go heap.
type Region struct {
	Addr  uint64 // guest physical address of Bytes[0]
	Bytes []byte
}

// Memory is the guest's physical RAM: a few regions that do not overlap, in ascending order of address.
// It is immutable after NewMemory; the bytes are shared with the running guest, which may change them at any time.
type Memory struct {
	regions []Region
}

// NewMemory returns the RAM made of the given regions. Overlapping or wrapping regions are a programming error and panic.
func NewMemory(regions ...Region) *Memory {
	rs := append([]Region(nil), regions...)
	sort.Slice(rs, func(i, j int) bool { return rs[i].Addr < rs[j].Addr })
	for i, r := range rs {
		end := r.Addr + uint64(len(r.Bytes))
		if end < r.Addr || (i+1 < len(rs) && end > rs[i+1].Addr) {
			panic("hypervisor: guest memory regions overlap")
		}
	}
	return &Memory{regions: rs}
}

// Regions returns the regions in ascending order of address. The caller must not change the slice.
func (m *Memory) Regions() []Region { return m.regions }

// Slice returns the n bytes of guest memory at addr. It reports false unless all of them lie in one region, so a value that
// came from the guest can be passed as it is. With n == 0 it returns an empty slice for any address inside a region.
func (m *Memory) Slice(addr, n uint64) ([]byte, bool) {
	for i := range m.regions {
		r := &m.regions[i]
		size := uint64(len(r.Bytes))
		if addr < r.Addr || addr-r.Addr >= size {
			continue
		}
		off := addr - r.Addr
		if n > size-off {
			return nil, false
		}
		return r.Bytes[off : off+n : off+n], true
	}
	return nil, false
}

// Size returns the bytes of RAM in all regions.
func (m *Memory) Size() uint64 {
	var n uint64
	for _, r := range m.regions {
		n += uint64(len(r.Bytes))
	}
	return n
}
