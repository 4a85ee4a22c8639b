package memory

import (
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	benchSize    = 256 << 20
	benchContent = 60 << 20
	benchExtents = 400
	benchWritten = 16 << 20 // by the guest, in runs of 1 to 32 pages
)

// benchImage returns the image of a typical small VM, with its file in the host's memory.
func benchImage(b *testing.B) *Image {
	b.Helper()
	mem := reserve(b, benchSize)
	rng := rand.New(rand.NewPCG(1, 2))
	list := scattered(rng, benchSize, benchContent/benchExtents, benchExtents)
	for _, e := range list {
		fill(mem[0][e.Off:e.end()], rng)
	}
	f, err := os.CreateTemp("/dev/shm", "layer-*")
	require.NoError(b, err)
	require.NoError(b, os.Remove(f.Name()))
	require.NoError(b, WriteLayer(f, mem, list))
	return newImage(b, []int64{benchSize}, Layer{File: f, Extents: list})
}

// scattered returns n extents of about size bytes, with gaps of quite different lengths.
func scattered(rng *rand.Rand, total, size, n int64) []Extent {
	gaps := make([]float64, n)
	var sum float64
	for i := range gaps {
		gaps[i] = 1 / (1 - rng.Float64())
		sum += gaps[i]
	}
	room := float64(total-n*(size+2*PageSize)) / PageSize
	var list []Extent
	at := int64(0)
	for i := range n {
		at += (1 + int64(gaps[i]/sum*room)) * PageSize
		e := Extent{Off: at, Len: (size + PageSize - 1) / PageSize * PageSize}
		list = append(list, e)
		at = e.end()
	}
	return list
}

// dirty writes to mem as a guest does that goes on working: mostly to pages with content.
func dirty(rng *rand.Rand, mem []byte, content []Extent) {
	for n := 0; n < benchWritten; {
		e := content[rng.IntN(len(content))]
		pages := 1 + rng.IntN(32)
		at := e.Off + rng.Int64N(e.Len/PageSize)*PageSize
		for ; pages > 0 && at < int64(len(mem)); pages-- {
			mem[at+rng.Int64N(PageSize)]++
			at += PageSize
			n += PageSize
		}
	}
}

func BenchmarkMap(b *testing.B) {
	image := benchImage(b)
	mem := reserve(b, benchSize)
	require.NoError(b, image.Map(mem))

	for b.Loop() {
		require.NoError(b, image.Map(mem))
	}
}

func BenchmarkReserveMapRelease(b *testing.B) {
	image := benchImage(b)
	for b.Loop() {
		mem, err := Reserve(image.Sizes())
		require.NoError(b, err)
		require.NoError(b, image.Map(mem))
		require.NoError(b, Release(mem))
	}
}

func BenchmarkReset(b *testing.B) {
	image := benchImage(b)
	mem := reserve(b, benchSize)
	require.NoError(b, image.Map(mem))
	rng := rand.New(rand.NewPCG(3, 4))
	for b.Loop() {
		b.StopTimer()
		dirty(rng, mem[0], image.Content())
		b.StartTimer()
		require.NoError(b, image.Reset(mem))
	}
}

func BenchmarkChanged(b *testing.B) {
	image := benchImage(b)
	mem := reserve(b, benchSize)
	require.NoError(b, image.Map(mem))
	dirty(rand.New(rand.NewPCG(3, 4)), mem[0], image.Content())
	var list []Extent
	for b.Loop() {
		var err error
		list, err = image.Changed(mem)
		require.NoError(b, err)
	}
	b.ReportMetric(float64(Bytes(list))/(1<<20), "MiB")
	b.ReportMetric(float64(len(list)), "extents")
}

func BenchmarkCapture(b *testing.B) {
	image := benchImage(b)
	mem := reserve(b, benchSize)
	require.NoError(b, image.Map(mem))
	dirty(rand.New(rand.NewPCG(3, 4)), mem[0], image.Content())
	var copied int64
	for b.Loop() {
		child, err := image.Capture(mem)
		require.NoError(b, err)
		b.StopTimer()
		copied = Bytes(child.Captured())
		require.NoError(b, child.Close())
		b.StartTimer()
	}
	b.ReportMetric(float64(copied)/(1<<20), "MiB")
}

// BenchmarkPrepareCaptured is what the first Map of a captured image does besides mapping.
func BenchmarkPrepareCaptured(b *testing.B) {
	image := benchImage(b)
	mem := reserve(b, benchSize)
	require.NoError(b, image.Map(mem))
	dirty(rand.New(rand.NewPCG(3, 4)), mem[0], image.Content())
	for b.Loop() {
		b.StopTimer()
		child, err := image.Capture(mem)
		require.NoError(b, err)
		b.StartTimer()
		require.NoError(b, child.Prepare())
		b.StopTimer()
		require.NoError(b, child.Close())
		b.StartTimer()
	}
}

func BenchmarkCaptureBooted(b *testing.B) {
	image := benchImage(b)
	mem := reserve(b, benchSize)
	rng := rand.New(rand.NewPCG(3, 4))
	for _, e := range image.Content() {
		fill(mem[0][e.Off:e.end()], rng)
	}
	for b.Loop() {
		child, err := (*Image)(nil).Capture(mem)
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, child.Close())
		b.StartTimer()
	}
}
