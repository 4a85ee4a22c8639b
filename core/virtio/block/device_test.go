package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

const diskSize = 1 << 20

// pattern returns n bytes that differ from place to place and from seed to seed.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i) + byte(i>>8)*7
	}
	return b
}

// file returns an open file with the given content.
func file(t testing.TB, content []byte) *os.File {
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	return f
}

func raw(t testing.TB, content []byte, readOnly bool) *Raw {
	r, err := NewRaw(file(t, content), readOnly)
	require.NoError(t, err)
	return r
}

func overlay(t testing.TB, base Backend, size int64) *Overlay {
	f, err := TempFile(t.TempDir())
	require.NoError(t, err)
	o, err := NewOverlay(base, size, f)
	require.NoError(t, err)
	return o
}

// guest is a driver of one block device.
type guest struct {
	*virtiotest.Driver
	t   testing.TB
	dev *Device
	q   *virtiotest.Queue
}

func boot(t testing.TB, b Backend, without uint64) *guest {
	dev, err := New(Config{Backend: b, Serial: "scratch"})
	require.NoError(t, err)
	d := virtiotest.Start(t, dev, without)
	return &guest{Driver: d, t: t, dev: dev, q: d.Queues[0]}
}

func header(kind uint32, sector uint64) []byte {
	h := make([]byte, headerBytes)
	binary.LittleEndian.PutUint32(h, kind)
	binary.LittleEndian.PutUint64(h[8:], sector)
	return h
}

// do submits a request with the usual framing and returns its status byte and used length.
func (g *guest) do(kind uint32, sector uint64, data ...virtiotest.Buffer) (byte, uint32) {
	g.t.Helper()
	status := g.In(1)
	status.Bytes[0] = 0xee
	g.q.Submit(append(append([]virtiotest.Buffer{g.Out(header(kind, sector))}, data...), status)...)
	u := g.q.Wait()
	require.NoError(g.t, g.MMIO.Failure())
	return status.Bytes[0], u.Written
}

func (g *guest) read(sector uint64, n int) []byte {
	g.t.Helper()
	in := g.In(n)
	status, written := g.do(typeIn, sector, in)
	require.EqualValues(g.t, statusOK, status)
	require.EqualValues(g.t, n+1, written)
	return in.Bytes
}

func (g *guest) write(sector uint64, data []byte) {
	g.t.Helper()
	status, written := g.do(typeOut, sector, g.Out(data))
	require.EqualValues(g.t, statusOK, status)
	require.EqualValues(g.t, 1, written)
}

