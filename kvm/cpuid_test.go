package kvm

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/hypervisor"
)

func TestEmulatedHostIsKnownByItsBrand(t *testing.T) {
	for brand, want := range map[string]bool{
		"QEMU TCG CPU version 2.5+":      true,
		"QEMU Virtual CPU version 2.5+":  false, // KVM's own
		"AMD EPYC 7B13":                  false,
		"Intel(R) Xeon(R) CPU @ 2.20GHz": false,
	} {
		text := make([]byte, 48)
		copy(text, brand)
		var entries []hypervisor.CPUIDEntry
		for i := range 3 {
			reg := func(n int) uint32 { return binary.LittleEndian.Uint32(text[16*i+4*n:]) }
			entries = append(entries, hypervisor.CPUIDEntry{Function: 0x80000002 + uint32(i), EAX: reg(0), EBX: reg(1), ECX: reg(2), EDX: reg(3)})
		}
		require.Equal(t, want, hostIsTCG(entries), brand)
	}
	require.False(t, hostIsTCG(nil))
}
