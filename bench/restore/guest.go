package main

import (
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/balloon"
	"github.com/supermachine/supermachine/core/virtio/block"
	"github.com/supermachine/supermachine/core/virtio/console"
	"github.com/supermachine/supermachine/core/virtio/rng"
	"github.com/supermachine/supermachine/core/virtio/vsock"
)

// Where things are in the guest's memory. All of it holds something, as a snapshot's does, but for the rings, which are empty.
const (
	memoryMiB  = 256
	entry      = 0x100000
	ringsAddr  = 0x200000
	ringStride = 0x10000
	ringsEnd   = 0x300000
)

// code writes 'r' to the serial port, which is the exit that a restore is measured to, dirties 64 pages, writes 'd' and halts.
var code = []byte{
	0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
	0xb0, 'r', 0xee, // mov al, 'r'; out dx, al
	0xbf, 0, 0, 0, 0x02, // mov edi, 32 MiB
	0xb9, 64, 0, 0, 0, // mov ecx, 64
	0xfe, 0x07, // inc byte [edi]
	0x81, 0xc7, 0, 0x10, 0, 0, // add edi, 4096
	0x49, 0x75, 0xf5, // dec ecx; jnz
	0xb0, 'd', 0xee, // mov al, 'd'; out dx, al
	0xf4, 0xeb, 0xfd, // hlt; jmp hlt
}

// serial notes when the guest wrote.
type serial struct {
	first, dirtied chan time.Time
}

func newSerial() *serial { return &serial{make(chan time.Time, 1), make(chan time.Time, 1)} }

func (s *serial) Write(p []byte) (int, error) {
	t := time.Now()
	switch p[0] {
	case 'r':
		s.first <- t
	case 'd':
		s.dirtied <- t
	}
	return len(p), nil
}

// writeMemory makes the guest's memory file.
func writeMemory(path string) error {
	b := make([]byte, memoryMiB<<20)
	for i := range b {
		b[i] = byte(i>>12) | 1
	}
	clear(b[ringsAddr:ringsEnd])
	copy(b[entry:], code)
	return os.WriteFile(path, b, 0o600)
}

// newDevices makes the devices of core.VM, as real as they are without an image.
func newDevices(dir string) ([]virtio.Device, error) {
	var devices []virtio.Device
	for _, name := range []string{"root", "scratch"} {
		raw, err := block.OpenRaw(filepath.Join(dir, name), true)
		if err != nil {
			return nil, err
		}
		disk, err := block.New(block.Config{Backend: raw, Serial: name})
		if err != nil {
			return nil, err
		}
		devices = append(devices, disk)
	}
	return append(devices, vsock.New(vsock.Config{GuestCID: 3}), rng.New(), console.New(console.Config{}), balloon.New(balloon.Config{})), nil
}

// deviceStates returns the states of devices that a driver uses, with nothing under way.
func deviceStates(devices []virtio.Device) []virtio.State {
	var states []virtio.State
	ring := uint64(ringsAddr)
	for _, d := range devices {
		st := virtio.State{
			DeviceID: d.ID(), DriverFeatures: virtio.FeatureVersion1,
			Status: virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK | virtio.StatusDriverOK,
		}
		for _, size := range d.QueueSizes() {
			st.Queues = append(st.Queues, virtio.QueueState{
				QueueConfig: virtio.QueueConfig{Size: size, Ready: true, Desc: ring, Driver: ring + ringStride/2, Device: ring + ringStride/4*3},
			})
			ring += ringStride
		}
		states = append(states, st)
	}
	return states
}

// capture runs the guest to its first exit and returns the machine's state, to go on at the entry point.
func capture(hv hypervisor.Hypervisor, mem *hypervisor.Memory, devices []virtio.Device) (*machine.State, error) {
	vm, err := hv.NewVM(hypervisor.VMConfig{Memory: mem, VCPUs: 1})
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	v := vm.VCPU(0)
	st, err := v.BootState()
	if err != nil {
		return nil, err
	}
	flat := hypervisor.Segment{Limit: 0xffffffff, Selector: 8, Type: 0xb, Present: 1, DB: 1, S: 1, G: 1}
	s := &st.Sregs
	s.CS = flat
	flat.Selector, flat.Type = 16, 3
	s.DS, s.ES, s.SS, s.FS, s.GS = flat, flat, flat, flat, flat
	s.TR = hypervisor.Segment{Limit: 0x67, Type: 0xb, Present: 1}
	s.CR0 = 1 // PE
	st.Regs = hypervisor.Registers{RIP: entry, RFLAGS: 2}
	if err := v.Restore(st); err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, err := v.Run(); err != nil {
		return nil, err
	}
	v.Kick()
	if _, err := v.Run(); err != nil { // completes the access
		return nil, err
	}
	out := &machine.State{Devices: deviceStates(devices)}
	if out.VM, err = vm.Save(); err != nil {
		return nil, err
	}
	if st, err = v.Save(); err != nil {
		return nil, err
	}
	st.Regs.RIP = entry
	out.VCPUs = []*hypervisor.VCPUState{st}
	return out, nil
}
