package block

import (
	"fmt"
	"testing"
)

// BenchmarkRequest is one request of the guest, data in the page cache, from the doorbell to the used ring.
func BenchmarkRequest(b *testing.B) {
	const size = 16 << 20
	content := pattern(size, 1)
	for _, disk := range []struct {
		name string
		make func() Backend
	}{
		{"raw", func() Backend { return raw(b, content, false) }},
		{"base", func() Backend { return overlay(b, raw(b, content, true), size) }},
		{"overlay", func() Backend {
			o := overlay(b, raw(b, content, true), size)
			writeAt(b, o, 0, content)
			return o
		}},
	} {
		for _, kind := range []struct {
			name string
			kind uint32
		}{{"read", typeIn}, {"write", typeOut}} {
			for _, n := range []int{4 << 10, 128 << 10} {
				b.Run(fmt.Sprintf("%s/%s/%dKiB", disk.name, kind.name, n>>10), func(b *testing.B) {
					g := boot(b, disk.make(), 0)
					data, status := g.In(n), g.In(1)
					data.Writable = kind.kind == typeIn
					head := g.q.Chain(g.Out(header(kind.kind, 64)), data, status)
					b.SetBytes(int64(n))
					b.ReportAllocs()
					for b.Loop() {
						g.q.Offer(head)
						g.q.Kick()
						if _, ok := g.q.Take(); !ok || status.Bytes[0] != statusOK {
							b.Fatal(g.MMIO.Failure(), g.dev.Err())
						}
					}
				})
			}
		}
	}
}
