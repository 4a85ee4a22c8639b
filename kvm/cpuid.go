package kvm

import (
	"math/bits"

	"github.com/supermachine/supermachine/core/hypervisor"
)

const maxCPUIDEntries = 256

// cpuidList has the layout of struct kvm_cpuid2.
type cpuidList struct {
	n, _    uint32
	entries [maxCPUIDEntries]hypervisor.CPUIDEntry
}

func (s *System) supportedCPUID() ([]hypervisor.CPUIDEntry, error) {
	list := &cpuidList{n: maxCPUIDEntries}
	if err := ioctlPtr(s.fd, kvmGetSupportedCPUID, list, "KVM_GET_SUPPORTED_CPUID"); err != nil {
		return nil, err
	}
	entries := append([]hypervisor.CPUIDEntry(nil), list.entries[:list.n]...)
	if n, err := ioctl(s.fd, kvmCheckExtension, capTSCDeadline, "KVM_CHECK_EXTENSION"); err == nil && n != 0 {
		for i := range entries {
			if entries[i].Function == 1 {
				entries[i].ECX |= 1 << 24 // TSC-deadline timer: the in-kernel LAPIC has it, the supported list may not say so
			}
		}
	}
	return entries, nil
}

// vcpuCPUID returns what vCPU id of total sees: the supported leaves with its own APIC id and a topology of one
// socket with one core per vCPU.
func vcpuCPUID(supported []hypervisor.CPUIDEntry, id, total int) []hypervisor.CPUIDEntry {
	entries := append([]hypervisor.CPUIDEntry(nil), supported...)
	shift := uint32(bits.Len(uint(total - 1)))
	for i := range entries {
		e := &entries[i]
		switch e.Function {
		case 0x1:
			e.EBX = e.EBX&0xffff | uint32(total)<<16 | uint32(id)<<24
			e.ECX |= 1 << 31 // a hypervisor is present
			if total > 1 {
				e.EDX |= 1 << 28 // more than one logical processor in the package
			} else {
				e.EDX &^= 1 << 28
			}
		case 0x4:
			if e.EAX&0x1f != 0 {
				e.EAX = e.EAX&0x3fff | uint32(total-1)<<26
				if e.EAX>>5&7 == 3 { // the last level is shared by all cores
					e.EAX |= uint32(total-1) << 14
				}
			}
		case 0xb, 0x1f:
			e.EDX = uint32(id)
			e.ECX = e.Index & 0xff
			switch e.Index {
			case 0: // SMT level: one thread
				e.EAX, e.EBX = 0, 1
				e.ECX |= 1 << 8
			case 1: // core level
				e.EAX, e.EBX = shift, uint32(total)
				e.ECX |= 2 << 8
			default:
				e.EAX, e.EBX = 0, 0
			}
		case 0x80000008:
			e.ECX = e.ECX&^0xf0ff | uint32(total-1) | shift<<12
		case 0x8000001e:
			e.EAX, e.EBX, e.ECX = uint32(id), uint32(id), 0
		}
	}
	return entries
}

func (v *VCPU) setCPUID(entries []hypervisor.CPUIDEntry) error {
	list := new(cpuidList)
	list.n = uint32(copy(list.entries[:], entries))
	return ioctlPtr(v.fd, kvmSetCPUID2, list, "KVM_SET_CPUID2")
}

const maxMSRs = 512

// msrIndexes has the layout of struct kvm_msr_list.
type msrIndexes struct {
	n       uint32
	indices [maxMSRs]uint32
}

func (s *System) msrIndexList() ([]uint32, error) {
	list := &msrIndexes{n: maxMSRs}
	if err := ioctlPtr(s.fd, kvmGetMSRIndexList, list, "KVM_GET_MSR_INDEX_LIST"); err != nil {
		return nil, err
	}
	return append([]uint32(nil), list.indices[:list.n]...), nil
}

// msrList has the layout of struct kvm_msrs.
type msrList struct {
	n, _    uint32
	entries [maxMSRs]hypervisor.MSR
}
