package kvm

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/hypervisor"
)

// Compile-time proof that the shared structures have the kernel's sizes.
var (
	_ [144]byte = [unsafe.Sizeof(hypervisor.Registers{})]byte{}
	_ [312]byte = [unsafe.Sizeof(hypervisor.SystemRegisters{})]byte{}
	_ [40]byte  = [unsafe.Sizeof(hypervisor.CPUIDEntry{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(hypervisor.MSR{})]byte{}
	_ [520]byte = [unsafe.Sizeof(irqChip{})]byte{}
	_ [48]byte  = [unsafe.Sizeof(clockData{})]byte{}
	_ [392]byte = [unsafe.Sizeof(xcrList{})]byte{}
)

// irqChip has the layout of struct kvm_irqchip.
type irqChip struct {
	id, _ uint32
	state [512]byte
}

// clockData has the layout of struct kvm_clock_data.
type clockData struct {
	clock    uint64
	flags, _ uint32
	realtime uint64
	hostTSC  uint64
	_        [4]uint32
}

// xcrList has the layout of struct kvm_xcrs.
type xcrList struct {
	n, flags uint32
	xcrs     [16]struct {
		xcr, _ uint32
		value  uint64
	}
	_ [16]uint64
}

// The chips of KVM_GET_IRQCHIP (KVM API doc §4.26) and the bytes each one's state has.
const (
	chipPICMaster, chipPICSlave, chipIOAPIC = 0, 1, 2
	picStateSize, ioapicStateSize           = 16, 216
	pitStateSize, lapicSize                 = 112, 1024
	vcpuEventsSize, debugRegsSize           = 64, 128
)

// Save returns the interrupt controllers, the timer chip and the clock, which is read together with the first vCPU's TSC.
func (vm *VM) Save() (*hypervisor.VMState, error) {
	st := &hypervisor.VMState{PIT: make([]byte, pitStateSize)}
	for _, c := range []struct {
		id   uint32
		out  *[]byte
		size int
	}{{chipPICMaster, &st.PIC[0], picStateSize}, {chipPICSlave, &st.PIC[1], picStateSize}, {chipIOAPIC, &st.IOAPIC, ioapicStateSize}} {
		chip := irqChip{id: c.id}
		if err := ioctlPtr(vm.fd, kvmGetIRQChip, &chip, "KVM_GET_IRQCHIP"); err != nil {
			return nil, err
		}
		*c.out = append([]byte(nil), chip.state[:c.size]...)
	}
	if err := ioctlPtr(vm.fd, kvmGetPIT2, &st.PIT[0], "KVM_GET_PIT2"); err != nil {
		return nil, err
	}
	var err error
	st.TSC, err = vm.atTSC(func(uint64) error {
		var clock clockData
		err := ioctlPtr(vm.fd, kvmGetClock, &clock, "KVM_GET_CLOCK")
		st.ClockNs = clock.clock
		return err
	})
	return st, err
}

// Restore loads what Save returned. The vCPUs come before: what the IOAPIC still has to deliver goes to their LAPICs, and the clock goes by
// their TSC.
func (vm *VM) Restore(st *hypervisor.VMState) error {
	if len(st.PIC[0]) != picStateSize || len(st.PIC[1]) != picStateSize || len(st.IOAPIC) != ioapicStateSize || len(st.PIT) != pitStateSize {
		return fmt.Errorf("kvm: restore VM: the saved state has the wrong size")
	}
	for id, state := range [][]byte{chipPICMaster: st.PIC[0], chipPICSlave: st.PIC[1], chipIOAPIC: st.IOAPIC} {
		chip := irqChip{id: uint32(id)}
		copy(chip.state[:], state)
		if err := ioctlPtr(vm.fd, kvmSetIRQChip, &chip, "KVM_SET_IRQCHIP"); err != nil {
			return err
		}
	}
	if err := ioctlPtr(vm.fd, kvmSetPIT2, &st.PIT[0], "KVM_SET_PIT2"); err != nil {
		return err
	}
	_, err := vm.atTSC(func(tsc uint64) error {
		return ioctlPtr(vm.fd, kvmSetClock, &clockData{clock: vm.clockAt(tsc, st)}, "KVM_SET_CLOCK")
	})
	return err
}

// atTSC calls f, which reads or sets kvm-clock, with the first vCPU's TSC, and returns the TSC halfway through f. Both are 0 if it cannot be
// read: the clock is only less exact then. As guests watch one against the other, f is called anew if it took long: this thread may have
// stood still between the two.
func (vm *VM) atTSC(f func(tsc uint64) error) (uint64, error) {
	for try := 1; ; try++ {
		before, unread := vm.tsc()
		if err := f(before); err != nil || unread != nil {
			return 0, err
		}
		after, unread := vm.tsc()
		if unread != nil {
			return 0, nil
		}
		took := after - before
		if micros := took * 1000 / max(1, uint64(vm.vcpus[0].frequency())); micros < 100 || try == 8 { // 3 µs are usual
			return before + took/2, nil
		}
	}
}

func (vm *VM) tsc() (uint64, error) {
	if len(vm.vcpus) == 0 {
		return 0, os.ErrNotExist
	}
	return vm.vcpus[0].readMSR(msrTSC)
}

// clockAt returns what kvm-clock has to show when the first vCPU's TSC is at now: it must have come as far since the save as the TSC, which goes
// on from the moment its register was restored.
func (vm *VM) clockAt(now uint64, st *hypervisor.VMState) uint64 {
	if now == 0 || st.TSC == 0 {
		return st.ClockNs
	}
	khz := int64(vm.vcpus[0].frequency())
	ticks := int64(now - st.TSC) // negative if the TSC was saved longer before the clock than it was restored before it
	if khz == 0 || ticks/khz < -maxClockGap || ticks/khz > maxClockGap {
		return st.ClockNs
	}
	return uint64(max(0, int64(st.ClockNs)+ticks*1_000_000/khz))
}

// maxClockGap is how many milliseconds at most a save or restore takes; a TSC further away is not the one that was saved.
const maxClockGap = 1000

// BootState returns the vCPU as KVM creates it, with the CPUID that the guest is to see.
func (v *VCPU) BootState() (*hypervisor.VCPUState, error) {
	st := &hypervisor.VCPUState{CPUID: v.cpuid}
	if err := v.getRegisters(st); err != nil {
		return nil, err
	}
	return st, nil
}

// frequency returns the vCPU's TSC frequency, 0 where KVM does not know it. Each vCPU begins with the host's, so that the first one is asked for all.
func (v *VCPU) frequency() uint32 {
	if v.tscKHz != 0 {
		return v.tscKHz
	}
	if v.tscKHz = v.sys.tscKHz.Load(); v.tscKHz == 0 {
		if khz, err := ioctl(v.fd, kvmGetTSCKHz, 0, "KVM_GET_TSC_KHZ"); err == nil {
			v.tscKHz = uint32(khz)
			v.sys.tscKHz.Store(v.tscKHz)
		}
	}
	return v.tscKHz
}

func (v *VCPU) getRegisters(st *hypervisor.VCPUState) error {
	if err := ioctlPtr(v.fd, kvmGetRegs, &st.Regs, "KVM_GET_REGS"); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, kvmGetSregs, &st.Sregs, "KVM_GET_SREGS"); err != nil {
		return err
	}
	return ioctlPtr(v.fd, kvmGetMPState, &st.MPState, "KVM_GET_MP_STATE")
}

// Save returns everything KVM keeps for the vCPU. The MP state comes first: reading it makes KVM process a pending INIT or SIPI,
// which changes what the later calls return.
func (v *VCPU) Save() (*hypervisor.VCPUState, error) {
	st := &hypervisor.VCPUState{
		CPUID:     v.cpuid,
		XSave:     make([]byte, v.sys.xsaveSize),
		LAPIC:     make([]byte, lapicSize),
		Events:    make([]byte, vcpuEventsSize),
		DebugRegs: make([]byte, debugRegsSize),
	}
	if err := ioctlPtr(v.fd, kvmGetMPState, &st.MPState, "KVM_GET_MP_STATE"); err != nil {
		return nil, err
	}
	if err := v.getRegisters(st); err != nil {
		return nil, err
	}
	get, name := uintptr(kvmGetXSave), "KVM_GET_XSAVE"
	if v.sys.xsaveSize > 4096 {
		get, name = kvmGetXSave2, "KVM_GET_XSAVE2"
	}
	var xcrs xcrList
	for _, step := range []func() error{
		func() error { return ioctlPtr(v.fd, get, &st.XSave[0], name) },
		func() error {
			if !v.sys.hasXCRs {
				return nil
			}
			return ioctlPtr(v.fd, kvmGetXCRs, &xcrs, "KVM_GET_XCRS")
		},
		func() error { return ioctlPtr(v.fd, kvmGetLAPIC, &st.LAPIC[0], "KVM_GET_LAPIC") },
		func() error { return ioctlPtr(v.fd, kvmGetVCPUEvents, &st.Events[0], "KVM_GET_VCPU_EVENTS") },
		func() error { return ioctlPtr(v.fd, kvmGetDebugRegs, &st.DebugRegs[0], "KVM_GET_DEBUGREGS") },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	for _, x := range xcrs.xcrs[:min(int(xcrs.n), len(xcrs.xcrs))] {
		st.XCRs = append(st.XCRs, hypervisor.XCR{Index: x.xcr, Value: x.value})
	}
	st.TSCKHz = v.frequency()
	var err error
	st.MSRs, err = v.readMSRs()
	keepDeadline(st.MSRs)
	return st, err
}

// keepDeadline makes a timer fire at once in the restored vCPU if its deadline reads as 0: KVM clears it when the timer has expired, perhaps
// before the interrupt has reached the LAPIC's registers. An interrupt too many does no harm, a lost one stops the guest's clock.
func keepDeadline(msrs []hypervisor.MSR) {
	find := func(index uint32) *hypervisor.MSR {
		if i := slices.IndexFunc(msrs, func(m hypervisor.MSR) bool { return m.Index == index }); i >= 0 {
			return &msrs[i]
		}
		return nil
	}
	if tsc, deadline := find(msrTSC), find(msrTSCDeadline); tsc != nil && deadline != nil && deadline.Value == 0 {
		deadline.Value = tsc.Value
	}
}

// Restore loads a state in the order KVM needs: CPUID before everything (it decides which registers exist), the TSC before its
// deadline, the LAPIC before its timer's deadline MSR, events and MP state last.
func (v *VCPU) Restore(st *hypervisor.VCPUState) error {
	if !slices.Equal(v.cpuid, st.CPUID) {
		if err := v.setCPUID(st.CPUID); err != nil {
			return err
		}
		v.cpuid = st.CPUID
	}
	if st.TSCKHz != 0 {
		if khz := v.frequency(); khz != 0 && khz != st.TSCKHz {
			if _, err := ioctl(v.fd, kvmSetTSCKHz, uintptr(st.TSCKHz), "KVM_SET_TSC_KHZ"); err != nil {
				return err
			}
			v.tscKHz = st.TSCKHz
		}
	}
	if err := ioctlPtr(v.fd, kvmSetSregs, &st.Sregs, "KVM_SET_SREGS"); err != nil {
		return err
	}
	if err := ioctlPtr(v.fd, kvmSetRegs, &st.Regs, "KVM_SET_REGS"); err != nil {
		return err
	}
	if len(st.XCRs) > 0 {
		xcrs := xcrList{n: uint32(min(len(st.XCRs), 16))}
		for i := range xcrs.xcrs[:xcrs.n] {
			xcrs.xcrs[i].xcr, xcrs.xcrs[i].value = st.XCRs[i].Index, st.XCRs[i].Value
		}
		if err := ioctlPtr(v.fd, kvmSetXCRs, &xcrs, "KVM_SET_XCRS"); err != nil {
			return err
		}
	}
	for _, part := range []struct {
		req  uintptr
		data []byte
		size int
		name string
	}{
		{kvmSetXSave, st.XSave, max(v.sys.xsaveSize, 4096), "KVM_SET_XSAVE"},
		{kvmSetLAPIC, st.LAPIC, lapicSize, "KVM_SET_LAPIC"},
		{kvmSetDebugRegs, st.DebugRegs, debugRegsSize, "KVM_SET_DEBUGREGS"},
	} {
		if part.data == nil {
			continue // a boot state leaves KVM's reset value
		}
		if len(part.data) != part.size {
			return fmt.Errorf("kvm: %s: the saved state has %d bytes, this host needs %d", part.name, len(part.data), part.size)
		}
		if err := ioctlPtr(v.fd, part.req, &part.data[0], part.name); err != nil {
			return err
		}
	}
	if err := v.writeMSRs(st.MSRs); err != nil {
		return err
	}
	if st.Events != nil {
		if len(st.Events) != vcpuEventsSize {
			return fmt.Errorf("kvm: KVM_SET_VCPU_EVENTS: the saved state has %d bytes, want %d", len(st.Events), vcpuEventsSize)
		}
		if err := ioctlPtr(v.fd, kvmSetVCPUEvents, &st.Events[0], "KVM_SET_VCPU_EVENTS"); err != nil {
			return err
		}
	}
	return ioctlPtr(v.fd, kvmSetMPState, &st.MPState, "KVM_SET_MP_STATE")
}

const (
	msrTSC         = 0x10
	msrTSCDeadline = 0x6e0
)

// readMSRs reads all that the kernel lists. KVM_GET_MSRS stops at the first one it refuses; that one is left out and the rest is
// asked again, as the list may name MSRs that this CPU model does not have.
func (v *VCPU) readMSRs() ([]hypervisor.MSR, error) {
	var out []hypervisor.MSR
	list := new(msrList)
	for todo := v.sys.msrs; len(todo) > 0; {
		n := min(len(todo), maxMSRs)
		list.n = uint32(n)
		for i := range n {
			list.entries[i] = hypervisor.MSR{Index: todo[i]}
		}
		got, err := v.msrs(kvmGetMSRs, list, "KVM_GET_MSRS")
		if err != nil {
			return nil, err
		}
		out = append(out, list.entries[:got]...)
		if got < n {
			got++
		}
		todo = todo[got:]
	}
	return out, nil
}

// writeMSRs sets the MSRs, the TSC first and its deadline last: a deadline set against the wrong TSC fires at once or never.
func (v *VCPU) writeMSRs(msrs []hypervisor.MSR) error {
	if len(msrs) == 0 {
		return nil
	}
	if len(msrs) > maxMSRs {
		return fmt.Errorf("kvm: KVM_SET_MSRS: the saved state has %d MSRs, at most %d", len(msrs), maxMSRs)
	}
	ordered := make([]hypervisor.MSR, 0, len(msrs))
	var last []hypervisor.MSR
	for _, m := range msrs {
		switch m.Index {
		case msrTSC:
			ordered = append([]hypervisor.MSR{m}, ordered...)
		case msrTSCDeadline:
			last = append(last, m)
		default:
			ordered = append(ordered, m)
		}
	}
	ordered = append(ordered, last...)
	list := new(msrList)
	for todo := ordered; len(todo) > 0; {
		list.n = uint32(copy(list.entries[:], todo))
		set, err := v.msrs(kvmSetMSRs, list, "KVM_SET_MSRS")
		if err != nil {
			return err
		}
		if set < len(todo) {
			// Read-only or unknown here: acceptable only if it holds the wanted value already.
			if got, err := v.readMSR(todo[set].Index); err != nil || got != todo[set].Value {
				return fmt.Errorf("kvm: KVM_SET_MSRS: this host refuses MSR %#x = %#x", todo[set].Index, todo[set].Value)
			}
			set++
		}
		todo = todo[set:]
	}
	return nil
}

func (v *VCPU) readMSR(index uint32) (uint64, error) {
	one := struct { // as msrList, whose length would cost more than the call
		n, _  uint32
		entry hypervisor.MSR
	}{n: 1, entry: hypervisor.MSR{Index: index}}
	if n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), kvmGetMSRs, uintptr(unsafe.Pointer(&one))); errno != 0 || n != 1 {
		return 0, fmt.Errorf("kvm: KVM_GET_MSRS: MSR %#x: %w", index, os.ErrInvalid)
	}
	return one.entry.Value, nil
}

func (v *VCPU) msrs(req uintptr, list *msrList, name string) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), req, uintptr(unsafe.Pointer(list)))
	if errno != 0 {
		return 0, fmt.Errorf("kvm: %s: %w", name, errno)
	}
	return int(n), nil
}
