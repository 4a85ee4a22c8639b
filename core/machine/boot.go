package machine

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// ErrKernel is matched (errors.Is) by every error about a kernel image that cannot be booted.
var ErrKernel = errors.New("not a bootable kernel")

// noteXenPhys32Entry is the ELF note that carries the physical address of the kernel's PVH entry (xen/include/public/elfnote.h).
const noteXenPhys32Entry = 18

// loadKernel reads the loadable segments of an uncompressed kernel (vmlinux ELF) straight into guest memory. It returns the PVH entry
// point and the first address past the kernel.
func loadKernel(r io.ReaderAt, mem *hypervisor.Memory) (entry, end uint64, err error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %v", ErrKernel, err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		return 0, 0, fmt.Errorf("%w: built for %v, this machine is x86-64", ErrKernel, f.Machine)
	}
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_NOTE:
			if e, ok := pvhEntry(p); ok {
				entry = e
			}
		case elf.PT_LOAD:
			if p.Filesz > p.Memsz || p.Paddr < isaHoleEnd {
				return 0, 0, fmt.Errorf("%w: segment at %#x is malformed", ErrKernel, p.Paddr)
			}
			dst, ok := mem.Slice(p.Paddr, p.Memsz)
			if !ok {
				return 0, 0, fmt.Errorf("%w: segment at %#x of %d bytes does not fit into %d MiB of memory", ErrKernel, p.Paddr, p.Memsz, mem.Size()>>20)
			}
			if _, err := io.ReadFull(io.NewSectionReader(r, int64(p.Off), int64(p.Filesz)), dst[:p.Filesz]); err != nil {
				return 0, 0, fmt.Errorf("%w: segment at %#x: %v", ErrKernel, p.Paddr, err)
			}
			end = max(end, p.Paddr+p.Memsz)
		}
	}
	if entry == 0 {
		return 0, 0, fmt.Errorf("%w: it has no PVH entry (CONFIG_PVH)", ErrKernel)
	}
	if _, ok := mem.Slice(entry, 1); !ok {
		return 0, 0, fmt.Errorf("%w: entry point %#x lies outside memory", ErrKernel, entry)
	}
	return entry, end, nil
}

// pvhEntry looks for the entry point among the notes of one segment.
func pvhEntry(p *elf.Prog) (uint64, bool) {
	const maxNotes = 64 << 10
	if p.Filesz > maxNotes {
		return 0, false
	}
	b := make([]byte, p.Filesz)
	if _, err := p.ReadAt(b, 0); err != nil {
		return 0, false
	}
	le := binary.LittleEndian
	align := func(n uint64) uint64 { return (n + 3) &^ 3 }
	for len(b) >= 12 {
		nameLen, descLen, kind := align(uint64(le.Uint32(b))), align(uint64(le.Uint32(b[4:]))), le.Uint32(b[8:])
		b = b[12:]
		if nameLen+descLen > uint64(len(b)) {
			return 0, false
		}
		if kind == noteXenPhys32Entry && descLen >= 4 && string(b[:min(3, nameLen)]) == "Xen" {
			return uint64(le.Uint32(b[nameLen:])), true
		}
		b = b[nameLen+descLen:]
	}
	return 0, false
}

// loadInitrd puts the archives one behind the other (the kernel unpacks concatenated cpio archives in order) as high as possible in low memory.
func loadInitrd(archives [][]byte, kernelEnd uint64, mem *hypervisor.Memory) (addr, size uint64, err error) {
	const page = 4096
	for _, a := range archives {
		size += (uint64(len(a)) + 3) &^ 3
	}
	low := uint64(len(mem.Regions()[0].Bytes))
	if size+page > low || (low-size)&^(page-1) < kernelEnd {
		return 0, 0, fmt.Errorf("the initramfs of %d KiB does not fit behind the kernel in %d MiB of memory", size>>10, mem.Size()>>20)
	}
	addr = (low - size) &^ (page - 1)
	dst, _ := mem.Slice(addr, size)
	for _, a := range archives {
		dst = dst[(copy(dst, a)+3)&^3:]
	}
	return addr, size, nil
}

// writeStartInfo writes the PVH start info, module list, memory map and command line (xen/include/public/arch-x86/hvm/start_info.h) and
// returns nothing to remember but startInfoAddr, which goes into EBX.
func writeStartInfo(mem *hypervisor.Memory, cmdline string, initrdAddr, initrdSize uint64) error {
	if len(cmdline) >= maxCmdline {
		return fmt.Errorf("the kernel command line has %d bytes, at most %d", len(cmdline), maxCmdline-1)
	}
	const (
		magic      = 0x336ec578
		moduleAddr = startInfoAddr + 0x100
		memmapAddr = startInfoAddr + 0x200
		ram        = 1
		reserved   = 2
	)
	le := binary.LittleEndian
	put := func(addr uint64, values ...any) int {
		var b []byte
		for _, v := range values {
			switch v := v.(type) {
			case uint32:
				b = le.AppendUint32(b, v)
			case uint64:
				b = le.AppendUint64(b, v)
			case string:
				b = append(append(b, v...), 0)
			}
		}
		dst, _ := mem.Slice(addr, uint64(len(b))) // below 640 KiB, which every machine has
		return copy(dst, b)
	}
	low := uint64(len(mem.Regions()[0].Bytes))
	entries := []any{
		uint64(0), uint64(baseMemoryEnd), uint32(ram), uint32(0),
		uint64(mpTableAddr), uint64(0xa0000 - mpTableAddr), uint32(reserved), uint32(0),
		uint64(isaHoleEnd), low - isaHoleEnd, uint32(ram), uint32(0),
	}
	for _, r := range mem.Regions()[1:] {
		entries = append(entries, r.Addr, uint64(len(r.Bytes)), uint32(ram), uint32(0))
	}
	put(memmapAddr, entries...)
	modules := uint32(0)
	if initrdSize > 0 {
		put(moduleAddr, initrdAddr, initrdSize, uint64(0), uint64(0))
		modules = 1
	}
	put(cmdlineAddr, cmdline)
	put(startInfoAddr, uint32(magic), uint32(1), uint32(0), modules, uint64(moduleAddr), uint64(cmdlineAddr), uint64(0),
		uint64(memmapAddr), uint32(len(entries)/4), uint32(0))
	return nil
}

// setEntry makes st start the kernel at its PVH entry: 32-bit protected mode, flat segments, paging off, EBX = start info.
func setEntry(st *hypervisor.VCPUState, entry uint64) {
	code := hypervisor.Segment{Limit: 0xffffffff, Selector: 8, Type: 0xb, Present: 1, DB: 1, S: 1, G: 1}
	data := hypervisor.Segment{Limit: 0xffffffff, Selector: 16, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	s := &st.Sregs
	s.CS, s.DS, s.ES, s.SS, s.FS, s.GS = code, data, data, data, data, data
	s.TR = hypervisor.Segment{Limit: 0x67, Type: 0xb, Present: 1}
	s.CR0 = 1 // PE
	st.Regs = hypervisor.Registers{RIP: entry, RBX: startInfoAddr, RFLAGS: 2}
	// Write-back by default, as firmware would leave it: Linux turns PAT off when the MTRRs are.
	const mtrrDefType, enabled, writeBack = 0x2ff, 1 << 11, 6
	st.MSRs = []hypervisor.MSR{{Index: mtrrDefType, Value: enabled | writeBack}}
}
