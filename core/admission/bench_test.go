package admission

import (
	"context"
	"testing"
)

func BenchmarkHeadroom(b *testing.B) {
	h := NewHost("/")
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := h.Headroom(); err != nil {
			b.Fatal(err)
		}
	}
}

// With a reading of the real headroom every 10 ms.
func BenchmarkAdmit(b *testing.B) {
	c, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		r, err := c.Admit(b.Context(), 1<<10)
		if err != nil {
			b.Fatal(err)
		}
		r.Settle()
	}
}

func BenchmarkGate(b *testing.B) {
	g := NewGate(1)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		leave, err := g.Enter(ctx)
		if err != nil {
			b.Fatal(err)
		}
		leave()
	}
}
