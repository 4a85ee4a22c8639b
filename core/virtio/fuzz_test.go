package virtio_test

import (
	"encoding/binary"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// FuzzQueue lets the device work on rings of arbitrary bytes: descriptors, indirect tables and indexes alike.
func FuzzQueue(f *testing.F) {
	desc := func(addr uint64, n uint32, flags, next uint16) []byte {
		b := make([]byte, 16)
		virtiotest.PutDesc(b, 0, virtiotest.Desc{Addr: addr, Len: n, Flags: flags, Next: next})
		return b
	}
	const buffer = virtiotest.Base + 0x8000
	f.Add([]byte{}, []byte{0, 0, 1, 0}, true)
	f.Add(append(desc(buffer, 16, virtiotest.Next, 1), desc(buffer+64, 16, virtiotest.Write, 0)...), []byte{0, 0, 1, 0}, true)
	f.Add(desc(buffer, 16, virtiotest.Next, 0), []byte{0, 0, 1, 0}, false)
	f.Add(append(desc(virtiotest.Base+16, 32, virtiotest.Indirect, 0), desc(buffer, 8, virtiotest.Write, 0)...), []byte{0, 0, 2, 0}, true)
	f.Add(desc(virtiotest.Base, 16, virtiotest.Indirect, 0), []byte{0, 0, 0xff, 0xff}, true)
	f.Add(desc(^uint64(0), ^uint32(0), virtiotest.Write, 0), []byte{0, 0, 1, 0}, true)
	f.Fuzz(func(t *testing.T, table, avail []byte, eventIdx bool) {
		d := virtiotest.New(t, &echo{}, 64<<10)
		features := d.Offered()
		if !eventIdx {
			features &^= virtio.FeatureEventIdx
		}
		if !d.Accept(features) {
			t.Fatal("features refused")
		}
		ram := d.Mem.Regions()[0].Bytes
		copy(ram[:0x1000], table)
		copy(ram[0x1000:0x2000], avail)
		d.Write32(virtiotest.RegQueueNum, 16)
		d.Write64(virtiotest.RegQueueDescLow, virtiotest.Base)
		d.Write64(virtiotest.RegQueueDriverLow, virtiotest.Base+0x1000)
		d.Write64(virtiotest.RegQueueDeviceLow, virtiotest.Base+0x2000)
		d.Write32(virtiotest.RegQueueReady, 1)
		d.SetStatus(d.Status() | driverOK)
		for range 4 {
			d.Write32(virtiotest.RegQueueNotify, 0)
			idx := binary.LittleEndian.Uint16(ram[0x1002:]) + 1
			binary.LittleEndian.PutUint16(ram[0x1002:], idx)
		}
		d.SetStatus(0)
	})
}

// FuzzRegisters writes and reads arbitrary registers in arbitrary order, on top of memory that holds a working queue.
func FuzzRegisters(f *testing.F) {
	op := func(off uint16, v uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(nil, off), v)
	}
	up := func(ops ...[]byte) (all []byte) {
		for _, o := range ops {
			all = append(all, o...)
		}
		return all
	}
	start := up(op(0x70, 1), op(0x70, 3), op(0x24, 1), op(0x20, 1), op(0x70, 11), op(0x38, 8), op(0x80, virtiotest.Base),
		op(0x90, virtiotest.Base+0x1000), op(0xa0, virtiotest.Base+0x2000), op(0x44, 1), op(0x70, 15))
	f.Add(start)
	f.Add(up(start, op(0x50, 0), op(0x64, 1), op(0x44, 0), op(0x70, 0), start))
	f.Add(up(start, op(0x44, 0), op(0x38, 4), op(0x44, 1), op(0x50, 0)))
	f.Add(up(op(0x70, 4), op(0x70, 128), op(0x100, 7), op(0x104, 9)))
	f.Add(up(op(0x30, 1), op(0x38, 0xffff), op(0x84, 0xffffffff), op(0x44, 1)))
	f.Fuzz(func(t *testing.T, ops []byte) {
		d := virtiotest.New(t, &echo{}, 64<<10)
		for len(ops) >= 6 && len(ops) < 6*1000 {
			off, v := uint64(binary.LittleEndian.Uint16(ops)), ops[2:6]
			switch off >> 12 {
			case 1:
				d.MMIO.Pause()
				if _, err := d.MMIO.Save(); err != nil {
					t.Fatal(err)
				}
			case 2:
				d.MMIO.Resume()
			default:
				d.MMIO.Write(off&0xfff, v[:len(v)-int(off>>13&3)])
				d.Read32(off & 0xfff)
			}
			ops = ops[6:]
		}
	})
}

// FuzzRestore restores arbitrary states over arbitrary rings and lets the device work.
func FuzzRestore(f *testing.F) {
	good := virtio.State{
		DeviceID: 0xfe, Status: 15, DriverFeatures: virtio.FeatureVersion1 | virtio.FeatureEventIdx,
		Queues: []virtio.QueueState{
			{QueueConfig: virtio.QueueConfig{
				Size: 16, Ready: true, Desc: virtiotest.Base, Driver: virtiotest.Base + 0x1000, Device: virtiotest.Base + 0x2000,
			}, LastAvail: 3, NextUsed: 3},
			{},
		},
		Device: []byte("state"),
	}
	for _, change := range []func(*virtio.State){
		func(*virtio.State) {},
		func(s *virtio.State) { s.Queues[0].LastAvail = 60000 },
		func(s *virtio.State) { s.Status, s.Failure = 15|64, "broken" },
		func(s *virtio.State) { s.Queues[0].Driver = ^uint64(0) },
		func(s *virtio.State) { s.Queues = nil },
	} {
		s := good
		s.Queues = append([]virtio.QueueState(nil), good.Queues...)
		change(&s)
		b, err := msgpack.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte{1, 2, 3})
	}
	f.Fuzz(func(t *testing.T, state, ram []byte) {
		var s virtio.State
		if err := msgpack.Unmarshal(state, &s); err != nil {
			return
		}
		d := virtiotest.New(t, &echo{}, 64<<10)
		copy(d.Mem.Regions()[0].Bytes, ram)
		if d.MMIO.Restore(s) != nil {
			return
		}
		d.MMIO.Resume()
		for i := range uint32(2) {
			d.Write32(virtiotest.RegQueueNotify, i)
		}
		d.MMIO.Pause()
		if _, err := d.MMIO.Save(); err != nil {
			t.Fatal(err)
		}
	})
}