func ranges(rs ...[3]uint64) []byte {
	var b []byte
	for _, r := range rs {
		b = binary.LittleEndian.AppendUint64(b, r[0])
		b = binary.LittleEndian.AppendUint32(b, uint32(r[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(r[2]))
	}
	return b
}

func TestNewRefuses(t *testing.T) {
	r := raw(t, make([]byte, 4096), false)
	defer r.Close()
	for _, c := range []Config{
		{Backend: r, Serial: "a serial of more than 20"},
		{Backend: r, QueueSize: 3},
		{Backend: r, QueueSize: 2},
		{Backend: r, QueueSize: 2048},
	} {
		_, err := New(c)
		require.Error(t, err)
	}
	for _, size := range []int{0, 511, 513} {
		_, err := NewRaw(file(t, make([]byte, size)), false)
		var se *SizeError
		require.ErrorAs(t, err, &se)
	}
	_, err := OpenRaw(filepath.Join(t.TempDir(), "missing"), true)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestConfigSpace(t *testing.T) {
	g := boot(t, raw(t, make([]byte, diskSize), false), 0)
	cfg := g.Config(0, 60)
	require.EqualValues(t, diskSize/512, binary.LittleEndian.Uint64(cfg), "capacity")
	require.EqualValues(t, 254, binary.LittleEndian.Uint32(cfg[12:]), "seg_max")
	require.EqualValues(t, 512, binary.LittleEndian.Uint32(cfg[20:]), "blk_size")
	require.Zero(t, g.Offered()&FeatureReadOnly)
	ro := boot(t, raw(t, make([]byte, diskSize), true), 0)
	require.NotZero(t, ro.Offered()&FeatureReadOnly)
	require.Zero(t, ro.Offered()&(FeatureFlush|FeatureDiscard|FeatureWriteZeroes))
}

func TestReadWrite(t *testing.T) {
	content := pattern(diskSize, 1)
	for name, b := range map[string]Backend{
		"raw":     raw(t, content, false),
		"overlay": overlay(t, raw(t, content, true), diskSize),
	} {
		t.Run(name, func(t *testing.T) {
			g := boot(t, b, 0)
			require.Equal(t, content[512:512+8192], g.read(1, 8192))
			data := pattern(3*512, 99)
			g.write(7, data)
			want := append([]byte(nil), content...)
			copy(want[7*512:], data)
			require.True(t, bytes.Equal(want, g.read(0, diskSize)))
			g.write(diskSize/512-1, data[:512])
			require.Equal(t, data[:512], g.read(diskSize/512-1, 512))
			require.NoError(t, g.dev.Err())
		})
	}
}

func TestFramingIsFree(t *testing.T) {
	// §2.7.4.1: the device makes no assumption about how header, data and status are cut into descriptors.
	content := pattern(diskSize, 3)
	g := boot(t, raw(t, content, false), 0)

	h := header(typeIn, 2)
	in := []virtiotest.Buffer{g.In(1), g.In(700), g.In(512 - 189 + 1)} // 1024 bytes of data and the status
	g.q.Submit(append([]virtiotest.Buffer{g.Out(h[:3]), g.Out(h[3:])}, in...)...)
	require.EqualValues(t, 1025, g.q.Wait().Written)
	var got []byte
	for _, b := range in {
		got = append(got, b.Bytes...)
	}
	require.Equal(t, content[1024:2048], got[:1024])
	require.EqualValues(t, statusOK, got[1024])

	data := pattern(1024, 50)
	one := append(header(typeOut, 4), data...) // header and data in one
	status := g.In(1)
	g.q.Submit(g.Out(one), status)
	g.q.Wait()
	require.EqualValues(t, statusOK, status.Bytes[0])
	require.Equal(t, data, g.read(4, 1024))
}

func TestManySegments(t *testing.T) {
	content := pattern(diskSize, 5)
	g := boot(t, overlay(t, raw(t, content, true), diskSize), 0)
	var in []virtiotest.Buffer
	for range 200 {
		in = append(in, g.In(512))
	}
	status, written := g.do(typeIn, 3, in...)
	require.EqualValues(t, statusOK, status)
	require.EqualValues(t, 200*512+1, written)
	for i, b := range in {
		require.Equal(t, content[(3+i)*512:(4+i)*512], b.Bytes)
	}
}

func TestRequestsRefused(t *testing.T) {
	last := uint64(diskSize / 512)
	tests := []struct {
		name     string
		readOnly bool
		kind     uint32
		sector   uint64
		in, out  int
		data     []byte
		status   byte
	}{
		{name: "read beyond the end", kind: typeIn, sector: last, in: 512, status: statusIOErr},
		{name: "read across the end", kind: typeIn, sector: last - 1, in: 1024, status: statusIOErr},
		{name: "read at the last sector number", kind: typeIn, sector: ^uint64(0), in: 512, status: statusIOErr},
		{name: "sector times 512 overflows", kind: typeIn, sector: 1 << 55, in: 512, status: statusIOErr},
		{name: "read more than the disk", kind: typeIn, in: diskSize + 512, status: statusIOErr},
		{name: "read of no whole sectors", kind: typeIn, in: 100, status: statusIOErr},
		{name: "write beyond the end", kind: typeOut, sector: last, out: 512, status: statusIOErr},
		{name: "write of no whole sectors", kind: typeOut, out: 513, status: statusIOErr},
		// §5.2.6.2: a write to a read-only device fails with IOERR.
		{name: "write to a read-only disk", readOnly: true, kind: typeOut, out: 512, status: statusIOErr},
		{name: "discard of a read-only disk", readOnly: true, kind: typeDiscard, data: ranges([3]uint64{0, 8, 0}), status: statusUnsupp},
		{name: "unknown type", kind: 0x1234, out: 512, status: statusUnsupp},
		{name: "secure erase", kind: 14, data: ranges([3]uint64{0, 8, 0}), status: statusUnsupp},
		// §5.2.6.2: unknown flags, and unmap in a discard, are UNSUPP.
		{name: "discard with unmap", kind: typeDiscard, data: ranges([3]uint64{0, 8, 1}), status: statusUnsupp},
		{name: "discard with unknown flags", kind: typeDiscard, data: ranges([3]uint64{0, 8, 2}), status: statusUnsupp},
		{name: "zeroes with unknown flags", kind: typeWriteZeroes, data: ranges([3]uint64{0, 8, 3}), status: statusUnsupp},
		{name: "discard beyond the end", kind: typeDiscard, data: ranges([3]uint64{last - 1, 2, 0}), status: statusIOErr},
		{name: "discard overflow", kind: typeDiscard, data: ranges([3]uint64{^uint64(0), 8, 0}), status: statusIOErr},
		{name: "discard of too much", kind: typeDiscard, data: ranges([3]uint64{0, 0xffffffff, 0}), status: statusIOErr},
		{name: "discard of half a range", kind: typeDiscard, data: make([]byte, 8), status: statusIOErr},
		{name: "discard of too many ranges", kind: typeDiscard, data: make([]byte, 17*16), status: statusIOErr},
		{name: "discard of nothing", kind: typeDiscard, status: statusIOErr},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			content := pattern(diskSize, 9)
			g := boot(t, raw(t, content, tt.readOnly), 0)
			var data []virtiotest.Buffer
			switch {
			case tt.in > 0:
				data = append(data, g.In(tt.in))
			case tt.out > 0:
				data = append(data, g.Out(make([]byte, tt.out)))
			case len(tt.data) > 0:
				data = append(data, g.Out(tt.data))
			}
			status, written := g.do(tt.kind, tt.sector, data...)
			require.Equal(t, tt.status, status)
			if tt.in > 0 {
				require.Zero(t, written, "nothing before the status was written")
			}
			require.True(t, bytes.Equal(content, g.read(0, diskSize)), "nothing changed")
			require.NoError(t, g.dev.Err(), "the guest's mistake is not the disk's")
		})
	}
}

func TestNotARequest(t *testing.T) {
	for name, chain := range map[string]func(g *guest) []virtiotest.Buffer{
		"short header": func(g *guest) []virtiotest.Buffer { return []virtiotest.Buffer{g.Out(make([]byte, 15)), g.In(1)} },
		"no status":    func(g *guest) []virtiotest.Buffer { return []virtiotest.Buffer{g.Out(header(typeOut, 0))} },
	} {
		t.Run(name, func(t *testing.T) {
			g := boot(t, raw(t, make([]byte, diskSize), false), 0)
			g.q.Submit(chain(g)...)
			require.ErrorIs(t, g.MMIO.Failure(), virtio.ErrDriver)
			require.NotZero(t, g.Status()&virtio.StatusNeedsReset)
		})
	}
}

func TestGetID(t *testing.T) {
	g := boot(t, raw(t, make([]byte, diskSize), true), 0)
	for _, tt := range []struct{ n, written int }{{20, 21}, {4, 5}, {32, 20}} {
		id := g.In(tt.n)
		status, written := g.do(typeGetID, 0, id)
		require.EqualValues(t, statusOK, status)
		require.EqualValues(t, tt.written, written)
		want := append([]byte("scratch"), make([]byte, 40)...)
		require.Equal(t, want[:tt.n], id.Bytes)
	}
}

// counting is a backend that counts flushes and can fail.
type counting struct {
	Backend
	flushes atomic.Int32
	err     error
}

func (c *counting) Flush() error { c.flushes.Add(1); return c.err }
func (c *counting) ReadV(v *Vec, off, n int64) error {
	if c.err != nil {
		return c.err
	}
	return c.Backend.ReadV(v, off, n)
}

func TestFlush(t *testing.T) {
	c := &counting{Backend: raw(t, make([]byte, diskSize), false)}
	g := boot(t, c, 0)
	g.write(0, make([]byte, 512))
	require.Zero(t, c.flushes.Load())
	status, _ := g.do(typeFlush, 0)
	require.EqualValues(t, statusOK, status)
	require.EqualValues(t, 1, c.flushes.Load())
	// §5.2.6.2: a driver without FLUSH finds its writes stable when they are reported.
	c2 := &counting{Backend: raw(t, make([]byte, diskSize), false)}
	boot(t, c2, FeatureFlush).write(0, make([]byte, 512))
	require.EqualValues(t, 1, c2.flushes.Load())
}

func TestDiskError(t *testing.T) {
	broken := errors.New("medium error")
	c := &counting{Backend: raw(t, make([]byte, diskSize), false), err: broken}
	g := boot(t, c, 0)
	status, _ := g.do(typeIn, 0, g.In(512))
	require.EqualValues(t, statusIOErr, status)
	require.ErrorIs(t, g.dev.Err(), broken)
	status, _ = g.do(typeFlush, 0)
	require.EqualValues(t, statusIOErr, status)
}

func TestTruncatedFile(t *testing.T) {
	r := raw(t, pattern(diskSize, 1), false)
	g := boot(t, r, 0)
	require.NoError(t, r.file.Truncate(4096))
	status, _ := g.do(typeIn, 100, g.In(512))
	require.EqualValues(t, statusIOErr, status)
	require.Error(t, g.dev.Err())
}

func TestDiscardAndWriteZeroes(t *testing.T) {
	content := pattern(diskSize, 11)
	for name, b := range map[string]Backend{
		"raw":             raw(t, content, false),
		"overlay":         overlay(t, raw(t, content, true), diskSize),
		"overlay on none": overlay(t, nil, diskSize),
	} {
		t.Run(name, func(t *testing.T) {
			g := boot(t, b, 0)
			g.write(0, content[:64<<10])
			for _, tt := range []struct {
				kind  uint32
				flags uint64
			}{{typeWriteZeroes, 0}, {typeWriteZeroes, 1}, {typeDiscard, 0}} {
				before := append([]byte(nil), g.read(0, diskSize)...)
				// From the middle of a cluster to the middle of another, and a second range.
				status, written := g.do(tt.kind, 0, g.Out(ranges([3]uint64{3, 18, tt.flags}, [3]uint64{64, 8, tt.flags})))
				require.EqualValues(t, statusOK, status)
				require.EqualValues(t, 1, written)
				after := g.read(0, diskSize)
				if tt.kind == typeDiscard {
					require.Equal(t, before[21*512:64*512], after[21*512:64*512], "outside the ranges nothing changes")
					continue
				}
				copy(before[3*512:21*512], make([]byte, 18*512))
				copy(before[64*512:72*512], make([]byte, 8*512))
				require.True(t, bytes.Equal(before, after))
				g.write(0, content[:64<<10])
			}
		})
	}
}

func TestSaveRestore(t *testing.T) {
	content := pattern(diskSize, 1)
	g := boot(t, raw(t, content, false), 0)
	g.write(8, make([]byte, 512))
	g.MMIO.Pause()
	in, status := g.In(512), g.In(1)
	g.q.Submit(g.Out(header(typeIn, 9)), in, status)
	s, err := g.MMIO.Save()
	require.NoError(t, err)
	b, err := msgpack.Marshal(s)
	require.NoError(t, err)
	var back virtio.State
	require.NoError(t, msgpack.Unmarshal(b, &back))

	dev, err := New(Config{Backend: raw(t, content, false), Serial: "scratch"})
	require.NoError(t, err)
	n := g.Reattach(dev, g.CopyMemory())
	require.NoError(t, n.MMIO.Restore(back))
	n.MMIO.Resume()
	require.EqualValues(t, 513, n.Queues[0].Wait().Written)
	got, ok := n.Mem.Slice(in.Addr, 512)
	require.True(t, ok)
	require.Equal(t, content[9*512:10*512], got)

	for name, c := range map[string]Config{
		"size":      {Backend: raw(t, content[:4096], false), Serial: "scratch"},
		"read-only": {Backend: raw(t, content, true), Serial: "scratch"},
		"serial":    {Backend: raw(t, content, false), Serial: "other"},
	} {
		dev, err := New(c)
		require.NoError(t, err, name)
		require.Error(t, g.Reattach(dev, g.CopyMemory()).MMIO.Restore(back), name)
	}
}

// A limited disk makes the driver wait, and a pause does not wait for that.
func TestLimitsHold(t *testing.T) {
	dev, err := New(Config{Backend: &inMemory{data: make([]byte, 1<<20)}, RequestsPerSecond: 200})
	require.NoError(t, err)
	d := virtiotest.Start(t, dev, 0)
	g := &guest{Driver: d, t: t, dev: dev, q: d.Queues[0]}
	begin := time.Now()
	const n = 60
	for range n {
		g.read(0, 512)
	}
	const burst = 10 // 50 ms of them
	require.GreaterOrEqual(t, time.Since(begin), time.Second*(n-burst-5)/200)

	dev, err = New(Config{Backend: &inMemory{data: make([]byte, 8<<20)}, BytesPerSecond: 4 << 10})
	require.NoError(t, err)
	d = virtiotest.Start(t, dev, 0)
	g = &guest{Driver: d, t: t, dev: dev, q: d.Queues[0]}
	g.read(0, 1<<20) // a debt of minutes
	waits := make(chan struct{})
	go func() {
		g.q.Submit(g.Out(header(typeIn, 0)), g.In(512), g.In(1)) // which returns when the device has nothing to do
		close(waits)
	}()
	begin = time.Now()
	g.MMIO.Pause()
	<-waits
	require.Less(t, time.Since(begin), 10*time.Second)
}
