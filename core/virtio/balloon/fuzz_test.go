package balloon

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// FuzzQueues offers chains of arbitrary descriptors in every queue of a device that really releases memory, its own rings included.
func FuzzQueues(f *testing.F) {
	desc := func(addr uint64, n uint32, flags, next uint16) []byte {
		b := make([]byte, 16)
		virtiotest.PutDesc(b, 0, virtiotest.Desc{Addr: addr, Len: n, Flags: flags, Next: next})
		return b
	}
	const buffer = virtiotest.Base + 0x8000
	pfns := pfnBuffer(virtiotest.Base/PageSize, virtiotest.Base/PageSize+1, virtiotest.Base/PageSize+9)
	f.Add(desc(buffer, 12, 0, 0), pfns, uint16(1), uint8(0))
	f.Add(append(desc(buffer, 5, virtiotest.Next, 1), desc(buffer+5, 7, 0, 0)...), pfns, uint16(2), uint8(2))
	f.Add(desc(virtiotest.Base, 1<<16, virtiotest.Write, 0), []byte{}, uint16(1), uint8(0))
	f.Add(desc(virtiotest.Base+1, 0x2fff, virtiotest.Write, 0), []byte{}, uint16(3), uint8(2))
	f.Add(desc(buffer, 20, 0, 0), stat(stat(nil, 4, 1), 5, 2), uint16(1), uint8(0))
	f.Add(desc(buffer, 0x8000, 0, 0), []byte{}, uint16(1), uint8(1))
	f.Fuzz(func(t *testing.T, table, data []byte, idx uint16, without uint8) {
		d := virtiotest.New(t, New(Config{}), 64<<10)
		dev := d.MMIO.Device().(*Device)
		d.Up(d.Offered() &^ (uint64(without) & dev.Features()))
		ram := d.Mem.Regions()[0].Bytes
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		for queue, q := range d.Queues {
			// A release of the rings is undone before the next queue's turn, like by a driver that goes on writing to them.
			copy(ram[0x8000:], data)
			copy(q.Table(), table)
			for i := range uint16(queueSize) {
				q.SetAvail(i, i)
			}
			q.SetAvailIdx(idx)
			q.Kick()
			if queue == statsQueue {
				_, _ = dev.Stats(ctx)
			}
			q.SetAvailIdx(idx + 1)
			q.Kick()
		}
		d.MMIO.Pause()
		if _, err := d.MMIO.Save(); err != nil {
			t.Fatal(err)
		}
		d.MMIO.Resume()
		if dev.Err() != nil {
			t.Fatal(dev.Err())
		}
		d.SetStatus(0)
	})
}

// FuzzInflate cuts arbitrary arrays into descriptors and compares what is released with the pages that the array names.
func FuzzInflate(f *testing.F) {
	const first = virtiotest.Base / PageSize
	f.Add(pfnBuffer(first, first+1, first+2), []byte{3, 4})
	f.Add(pfnBuffer(first+3, first+2, first+2, first+9), []byte{})
	f.Add(pfnBuffer(first+255, first+256), []byte{1, 1, 1})
	f.Add(pfnBuffer(first-1, ^uint32(0)), []byte{8})
	f.Add([]byte{0x20, 0, 0}, []byte{1})
	f.Fuzz(func(t *testing.T, array, cuts []byte) {
		const pages = 256
		array = array[:min(len(array), 64<<10)]
		g := attach(t, virtiotest.NewMemory(t, pages*PageSize))
		g.Up(g.Offered())
		want := map[uint64]bool{}
		valid := len(array)%pfnBytes == 0
		for b := array; len(b) >= pfnBytes; b = b[pfnBytes:] {
			pfn := binary.LittleEndian.Uint32(b)
			valid = valid && pfn >= first && pfn < first+pages
			want[uint64(pfn)*PageSize] = true
		}
		var bufs []virtiotest.Buffer
		rest := array
		for _, c := range cuts[:min(len(cuts), queueSize-1)] {
			n := min(int(c), len(rest))
			bufs = append(bufs, g.Out(rest[:n]))
			rest = rest[n:]
		}
		g.Queues[inflateQueue].Submit(append(bufs, g.Out(rest))...)
		if (g.MMIO.Failure() == nil) != valid {
			t.Fatalf("valid: %v, failure: %v", valid, g.MMIO.Failure())
		}
		if _, ok := g.Queues[inflateQueue].Poll(); !ok {
			t.Fatal("not answered")
		}
		got := 0
		for _, s := range g.released.take() {
			for ; s.n > 0; s.addr, s.n = s.addr+PageSize, s.n-PageSize {
				if !want[s.addr] {
					t.Fatalf("released %#x", s.addr)
				}
				got++
			}
		}
		if valid && got != len(want) {
			t.Fatalf("released %d pages of %d", got, len(want))
		}
	})
}

// FuzzStats parses arbitrary buffers.
func FuzzStats(f *testing.F) {
	f.Add(stat(stat(nil, 4, 1<<20), 5, 1<<30), uint16(3))
	f.Add(stat(stat(nil, 9, ^uint64(0)), 0xffff, 0), uint16(12))
	f.Add([]byte{1, 2, 3}, uint16(0))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		n := min(int(cut), len(b))
		s := parseStats([][]byte{b[:n], b[n:]})
		if s != parseStats([][]byte{b}) {
			t.Fatal("it matters where the buffer is cut")
		}
		for tag := range uint16(10) {
			if *s.field(tag) < 0 {
				t.Fatal("negative")
			}
		}
	})
}

// FuzzState restores arbitrary states of the device and lets it work.
func FuzzState(f *testing.F) {
	for _, s := range []deviceState{{}, {Target: 5, Actual: 3, Changed: true}, {Target: ^uint32(0), Actual: ^uint32(0)}} {
		b, err := msgpack.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g := attach(t, virtiotest.NewMemory(t, 64<<10))
		if g.MMIO.Restore(virtio.State{DeviceID: virtio.IDBalloon, Queues: make([]virtio.QueueState, queues), Device: b}) != nil {
			return
		}
		g.MMIO.Resume()
		g.Up(g.Offered())
		if g.dev.Target() < 0 || g.dev.Target() != int64(g.numPages())*PageSize {
			t.Fatal(g.dev.Target())
		}
		g.dev.SetTarget(PageSize)
		g.MMIO.Pause()
		if _, err := g.MMIO.Save(); err != nil {
			t.Fatal(err)
		}
	})
}
