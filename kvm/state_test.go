package kvm

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/hypervisor"
)

func TestExpiredDeadlineFiresInTheRestoredVCPU(t *testing.T) {
	const other = 0x174
	for name, tt := range map[string]struct{ in, want []hypervisor.MSR }{
		"expired, or never set": {
			[]hypervisor.MSR{{Index: msrTSC, Value: 1000}, {Index: other, Value: 5}, {Index: msrTSCDeadline}},
			[]hypervisor.MSR{{Index: msrTSC, Value: 1000}, {Index: other, Value: 5}, {Index: msrTSCDeadline, Value: 1000}},
		},
		"the other way round": {
			[]hypervisor.MSR{{Index: msrTSCDeadline}, {Index: msrTSC, Value: 1000}},
			[]hypervisor.MSR{{Index: msrTSCDeadline, Value: 1000}, {Index: msrTSC, Value: 1000}},
		},
		"still to come": {
			[]hypervisor.MSR{{Index: msrTSC, Value: 1000}, {Index: msrTSCDeadline, Value: 2000}},
			[]hypervisor.MSR{{Index: msrTSC, Value: 1000}, {Index: msrTSCDeadline, Value: 2000}},
		},
		"a CPU without deadlines": {[]hypervisor.MSR{{Index: msrTSC, Value: 1000}}, []hypervisor.MSR{{Index: msrTSC, Value: 1000}}},
		"a CPU without a TSC":     {[]hypervisor.MSR{{Index: msrTSCDeadline}}, []hypervisor.MSR{{Index: msrTSCDeadline}}},
		"nothing":                 {},
	} {
		t.Run(name, func(t *testing.T) {
			keepDeadline(tt.in)
			require.Equal(t, tt.want, tt.in)
		})
	}
}

// noMSR is an MSR that no CPU has: KVM stops there, so what was written before shows the order.
var noMSR = hypervisor.MSR{Index: 0xdead0000, Value: 1}

// deadlineVCPU returns a vCPU whose local APIC's timer is in TSC-deadline mode. In any other the deadline reads as 0.
func deadlineVCPU(t *testing.T, s *System) *VCPU {
	t.Helper()
	const (
		lvtTimer = 0x320
		mode     = 2 << 17
		vector   = 0xec
	)
	_, vcpu, _ := newRealModeVM(t, s, []byte{0xf4})
	v := vcpu.(*VCPU)
	if (&hypervisor.VCPUState{CPUID: v.cpuid}).Leaf(1, 0).ECX>>24&1 == 0 {
		t.Skip("needs a KVM with TSC deadlines")
	}
	st, err := v.Save()
	require.NoError(t, err)
	copy(st.LAPIC[lvtTimer:], []byte{vector, mode >> 8 & 0xff, mode >> 16})
	copy(st.LAPIC[0xf0:], []byte{0xff, 1}) // the APIC is on
	require.NoError(t, v.Restore(st))
	return v
}

// needsOwnTSC skips the test on a KVM whose guests all have the host's TSC, as some that emulate the hardware do.
func needsOwnTSC(t *testing.T, s *System) {
	t.Helper()
	const far = 1 << 60
	_, vcpu, _ := newRealModeVM(t, s, []byte{0xf4})
	v := vcpu.(*VCPU)
	require.NoError(t, v.writeMSRs([]hypervisor.MSR{{Index: msrTSC, Value: far}}))
	tsc, err := v.readMSR(msrTSC)
	require.NoError(t, err)
	if tsc < far {
		t.Skip("needs a KVM whose guests have a TSC of their own")
	}
}

