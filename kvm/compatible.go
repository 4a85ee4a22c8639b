package kvm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// Compatible implements hypervisor.Hypervisor. A guest has chosen its code by the CPU's vendor and features, so the vendor must be the
// same and every feature it was shown must be here; an XSAVE area must have the same layout.
func (s *System) Compatible(st *hypervisor.VCPUState) error {
	fail := func(format string, args ...any) error {
		return &hypervisor.IncompatibleError{Reason: fmt.Sprintf(format, args...)}
	}
	host := hypervisor.VCPUState{CPUID: s.cpuid}
	theirs, _, _, _ := st.Processor()
	if ours, _, _, _ := host.Processor(); theirs != ours {
		return fail("it was saved on a CPU of %q, this one is of %q", theirs, ours)
	}
	for _, f := range featureLeaves {
		old, here := st.Leaf(f.function, f.index), host.Leaf(f.function, f.index)
		for i, name := range [...]string{"EAX", "EBX", "ECX", "EDX"} {
			mask := f.masks[i]
			if missing := registers(old)[i] &^ registers(here)[i] & mask; missing != 0 {
				return fail("features %#x of CPUID leaf %#x.%d %s are missing", missing, f.function, f.index, name)
			}
		}
	}
	if want := max(s.xsaveSize, 4096); st.XSave != nil && len(st.XSave) != want {
		return fail("its extended registers have %d bytes, here %d", len(st.XSave), want)
	}
	return nil
}

// featureLeaves are the CPUID leaves whose registers are sets of features that a guest may rely on, with the bits that count: not those that
// describe the vCPU's place or that only follow from what the guest has switched on.
var featureLeaves = []struct {
	function, index uint32
	masks           [4]uint32
}{
	{0x1, 0, [4]uint32{2: ^uint32(1<<31 | 1<<27), 3: ^uint32(1 << 28)}},
	{0x7, 0, [4]uint32{1: ^uint32(0), 2: ^uint32(1 << 4), 3: ^uint32(0)}},
	{0x7, 1, [4]uint32{0: ^uint32(0)}},
	{0xd, 0, [4]uint32{0: ^uint32(0), 3: ^uint32(0)}},
	{0xd, 1, [4]uint32{0: ^uint32(0)}},
	{0x80000001, 0, [4]uint32{2: ^uint32(0), 3: ^uint32(0)}},
	{0x80000008, 0, [4]uint32{1: ^uint32(0)}},
}

func registers(e hypervisor.CPUIDEntry) [4]uint32 { return [4]uint32{e.EAX, e.EBX, e.ECX, e.EDX} }

// CPUDigest implements hypervisor.Hypervisor: the vendor and all that Compatible looks at.
func (s *System) CPUDigest() string {
	host := hypervisor.VCPUState{CPUID: s.cpuid}
	vendor, family, model, _ := host.Processor()
	h := sha256.New()
	fmt.Fprintf(h, "%q %d %d %d", vendor, family, model, s.xsaveSize)
	for _, f := range featureLeaves {
		r := registers(host.Leaf(f.function, f.index))
		for i := range r {
			fmt.Fprintf(h, " %x", r[i]&f.masks[i])
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
