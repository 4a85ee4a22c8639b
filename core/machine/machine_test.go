package machine

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/kvm"
)

func openKVM(t testing.TB) hypervisor.Hypervisor {
	s, err := kvm.OpenUnchecked()
	if err != nil {
		t.Skipf("needs a /dev/kvm that opens: %v", err)
	}
	return s
}

// kernelELF builds a kernel that is code, loaded and entered at 1 MiB.
func kernelELF(code []byte) []byte {
	const addr = isaHoleEnd
	le := binary.LittleEndian
	note := le.AppendUint32(nil, 4)
	note = le.AppendUint32(note, 4)
	note = le.AppendUint32(note, noteXenPhys32Entry)
	note = le.AppendUint32(append(note, "Xen\x00"...), addr)
	const headers = 64 + 2*56
	var b bytes.Buffer
	hdr := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	}
	binary.Write(&b, le, hdr)
	binary.Write(&b, le, elf.Prog64{Type: uint32(elf.PT_NOTE), Off: headers, Filesz: uint64(len(note)), Memsz: uint64(len(note))})
	binary.Write(&b, le, elf.Prog64{
		Type: uint32(elf.PT_LOAD), Off: headers + uint64(len(note)), Paddr: addr, Filesz: uint64(len(code)), Memsz: uint64(len(code)) + 64,
	})
	b.Write(note)
	b.Write(code)
	return b.Bytes()
}

// syncBuffer is a bytes.Buffer that vCPU threads and the test may use at once, with a way to wait for output.
type syncBuffer struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	grew chan struct{}
}

func newSyncBuffer() *syncBuffer { return &syncBuffer{grew: make(chan struct{}, 1)} }

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.grew <- struct{}{}:
	default:
	}
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

var (
	sayHi     = []byte{0x66, 0xba, 0xf8, 0x03, 0xb0, 'h', 0xee, 0xb0, 'i', 0xee} // mov dx,0x3f8; mov al,'h'; out dx,al; …
	reset     = []byte{0xb0, 0xfe, 0xe6, 0x64}                                   // mov al,0xfe; out 0x64,al
	spin      = []byte{0xeb, 0xfe}                                               // jmp $
	hiForever = append(append([]byte(nil), sayHi...), 0xeb, 0xf4)                // … jmp to the start
)

func newMachine(t testing.TB, out *syncBuffer, vcpus int, devices ...virtio.Device) *Machine {
	m, err := New(Config{Hypervisor: openKVM(t), MemoryMiB: 64, VCPUs: vcpus, Serial: out, Devices: devices})
	require.NoError(t, err)
	t.Cleanup(func() { m.Stop(); <-m.Done() })
	return m
}

func TestBootRunsTheKernelUntilItResets(t *testing.T) {
	out := newSyncBuffer()
	m := newMachine(t, out, 1)
	require.NoError(t, m.Boot(Boot{Kernel: bytes.NewReader(kernelELF(append(append([]byte(nil), sayHi...), reset...)))}))
	<-m.Ended()
	require.Equal(t, Exit{Reason: ExitReset}, m.Exit())
	require.Equal(t, "hi", out.String())
}

func TestTripleFaultIsReported(t *testing.T) {
	if _, err := kvm.Open(); err != nil {
		t.Skipf("needs hardware virtualization, an interpreted guest cannot triple-fault: %v", err)
	}
	m := newMachine(t, newSyncBuffer(), 1)
	breakpoint := []byte{0xcd, 0x03} // the interrupt table is all zeros
	require.NoError(t, m.Boot(Boot{Kernel: bytes.NewReader(kernelELF(breakpoint))}))
	<-m.Ended()
	require.Equal(t, Exit{Reason: ExitTripleFault}, m.Exit())
}

func TestStopEndsASpinningGuest(t *testing.T) {
	m := newMachine(t, newSyncBuffer(), 2, idleDevice{})
	require.NoError(t, m.Boot(Boot{Kernel: bytes.NewReader(kernelELF(spin))}))
	m.Stop()
	<-m.Done()
	require.Equal(t, Exit{Reason: ExitStopped}, m.Exit())
	require.ErrorIs(t, m.Pause(), ErrEnded)
	require.ErrorIs(t, m.Resume(), ErrEnded)
}

func TestPauseStopsAndResumeContinues(t *testing.T) {
	out := newSyncBuffer()
	m := newMachine(t, out, 2)
	require.NoError(t, m.Boot(Boot{Kernel: bytes.NewReader(kernelELF(hiForever))}))
	<-out.grew
	for range 5 {
		require.NoError(t, m.Pause())
		before := len(out.String())
		require.NoError(t, m.Pause(), "pausing twice is allowed")
		require.Equal(t, before, len(out.String()))
		select {
		case <-out.grew:
		default:
		}
		require.NoError(t, m.Resume())
		<-out.grew
	}
}

func TestSavedMachineContinuesInAnother(t *testing.T) {
	out := newSyncBuffer()
	m := newMachine(t, out, 1, idleDevice{})
	require.NoError(t, m.Boot(Boot{Kernel: bytes.NewReader(kernelELF(hiForever))}))
	<-out.grew
	_, err := m.Save()
	require.ErrorContains(t, err, "not paused")
	require.NoError(t, m.Pause())
	st, err := m.Save()
	require.NoError(t, err)

	out2 := newSyncBuffer()
	m2 := newMachine(t, out2, 1, idleDevice{})
	for i, r := range m.Memory().Regions() {
		copy(m2.Memory().Regions()[i].Bytes, r.Bytes)
	}
	require.NoError(t, m2.Restore(st))
	require.NoError(t, m2.Resume())
	for len(out2.String()) < 4 {
		<-out2.grew
	}
	all := out.String() + out2.String()
	require.True(t, strings.HasPrefix(strings.Repeat("hi", len(all)), all), "the restored guest continues where the first stood")
}