func TestTSCIsWrittenBeforeItsDeadline(t *testing.T) {
	s := openAny(t)
	needsOwnTSC(t, s)
	v := deadlineVCPU(t, s)
	const hour = 3600e9 // at 1 GHz
	msrs := []hypervisor.MSR{{Index: msrTSCDeadline, Value: 5 * hour}, noMSR, {Index: msrTSC, Value: 4 * hour}}
	given := slices.Clone(msrs)
	require.ErrorContains(t, v.writeMSRs(msrs), "refuses MSR 0xdead0000 = 0x1")
	require.Equal(t, given, msrs, "the saved state stays as it is, as other VMs start from it")
	tsc, err := v.readMSR(msrTSC)
	require.NoError(t, err)
	require.GreaterOrEqual(t, tsc, uint64(4*hour), "the TSC is first")
	deadline, err := v.readMSR(msrTSCDeadline)
	require.NoError(t, err)
	require.NotEqual(t, uint64(5*hour), deadline, "its deadline is last")

	require.NoError(t, v.writeMSRs([]hypervisor.MSR{msrs[0], msrs[2]}))
	deadline, err = v.readMSR(msrTSCDeadline)
	require.NoError(t, err)
	require.Equal(t, uint64(5*hour), deadline)
}

// Linux before 6.7 takes the first TSC that is written to a young VM for an attempt to set its CPUs' alike, if it is less than a second from
// that of a CPU that was just made, and ignores it. The guest's clock would then stand still until its TSC has caught up.
func TestTSCOfAYoungGuestDoesNotGoBack(t *testing.T) {
	s := openAny(t)
	needsOwnTSC(t, s)
	v := deadlineVCPU(t, s)
	khz := uint64(v.frequency())
	if khz == 0 {
		t.Skip("needs a KVM that knows the TSC's frequency")
	}
	st, err := v.Save()
	require.NoError(t, err)
	for _, ms := range []uint64{100, 500, 900, 1100, 60_000} {
		_, fresh, _ := newRealModeVM(t, s, []byte{0xf4})
		saved := *st
		saved.MSRs = slices.Clone(st.MSRs)
		for i := range saved.MSRs {
			if saved.MSRs[i].Index == msrTSC {
				saved.MSRs[i].Value = ms * khz
			}
		}
		require.NoError(t, fresh.Restore(&saved))
		tsc, err := fresh.(*VCPU).readMSR(msrTSC)
		require.NoError(t, err)
		require.GreaterOrEqual(t, tsc, ms*khz, "saved %d ms after its boot", ms)
	}
}

func TestMSRsThatAreRefusedMatterOnlyIfTheyDiffer(t *testing.T) {
	_, vcpu, _ := newRealModeVM(t, openAny(t), []byte{0xf4})
	v := vcpu.(*VCPU)
	require.NoError(t, v.writeMSRs(nil))
	require.ErrorContains(t, v.writeMSRs(make([]hypervisor.MSR, maxMSRs+1)), "at most")
	require.Error(t, v.writeMSRs([]hypervisor.MSR{noMSR}))
	all, err := v.readMSRs()
	require.NoError(t, err)
	require.NoError(t, v.writeMSRs(all), "what was read here is taken here")
}

// cpu returns the host that a test of compatibility runs on: all leaves that are looked at have some features.
func cpu(vendor string) *System {
	s := &System{xsaveSize: 4096}
	s.cpuid = append(s.cpuid, hypervisor.CPUIDEntry{EBX: word(vendor[:4]), EDX: word(vendor[4:8]), ECX: word(vendor[8:])})
	for _, f := range featureLeaves {
		s.cpuid = append(s.cpuid, hypervisor.CPUIDEntry{Function: f.function, Index: f.index, EAX: 0x0f0f0f0f, EBX: 0x0f0f0f0f, ECX: 0x0f0f0f0f, EDX: 0x0f0f0f0f})
	}
	return s
}

func word(s string) uint32 {
	return uint32(s[0]) | uint32(s[1])<<8 | uint32(s[2])<<16 | uint32(s[3])<<24
}

func register(e *hypervisor.CPUIDEntry, i int) *uint32 {
	return [...]*uint32{&e.EAX, &e.EBX, &e.ECX, &e.EDX}[i]
}

// savedOn returns a state of a vCPU that was shown the CPU of s.
func savedOn(s *System) *hypervisor.VCPUState {
	return &hypervisor.VCPUState{CPUID: slices.Clone(s.cpuid), XSave: make([]byte, 4096)}
}

