package hypervisor

import "encoding/binary"

// VMState is the state that the vCPUs of one VM share (amd64): interrupt controllers, timer chip and clock.
type VMState struct {
	PIC     [2][]byte // the two 8259s: struct kvm_pic_state each
	IOAPIC  []byte    // struct kvm_ioapic_state
	PIT     []byte    // struct kvm_pit_state2
	ClockNs uint64    // kvm-clock, nanoseconds since the VM was created
	TSC     uint64    // of the first vCPU when the clock was read; 0 if unknown
}

// VCPUState is the whole state of one vCPU (amd64).
type VCPUState struct {
	CPUID     []CPUIDEntry
	TSCKHz    uint32
	MPState   uint32 // KVM API doc §4.38
	Regs      Registers
	Sregs     SystemRegisters
	XSave     []byte // XSAVE area in standard format, 4096 bytes or as long as CPUID leaf 0xd asks
	XCRs      []XCR
	MSRs      []MSR
	LAPIC     []byte // 1 KiB register page
	Events    []byte // struct kvm_vcpu_events, 64 bytes
	DebugRegs []byte // struct kvm_debugregs, 128 bytes
}

// CPUIDEntry has the layout of struct kvm_cpuid_entry2.
type CPUIDEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// XCR is one extended control register.
type XCR struct {
	Index uint32
	Value uint64
}

// MSR has the layout of struct kvm_msr_entry.
type MSR struct {
	Index    uint32
	Reserved uint32
	Value    uint64
}

// Registers has the layout of struct kvm_regs.
type Registers struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment has the layout of struct kvm_segment.
type Segment struct {
	Base                           uint64
	Limit                          uint32
	Selector                       uint16
	Type                           uint8
	Present, DPL, DB, S, L, G, AVL uint8
	Unusable                       uint8
	_                              uint8
}

// Descriptor has the layout of struct kvm_dtable.
type Descriptor struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// SystemRegisters has the layout of struct kvm_sregs.
type SystemRegisters struct {
	CS, DS, ES, FS, GS, SS Segment
	TR, LDT                Segment
	GDT, IDT               Descriptor
	CR0, CR2, CR3, CR4     uint64
	CR8                    uint64
	EFER                   uint64
	APICBase               uint64
	InterruptBitmap        [4]uint64
}

// Leaf returns a leaf of the CPUID, zero if it is not there.
func (s *VCPUState) Leaf(function, index uint32) CPUIDEntry {
	for _, e := range s.CPUID {
		if e.Function == function && e.Index == index {
			return e
		}
	}
	return CPUIDEntry{}
}

// Processor says what CPU the guest was shown (CPUID leaves 0 and 1): the vendor's 12 characters, family, model and stepping.
func (s *VCPUState) Processor() (vendor string, family, model, stepping int) {
	e := s.Leaf(0, 0)
	le := binary.LittleEndian
	vendor = string(le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, e.EBX), e.EDX), e.ECX))
	v := int(s.Leaf(1, 0).EAX)
	stepping, model, family = v&0xf, v>>4&0xf|v>>12&0xf0, v>>8&0xf
	if family == 0xf {
		family += v >> 20 & 0xff
	}
	return vendor, family, model, stepping
}
