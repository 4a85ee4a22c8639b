package virtio_test

import (
	"testing"

	"github.com/supermachine/supermachine/core/virtio/virtiotest"
)

// BenchmarkRoundTrip is one request of a driver through the registers to a device and back: notify, pop, push, flush, interrupt.
func BenchmarkRoundTrip(b *testing.B) {
	for _, bench := range []struct {
		name     string
		indirect bool
	}{{"direct", false}, {"indirect", true}} {
		b.Run(bench.name, func(b *testing.B) {
			d := virtiotest.Start(b, &echo{}, 0)
			q := d.Queues[0]
			bufs := []virtiotest.Buffer{d.Out(make([]byte, 64)), d.In(64)}
			head := q.Chain
			if bench.indirect {
				head = q.ChainIndirect
			}
			h := head(bufs...)
			b.ReportAllocs()
			for b.Loop() {
				q.Offer(h)
				q.Kick()
				if _, ok := q.Take(); !ok {
					b.Fatal(d.MMIO.Failure())
				}
			}
		})
	}
}

// BenchmarkBatch is the device's side only: 16 chains per flush.
func BenchmarkBatch(b *testing.B) {
	d, dq, q := pull(b, 0)
	var heads []uint16
	for range 16 {
		heads = append(heads, dq.Chain(d.In(64)))
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, h := range heads {
			dq.Offer(h)
		}
		for range heads {
			c, ok, err := q.Pop()
			if !ok || err != nil {
				b.Fatal(ok, err)
			}
			q.Push(c.Head, 64)
		}
		q.Flush()
		for range heads {
			dq.Take()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16, "ns/chain")
}

// BenchmarkInterruptStatus is what a driver's interrupt handler costs on the registers.
func BenchmarkInterruptStatus(b *testing.B) {
	d := virtiotest.Start(b, &echo{}, 0)
	p := make([]byte, 4)
	b.ReportAllocs()
	for b.Loop() {
		d.MMIO.Read(virtiotest.RegInterruptStatus, p)
		d.MMIO.Write(virtiotest.RegInterruptACK, p)
	}
}