func TestStatesOfOtherCPUsAreRefusedAndItIsSaidWhy(t *testing.T) {
	host := cpu("GenuineIntel")
	require.NoError(t, host.Compatible(savedOn(host)))
	require.NoError(t, host.Compatible(&hypervisor.VCPUState{CPUID: host.cpuid}), "a boot state has no extended registers")
	refused := func(st *hypervisor.VCPUState, says ...string) {
		t.Helper()
		err := host.Compatible(st)
		var incompatible *hypervisor.IncompatibleError
		require.ErrorAs(t, err, &incompatible)
		require.ErrorIs(t, err, hypervisor.ErrIncompatible)
		for _, s := range says {
			require.Contains(t, incompatible.Reason, s)
		}
	}
	refused(savedOn(cpu("AuthenticAMD")), `"AuthenticAMD"`, `"GenuineIntel"`)
	refused(&hypervisor.VCPUState{}, `"GenuineIntel"`)
	larger := savedOn(host)
	larger.XSave = make([]byte, 11008)
	refused(larger, "11008 bytes", "4096")
	wide := cpu("GenuineIntel")
	wide.xsaveSize = 11008
	require.ErrorContains(t, wide.Compatible(savedOn(host)), "4096 bytes, here 11008")
	require.NoError(t, wide.Compatible(larger))

	for l, f := range featureLeaves {
		for r, mask := range f.masks {
			for bit := range 32 {
				counts := mask>>bit&1 != 0
				more := savedOn(host)
				reg := register(&more.CPUID[1+l], r)
				had := *reg>>bit&1 != 0
				*reg |= 1 << bit
				if counts && !had {
					refused(more, [...]string{"EAX", "EBX", "ECX", "EDX"}[r])
				} else {
					require.NoError(t, host.Compatible(more), "leaf %#x.%d register %d bit %d", f.function, f.index, r, bit)
				}
				*reg &^= 1 << bit
				require.NoError(t, host.Compatible(more), "the host may have more")
			}
		}
	}
}

func TestCPUDigestFollowsWhatGuestsMayRelyOn(t *testing.T) {
	want := cpu("GenuineIntel").CPUDigest()
	require.Equal(t, want, cpu("GenuineIntel").CPUDigest())
	seen := map[string]bool{want: true}
	other := func(s *System, what string, args ...any) {
		t.Helper()
		d := s.CPUDigest()
		require.NotContains(t, seen, d, append([]any{what}, args...)...)
		seen[d] = true
	}
	other(cpu("AuthenticAMD"), "vendor")
	large := cpu("GenuineIntel")
	large.xsaveSize = 11008
	other(large, "size of the extended registers")
	for l, f := range featureLeaves {
		for r, mask := range f.masks {
			for bit := range 32 {
				s := cpu("GenuineIntel")
				*register(&s.cpuid[1+l], r) ^= 1 << bit
				if mask>>bit&1 != 0 {
					other(s, "leaf %#x.%d register %d bit %d", f.function, f.index, r, bit)
				} else if f.function != 1 || r != 0 { // which holds the model
					require.Equal(t, want, s.CPUDigest(), "leaf %#x.%d register %d bit %d", f.function, f.index, r, bit)
				}
			}
		}
	}
	place := cpu("GenuineIntel")
	place.cpuid = append(place.cpuid, hypervisor.CPUIDEntry{Function: 0xb, EDX: 3})
	require.Equal(t, want, place.CPUDigest(), "where a vCPU sits is no feature")
}

// The host's own guests see its features less what vCPUs differ in, and states of theirs go on here.
func TestStatesOfThisHostAreTaken(t *testing.T) {
	s := openAny(t)
	for _, vcpus := range []int{1, 2, 8} {
		for id := range vcpus {
			require.NoError(t, s.Compatible(&hypervisor.VCPUState{CPUID: vcpuCPUID(s.cpuid, id, vcpus)}), "vCPU %d of %d", id, vcpus)
		}
	}
	_, v, _ := newRealModeVM(t, s, []byte{0xf4})
	st, err := v.Save()
	require.NoError(t, err)
	require.NoError(t, s.Compatible(st))
	require.Equal(t, s.CPUDigest(), s.CPUDigest())
}