func TestHighMemoryIsReachable(t *testing.T) {
	m, err := New(Config{Hypervisor: openKVM(t), MemoryMiB: 5 << 10, VCPUs: 1, Serial: newSyncBuffer()})
	require.NoError(t, err)
	defer func() { m.Stop(); <-m.Done() }()
	regions := m.Memory().Regions()
	require.Len(t, regions, 2)
	require.Equal(t, uint64(lowMemoryEnd), uint64(len(regions[0].Bytes)))
	require.Equal(t, uint64(highMemoryBase), regions[1].Addr)
	require.Equal(t, uint64(5<<30), m.Memory().Size())
}

func TestConfigIsChecked(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no vCPU":       {MemoryMiB: 64, VCPUs: 0},
		"many vCPUs":    {MemoryMiB: 64, VCPUs: MaxVCPUs + 1},
		"little memory": {MemoryMiB: MinMemoryMiB - 1, VCPUs: 1},
		"much memory":   {MemoryMiB: MaxMemoryMiB + 1, VCPUs: 1},
	} {
		_, err := New(cfg)
		require.ErrorContains(t, err, "out of range", name)
	}
}

func TestBadKernelsAreRefused(t *testing.T) {
	good := kernelELF(spin)
	noNote := bytes.Clone(good)
	noNote[64] = byte(elf.PT_NULL)
	huge := bytes.Clone(good)
	binary.LittleEndian.PutUint64(huge[64+56+40:], 1<<40) // Memsz
	low := bytes.Clone(good)
	binary.LittleEndian.PutUint64(low[64+56+24:], 0x1000) // Paddr
	arm := bytes.Clone(good)
	binary.LittleEndian.PutUint16(arm[18:], uint16(elf.EM_AARCH64))
	for name, b := range map[string][]byte{
		"empty": nil, "text": []byte("not a kernel, not at all"), "truncated": good[:len(good)-1],
		"no PVH entry": noNote, "too large": huge, "over the BIOS area": low, "other architecture": arm,
	} {
		m := newMachine(t, newSyncBuffer(), 1)
		require.ErrorIs(t, m.Boot(Boot{Kernel: bytes.NewReader(b)}), ErrKernel, name)
	}
	m := newMachine(t, newSyncBuffer(), 1)
	require.ErrorContains(t, m.Boot(Boot{Kernel: bytes.NewReader(good), Initrd: [][]byte{make([]byte, 64<<20)}}), "does not fit")
	require.ErrorContains(t, m.Boot(Boot{Kernel: bytes.NewReader(good), Cmdline: strings.Repeat("x", maxCmdline)}), "command line")
}

func FuzzLoadKernel(f *testing.F) {
	f.Add(kernelELF(spin))
	f.Add([]byte("\x7fELF"))
	mem := hypervisor.NewMemory(hypervisor.Region{Bytes: make([]byte, 4<<20)})
	f.Fuzz(func(t *testing.T, b []byte) {
		entry, end, err := loadKernel(bytes.NewReader(b), mem)
		if err == nil {
			require.NotZero(t, entry)
			require.LessOrEqual(t, end, mem.Size())
		}
	})
}

func TestMPTableChecksums(t *testing.T) {
	for vcpus := 1; vcpus <= MaxVCPUs; vcpus++ {
		b := mpTable(mpTableAddr, vcpus)
		require.Zero(t, checksum(b[:16]))
		require.Zero(t, checksum(b[16:]))
		require.LessOrEqual(t, len(b), 0xa0000-mpTableAddr)
		require.Equal(t, len(b)-16, int(binary.LittleEndian.Uint16(b[20:])))
	}
}

// pausedDevice counts what the transport tells it.
type pausedDevice struct {
	idleDevice
	resumed chan struct{}
}

func (d pausedDevice) Pause()  {}
func (d pausedDevice) Resume() { d.resumed <- struct{}{} }

// A restored device that is never resumed keeps its guest waiting for ever.
func TestResumeReachesRestoredDevices(t *testing.T) {
	m := newMachine(t, newSyncBuffer(), 1, idleDevice{})
	require.NoError(t, m.Boot(Boot{Kernel: bytes.NewReader(kernelELF(spin))}))
	require.NoError(t, m.Pause())
	st, err := m.Save()
	require.NoError(t, err)
	st.Devices[0].Status = virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK | virtio.StatusDriverOK
	st.Devices[0].DriverFeatures = virtio.FeatureVersion1

	dev := pausedDevice{resumed: make(chan struct{}, 1)}
	m2 := newMachine(t, newSyncBuffer(), 1, dev)
	for range 2 {
		if m2.phase == phaseNew {
			require.NoError(t, m2.Restore(st))
		} else {
			require.NoError(t, m2.Pause())
			require.NoError(t, m2.Rewind(st))
		}
		require.NoError(t, m2.Resume())
		<-dev.resumed
	}
}
