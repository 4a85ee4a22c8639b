package machine

import (
	"fmt"
	"iter"

	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/virtio"
)

// slot is one place on the board: a virtio-mmio register block, its interrupt line and a doorbell for each queue. One that is empty has nothing
// but its address and line, so that it costs nothing.
type slot struct {
	addr      uint64
	gsi       uint32
	transport *virtio.MMIO // nil: empty
	interrupt hypervisor.Interrupt
	doorbells []hypervisor.Doorbell
}

// queueNotify is the offset of the QueueNotify register (virtio 1.2 §4.2.2).
const queueNotify = 0x50

func (m *Machine) newSlot(i int, dev virtio.Device) (s *slot, err error) {
	s = &slot{addr: deviceBase + uint64(i)*deviceStride, gsi: firstGSI + uint32(i)}
	if dev == nil {
		return s, nil
	}
	defer func() {
		if err != nil {
			s.stop()
			err = fmt.Errorf("wire device %d: %w", i, err)
		}
	}()
	if s.interrupt, err = m.vm.NewInterrupt(s.gsi); err != nil {
		return nil, err
	}
	s.transport = virtio.NewMMIO(dev, m.mem, s.interrupt.Raise)
	for q := range dev.QueueSizes() {
		bell, err := m.vm.NewDoorbell(s.addr+queueNotify, uint32(q))
		if err != nil {
			return nil, err
		}
		s.doorbells = append(s.doorbells, bell)
	}
	return s, nil
}

// listen answers the doorbells, on a goroutine for each. What was rung before is heard then.
func (m *Machine) listen() {
	for _, s := range m.slots {
		for q, bell := range s.doorbells {
			m.bells.Go(func() {
				for bell.Wait() {
					s.transport.Notify(q)
				}
			})
		}
	}
}

// stop closes the doorbells, which ends their goroutines, and the interrupt line.
func (s *slot) stop() {
	for _, bell := range s.doorbells {
		bell.Close()
	}
	if s.interrupt != nil {
		s.interrupt.Close()
	}
}

// occupied returns the slots that have a device.
func (m *Machine) occupied() iter.Seq[*slot] {
	return func(yield func(*slot) bool) {
		for _, s := range m.slots {
			if s.transport != nil && !yield(s) {
				return
			}
		}
	}
}

// read answers the guest's read of a register.
func (s *slot) read(off uint64, p []byte) {
	if s.transport == nil {
		virtio.ReadPlaceholder(off, p)
		return
	}
	s.transport.Read(off, p)
}

// write takes the guest's write to a register.
func (s *slot) write(off uint64, p []byte) {
	if s.transport != nil {
		s.transport.Write(off, p)
	}
}

// slotAt returns the slot that decodes a guest physical address, and the offset in it.
func (m *Machine) slotAt(addr uint64) (*slot, uint64) {
	i := (addr - deviceBase) / deviceStride
	if addr < deviceBase || i >= uint64(len(m.slots)) {
		return nil, 0
	}
	return m.slots[i], addr % deviceStride
}
