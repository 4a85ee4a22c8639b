package rng

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio"
	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

func TestFillsBuffers(t *testing.T) {
	d := virtiotest.Start(t, New(), 0)
	require.EqualValues(t, virtio.IDRNG, d.Read32(virtiotest.RegDeviceID))
	q := d.Queues[0]
	for _, tt := range []struct {
		name    string
		lengths []int
		want    int
	}{
		// §5.4.6.2: one or more random bytes are placed into the buffer.
		{"one byte", []int{1}, 1},
		{"as Linux asks", []int{64}, 64},
		{"several descriptors", []int{100, 1, 100}, 201},
		{"more than one request gets", []int{MaxRequest - 10, 100, 100}, MaxRequest},
		{"much more", []int{1 << 20}, MaxRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var bufs []virtiotest.Buffer
			for _, n := range tt.lengths {
				bufs = append(bufs, d.In(n))
			}
			q.Submit(bufs...)
			require.EqualValues(t, tt.want, q.Wait().Written)
			if tt.want < 64 {
				return
			}
			first := bufs[0].Bytes
			require.NotEqual(t, make([]byte, 32), first[:32])
			last := bufs[len(bufs)-1].Bytes
			if tt.want == MaxRequest {
				require.Equal(t, make([]byte, 16), last[len(last)-16:], "nothing beyond the used length")
			}
		})
	}
}

func TestTwoRequestsDiffer(t *testing.T) {
	d := virtiotest.Start(t, New(), 0)
	a, b := d.In(32), d.In(32)
	d.Queues[0].Submit(a)
	d.Queues[0].Submit(b)
	d.Queues[0].Wait()
	d.Queues[0].Wait()
	require.NotEqual(t, a.Bytes, b.Bytes)
}

func TestNothingToFill(t *testing.T) {
	d := virtiotest.Start(t, New(), 0)
	d.Queues[0].Submit(d.Out([]byte("readable")))
	require.Zero(t, d.Queues[0].Wait().Written)
}

func TestBrokenDriver(t *testing.T) {
	d := virtiotest.Start(t, New(), 0)
	d.Queues[0].SetAvailIdx(100)
	d.Queues[0].Kick()
	require.ErrorIs(t, d.MMIO.Failure(), virtio.ErrDriver)
}

func TestSaveRestore(t *testing.T) {
	d := virtiotest.Start(t, New(), 0)
	d.MMIO.Pause()
	in := d.In(16)
	d.Queues[0].Submit(in)
	s, err := d.MMIO.Save()
	require.NoError(t, err)
	n := d.Reattach(New(), d.CopyMemory())
	require.NoError(t, n.MMIO.Restore(s))
	n.MMIO.Resume()
	require.EqualValues(t, 16, n.Queues[0].Wait().Written)
	require.Equal(t, make([]byte, 16), in.Bytes, "the copy has its own memory")
}

// FuzzRequest offers chains of arbitrary descriptors.
func FuzzRequest(f *testing.F) {
	f.Add([]byte{}, uint16(1))
	table := make([]byte, 32)
	virtiotest.PutDesc(table, 0, virtiotest.Desc{Addr: virtiotest.Base + 0x4000, Len: 64, Flags: virtiotest.Write | virtiotest.Next, Next: 1})
	virtiotest.PutDesc(table, 1, virtiotest.Desc{Addr: virtiotest.Base, Len: 1 << 15, Flags: virtiotest.Write})
	f.Add(table, uint16(2))
	f.Fuzz(func(t *testing.T, table []byte, idx uint16) {
		d := virtiotest.New(t, New(), 64<<10)
		d.Up(d.Offered())
		q := d.Queues[0]
		copy(q.Table(), table)
		for i := range uint16(8) {
			q.SetAvail(i, i)
		}
		q.SetAvailIdx(idx)
		q.Kick()
		q.SetAvailIdx(idx + 1)
		q.Kick()
	})
}

func BenchmarkRequest(b *testing.B) {
	d := virtiotest.Start(b, New(), 0)
	q := d.Queues[0]
	head := q.Chain(d.In(64))
	b.SetBytes(64)
	b.ReportAllocs()
	for b.Loop() {
		q.Offer(head)
		q.Kick()
		if _, ok := q.Take(); !ok {
			b.Fatal(d.MMIO.Failure())
		}
	}
}
