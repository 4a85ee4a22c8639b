package vsock

import (
	"bytes"
	"math/rand"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRingKeepsOrder(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	var r ring
	var s spares
	var want, got bytes.Buffer
	for range 20000 {
		p := make([]byte, rnd.Intn(3000))
		rnd.Read(p)
		if r.n+len(p) <= 64<<10 {
			want.Write(p)
			cut := rnd.Intn(len(p) + 1)
			r.put(&s, [][]byte{{1, 2, 3}, {4}, p[:cut], nil, p[cut:]}, 4, len(p))
		}
		p = p[:rnd.Intn(3000)%(len(p)+1)]
		got.Write(p[:r.take(&s, p)])
	}
	rest := make([]byte, r.n)
	require.Equal(t, len(rest), r.take(&s, rest))
	got.Write(rest)
	require.True(t, bytes.Equal(want.Bytes(), got.Bytes()))
	require.LessOrEqual(t, len(r.b), 64<<10)
}

func TestHeaderCodec(t *testing.T) {
	h := header{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	var b [headerSize]byte
	h.encode(&b)
	var g header
	g.decode(&b)
	require.Equal(t, h, g)
	out := [][]byte{make([]byte, 10), make([]byte, 20), make([]byte, 50)}
	scatter(out, 0, b[:])
	var c [headerSize]byte
	require.Equal(t, headerSize, gather(c[:], out, 0))
	require.Equal(t, b, c)
}
