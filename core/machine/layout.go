package machine

import (
	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// Limits of a machine's size.
const (
	MinMemoryMiB = 64
	MaxMemoryMiB = 512 << 10
	MaxVCPUs     = 8
)

// The physical address map of the amd64 board. RAM fills everything below lowMemoryEnd and goes on at 4 GiB; between them lie the
// virtio-mmio devices, the IOAPIC (0xfec00000), the LAPICs (0xfee00000) and KVM's helper pages.
const (
	baseMemoryEnd  = 0x9fc00 // the last KiB below 640 KiB holds the MP table
	mpTableAddr    = 0x9fc00
	isaHoleEnd     = 0x100000
	lowMemoryEnd   = 3 << 30
	highMemoryBase = 4 << 30

	startInfoAddr = 0x6000
	cmdlineAddr   = 0x20000
	maxCmdline    = 2048 // COMMAND_LINE_SIZE of x86 Linux

	deviceBase   = 0xd0000000
	deviceStride = 0x1000
	firstGSI     = 5 // lines 0 to 4 belong to the timer, the keyboard, the cascade and the serial ports
	lastGSI      = 23
	// MaxDevices is how many devices a board has room for.
	MaxDevices = lastGSI - firstGSI + 1
)

// RAMRegion is one run of a machine's physical memory.
type RAMRegion struct {
	Addr uint64 // guest physical address
	Size int64  // bytes
}

// RAMLayout returns where a machine of mib MiB has its memory, in ascending order.
func RAMLayout(mib int) []RAMRegion {
	size := int64(mib) << 20
	if size <= lowMemoryEnd {
		return []RAMRegion{{Size: size}}
	}
	return []RAMRegion{{Size: lowMemoryEnd}, {Addr: highMemoryBase, Size: size - lowMemoryEnd}}
}

// allocateMemory maps mib MiB of anonymous guest RAM. Pages appear when the guest touches them.
func allocateMemory(mib int) (*hypervisor.Memory, error) {
	layout := RAMLayout(mib)
	sizes := make([]int64, len(layout))
	for i, r := range layout {
		sizes[i] = r.Size
	}
	mem, err := memory.Reserve(sizes)
	if err != nil {
		return nil, err
	}
	regions := make([]hypervisor.Region, len(layout))
	for i, r := range layout {
		regions[i] = hypervisor.Region{Addr: r.Addr, Bytes: mem[i]}
	}
	return hypervisor.NewMemory(regions...), nil
}

func releaseMemory(m *hypervisor.Memory) {
	var mem [][]byte
	for _, r := range m.Regions() {
		mem = append(mem, r.Bytes)
	}
	memory.Release(mem)
}
