package machine

import (
	"bytes"
	"encoding/binary"
)

const (
	ioapicAddr = 0xfec00000
	lapicAddr  = 0xfee00000
)

// mpTable returns the floating pointer and configuration table of the Intel MultiProcessor Specification 1.4 (§4.1–4.3) that tell
// the guest of its vCPUs and of interrupt lines wired one to one to the IOAPIC.
//
// The MP table is the choice over hardware-reduced ACPI: the guest needs neither AML nor an ACPI core for it, which makes the kernel
// smaller and its boot shorter, and devices are named on the kernel command line either way.
func mpTable(addr uint32, vcpus int) []byte {
	le := binary.LittleEndian
	var entries bytes.Buffer
	count := 0
	add := func(fields ...any) {
		for _, f := range fields {
			binary.Write(&entries, le, f) // a bytes.Buffer does not fail
		}
		count++
	}
	const (
		enabled, bootstrap = 1, 2
		isaBus             = uint8(0)
		vectored, extInt   = uint8(0), uint8(3)
		nmi                = uint8(1)
	)
	for i := range vcpus {
		flags := uint8(enabled)
		if i == 0 {
			flags |= bootstrap
		}
		add(uint8(0), uint8(i), uint8(0x14), flags, uint32(0x600), uint32(0x201), uint64(0)) // §4.3.1: signature, FPU and APIC features
	}
	add(uint8(1), isaBus, [6]byte([]byte("ISA   ")))
	ioapicID := uint8(vcpus)
	add(uint8(2), ioapicID, uint8(0x11), uint8(1), uint32(ioapicAddr))
	for irq := range uint8(lastGSI + 1) {
		add(uint8(3), vectored, uint16(0), isaBus, irq, ioapicID, irq)
	}
	add(uint8(4), extInt, uint16(0), isaBus, uint8(0), uint8(0), uint8(0))
	add(uint8(4), nmi, uint16(0), isaBus, uint8(0), uint8(0xff), uint8(1))

	const floatingSize, headerSize = 16, 44
	table := make([]byte, headerSize, headerSize+entries.Len())
	copy(table, "PCMP")
	le.PutUint16(table[4:], uint16(headerSize+entries.Len()))
	table[6] = 4 // specification revision 1.4
	copy(table[8:], "SUPERMCH")
	copy(table[16:], "MICROVM     ")
	le.PutUint16(table[34:], uint16(count))
	le.PutUint32(table[36:], lapicAddr)
	table = append(table, entries.Bytes()...)
	table[7] = checksum(table)

	floating := make([]byte, floatingSize, floatingSize+len(table))
	copy(floating, "_MP_")
	le.PutUint32(floating[4:], addr+floatingSize)
	floating[8], floating[9] = 1, 4 // length in paragraphs, revision
	floating[10] = checksum(floating)
	return append(floating, table...)
}

// checksum returns the byte that makes all bytes of b add up to zero.
func checksum(b []byte) uint8 {
	var sum uint8
	for _, v := range b {
		sum += v
	}
	return -sum
}
