package kvm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/hypervisor"
)

func TestPageFaultsAreCounted(t *testing.T) {
	_, v, _ := newRealModeVM(t, openAny(t), []byte{0xc6, 0x06, 0x00, 0x30, 0x07, 0xe6, 0x10}) // mov byte [0x3000],7; out 0x10,al
	before, err := v.PageFaults()
	require.NoError(t, err)
	require.Equal(t, hypervisor.ExitPort, run(t, v).Reason)
	after, err := v.PageFaults()
	require.NoError(t, err)
	require.GreaterOrEqual(t, after, before) // a host that emulates all instructions counts none; tests with guests look closer
}

func FuzzStatistics(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 16, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 24, 0, 0, 0, 24, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) { findStat(b, "pf_taken") })
}
