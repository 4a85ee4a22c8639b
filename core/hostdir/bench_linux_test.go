package hostdir

import (
	"bytes"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// replay sends one request again and again, in pieces of a page as Linux does.
func replay(b *testing.B, g *guest, msg []byte, room int) {
	in, out := pieces(msg, 4096), append([][]byte{make([]byte, outHeaderSize)}, pieces(make([]byte, room), 4096)...)
	b.ReportAllocs()
	for b.Loop() {
		if n := g.s.Handle(in, out); n < outHeaderSize || out[0][4] != 0 {
			b.Fatal("failed")
		}
	}
}

func benchFile(b *testing.B) (*guest, fuse.CreateOut) {
	g := mount(b, Options{})
	c, errno := g.create(guestRoot, "f", unix.O_RDWR, 0o644)
	require.Zero(b, errno)
	_, errno = g.write(c.Fh, 0, bytes.Repeat([]byte{1}, MaxTransfer), 0)
	require.Zero(b, errno)
	return g, c
}

func BenchmarkRead(b *testing.B) {
	g, c := benchFile(b)
	b.SetBytes(MaxTransfer)
	replay(b, g, g.frame(opRead, c.NodeId, bytesOf(&fuse.ReadIn{Fh: c.Fh, Size: MaxTransfer})), MaxTransfer)
}

func BenchmarkWrite(b *testing.B) {
	g, c := benchFile(b)
	b.SetBytes(MaxTransfer)
	replay(b, g, g.frame(opWrite, c.NodeId, bytesOf(&fuse.WriteIn{Fh: c.Fh, Size: MaxTransfer}), bytes.Repeat([]byte{2}, MaxTransfer)), 8)
}

func BenchmarkRead4K(b *testing.B) {
	g, c := benchFile(b)
	b.SetBytes(4096)
	replay(b, g, g.frame(opRead, c.NodeId, bytesOf(&fuse.ReadIn{Fh: c.Fh, Size: 4096})), 4096)
}

func BenchmarkLookup(b *testing.B) {
	g, _ := benchFile(b)
	replay(b, g, g.frame(opLookup, guestRoot, bytesOf(&fuse.InHeader{}), name("f")), entrySize)
}

func BenchmarkGetattr(b *testing.B) {
	g, c := benchFile(b)
	replay(b, g, g.frame(opGetattr, c.NodeId, bytesOf(&fuse.GetAttrIn{})), attrSize)
}
