package kvm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxStats bounds what is read of the kernel's description of its counters.
const maxStats = 1 << 20

// statsHeader is struct kvm_stats_header, at the beginning of a statistics descriptor (KVM API doc, KVM_GET_STATS_FD).
type statsHeader struct {
	Flags, NameSize, Count, IDOffset, DescOffset, DataOffset uint32
}

// statsDesc is struct kvm_stats_desc without the name that follows it.
type statsDesc struct {
	Flags    uint32
	Exponent int16
	Size     uint16
	Offset   uint32
	Bucket   uint32
}

// PageFaults implements hypervisor.VCPU by the kernel's counter pf_taken (KVM API doc, KVM_GET_STATS_FD; Linux 5.14 and newer).
func (v *VCPU) PageFaults() (uint64, error) {
	fd, err := ioctl(v.fd, kvmGetStatsFD, 0, "KVM_GET_STATS_FD")
	if err != nil {
		return 0, err
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "kvm statistics")
	defer f.Close()
	b := make([]byte, maxStats)
	n, err := f.ReadAt(b, 0)
	if n == 0 {
		return 0, fmt.Errorf("kvm: read the statistics of a vCPU: %w", err)
	}
	return findStat(b[:n], "pf_taken")
}

// findStat returns a counter of a statistics file.
func findStat(b []byte, name string) (uint64, error) {
	malformed := fmt.Errorf("kvm: the kernel's statistics have no counter %s", name)
	var h statsHeader
	if binary.Read(bytes.NewReader(b), binary.NativeEndian, &h) != nil {
		return 0, malformed
	}
	size := uint64(binary.Size(statsDesc{})) + uint64(h.NameSize)
	for i := range uint64(h.Count) {
		at := uint64(h.DescOffset) + i*size
		if at+size > uint64(len(b)) {
			return 0, malformed
		}
		var d statsDesc
		binary.Read(bytes.NewReader(b[at:]), binary.NativeEndian, &d)
		own, _, _ := bytes.Cut(b[at+uint64(binary.Size(d)):at+size], []byte{0})
		if value := uint64(h.DataOffset) + uint64(d.Offset); string(own) == name && value+8 <= uint64(len(b)) {
			return binary.NativeEndian.Uint64(b[value:]), nil
		}
	}
	return 0, malformed
}
