package block

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// inMemory is a disk that needs no file.
type inMemory struct {
	data     []byte
	readOnly bool
}

func (m *inMemory) Size() int64                            { return int64(len(m.data)) }
func (m *inMemory) ReadOnly() bool                         { return m.readOnly }
func (m *inMemory) Flush() error                           { return nil }
func (m *inMemory) Discard(off, n int64) error             { clear(m.data[off : off+n]); return nil }
func (m *inMemory) Close() error                           { return nil }
func (m *inMemory) ReadV(v *Vec, off, n int64) error       { v.copyIn(m.data[off : off+n]); return nil }
func (m *inMemory) WriteV(v *Vec, off, n int64) error      { v.copyOut(m.data[off : off+n]); return nil }
func (m *inMemory) WriteZeroes(off, n int64, _ bool) error { return m.Discard(off, n) }

// FuzzRequest sends requests of arbitrary content cut into descriptors at arbitrary places.
func FuzzRequest(f *testing.F) {
	f.Add(header(typeIn, 1), []byte{16, 0x80 | 64, 0x80 | 64, 0x80 | 1}, false)
	f.Add(append(header(typeOut, 2), make([]byte, 512)...), []byte{3, 13, 127, 127, 127, 127, 4, 0x80 | 1}, false)
	f.Add(header(typeGetID, 0), []byte{16, 0x80 | 20, 0x80 | 1}, true)
	f.Add(header(typeFlush, 0), []byte{16, 0x80 | 1}, false)
	f.Add(append(header(typeDiscard, 0), ranges([3]uint64{1, 9, 0})...), []byte{32, 0x80 | 1}, false)
	f.Add(append(header(typeWriteZeroes, 0), ranges([3]uint64{1, 9, 1}, [3]uint64{0, 1, 0})...), []byte{16, 32, 0x80 | 1}, false)
	f.Add(header(typeIn, ^uint64(0)), []byte{16, 0x80 | 127, 0x80 | 1}, true)
	f.Fuzz(func(t *testing.T, out, cuts []byte, readOnly bool) {
		content := pattern(16<<10, 1)
		disk := &inMemory{data: append([]byte(nil), content...), readOnly: readOnly}
		g := boot(t, disk, 0)
		var bufs []virtiotest.Buffer
		for _, c := range cuts[:min(len(cuts), 64)] {
			if n := int(c & 0x7f); c&0x80 != 0 {
				bufs = append(bufs, g.In(n*8))
			} else {
				bufs = append(bufs, g.Out(append([]byte(nil), out[:min(n, len(out))]...)))
				out = out[min(n, len(out)):]
			}
		}
		if len(bufs) == 0 {
			return
		}
		g.q.Submit(bufs...)
		if g.MMIO.Failure() == nil {
			if _, ok := g.q.Poll(); !ok {
				t.Fatal("neither answered nor refused")
			}
		}
		g.SetStatus(0)
		if readOnly && !bytes.Equal(content, disk.data) {
			t.Fatal("a read-only disk changed")
		}
	})
}

// FuzzOverlay does arbitrary operations and compares with plain bytes.
func FuzzOverlay(f *testing.F) {
	op := func(kind byte, sector, sectors uint16) []byte {
		return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16([]byte{kind}, sector), sectors)
	}
	f.Add(bytes.Join([][]byte{op(0, 3, 9), op(1, 0, 100), op(2, 2, 30), op(3, 1, 64)}, nil), uint16(100))
	f.Add(bytes.Join([][]byte{op(0, 0, 1), op(0, 7, 1), op(1, 1, 3), op(2, 8, 8), op(3, 0, 0)}, nil), uint16(0))
	f.Add(bytes.Join([][]byte{op(2, 0, 300), op(0, 299, 1), op(3, 0, 0), op(0, 128, 64)}, nil), uint16(13))
	f.Fuzz(func(t *testing.T, ops []byte, baseSectors uint16) {
		const sectors = 1003
		const size = sectors * SectorSize
		want := make([]byte, size)
		base := &inMemory{data: pattern(int(baseSectors%sectors)*SectorSize, 1), readOnly: true}
		copy(want, base.data)
		o := overlay(t, base, size)
		for i := byte(0); len(ops) >= 5 && i < 100; i++ {
			off := int64(binary.LittleEndian.Uint16(ops[1:])%sectors) * SectorSize
			n := min(int64(binary.LittleEndian.Uint16(ops[3:])%sectors)*SectorSize, size-off)
			kind := ops[0] % 4
			ops = ops[5:]
			switch kind {
			case 0:
				p := pattern(int(n), i)
				copy(want[off:], p)
				writeAt(t, o, off, p)
			case 1:
				clear(want[off : off+n])
				if err := o.WriteZeroes(off, n, i&1 != 0); err != nil {
					t.Fatal(err)
				}
			case 2:
				if err := o.Discard(off, n); err != nil {
					t.Fatal(err)
				}
				var v Vec
				v.Reset(want[off : off+n]) // anything may be there now, but only there
				if err := o.ReadV(&v, off, n); err != nil {
					t.Fatal(err)
				}
			case 3:
				s := o.State()
				data := make([]byte, roundUp(size))
				if _, err := o.File().ReadAt(data, 0); err != nil {
					t.Fatal(err)
				}
				_ = o.Close()
				var err error
				if o, err = RestoreOverlay(base, s, file(t, data)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(want, readAll(t, o)) {
			t.Fatal("the overlay differs from plain bytes")
		}
		_ = o.Close()
	})
}

// FuzzStates restores arbitrary states of the device and of the overlay.
func FuzzStates(f *testing.F) {
	for _, s := range []any{
		deviceState{Size: 64 << 10, ReadOnly: true},
		OverlayState{Size: 64 << 10, ClusterSize: ClusterSize, Written: []Extent{{0, 2}, {4, 12}}},
		OverlayState{Size: 64 << 10, ClusterSize: ClusterSize, Written: []Extent{{15, 1 << 62}}},
	} {
		b, err := msgpack.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		dev, err := New(Config{Backend: &inMemory{data: make([]byte, 64<<10)}})
		if err != nil {
			t.Fatal(err)
		}
		_ = dev.RestoreState(b)
		var s OverlayState
		if msgpack.Unmarshal(b, &s) != nil {
			return
		}
		o, err := RestoreOverlay(nil, s, file(t, make([]byte, 64<<10)))
		if err != nil {
			return
		}
		readAll(t, o)
		_ = o.Close()
	})
}
