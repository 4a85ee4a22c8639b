package memory

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func reserve(t testing.TB, sizes ...int64) [][]byte {
	t.Helper()
	mem, err := Reserve(sizes)
	require.NoError(t, err)
	t.Cleanup(func() { _ = Release(mem) })
	return mem
}

func newImage(t testing.TB, sizes []int64, layers ...Layer) *Image {
	t.Helper()
	image, err := NewImage(sizes, layers...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = image.Close() })
	return image
}

// fill writes random bytes, no page of which is zero.
func fill(b []byte, rng *rand.Rand) {
	for at := 0; at < len(b); at += 8 {
		binary.LittleEndian.PutUint64(b[at:], rng.Uint64()|1)
	}
}

// layerFile returns an empty file for a layer.
func layerFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}
