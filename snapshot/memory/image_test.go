package memory

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// flat returns the regions' bytes one behind the other.
func flat(mem [][]byte) []byte { return bytes.Join(mem, nil) }

// requireContent compares memory page by page, for errors of bearable length.
func requireContent(t testing.TB, want []byte, mem [][]byte, what string, args ...any) {
	t.Helper()
	for i, b := range mem {
		require.GreaterOrEqual(t, len(want), len(b))
		if !bytes.Equal(want[:len(b)], b) {
			for at := 0; at < len(b); at += page {
				if !bytes.Equal(want[at:at+page], b[at:at+page]) {
					require.Fail(t, "content differs", "region %d, page %d, %s", i, at/page, fmt.Sprintf(what, args...))
				}
			}
		}
		want = want[len(b):]
	}
	require.Empty(t, want)
}

// randomLayer returns a layer of the given extents and changes model to what the layer shows.
func randomLayer(t testing.TB, rng *rand.Rand, model []byte, sizes []int64, list []Extent) Layer {
	t.Helper()
	for _, e := range list {
		fill(model[e.Off:e.end()], rng)
	}
	return Layer{File: written(t, model, sizes, list), Extents: list}
}

// written returns a layer's file made from the model's bytes.
func written(t testing.TB, model []byte, sizes []int64, list []Extent) *os.File {
	t.Helper()
	mem := reserve(t, sizes...)
	setAll(mem, model)
	f := layerFile(t)
	require.NoError(t, WriteLayer(f, mem, list))
	return f
}

func setAll(mem [][]byte, model []byte) {
	for _, b := range mem {
		copy(b, model)
		model = model[len(b):]
	}
}

func total(sizes []int64) (n int64) {
	for _, s := range sizes {
		n += s
	}
	return n
}

// mapped counts the lines of /proc/self/maps within the memory.
func mapped(t testing.TB, mem [][]byte) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	n := 0
	for line := range strings.Lines(string(text)) {
		var start, end uintptr
		_, err := fmt.Sscanf(line, "%x-%x", &start, &end)
		require.NoError(t, err)
		for _, b := range mem {
			if start < address(b)+uintptr(len(b)) && end > address(b) {
				n++
			}
		}
	}
	return n
}

// flagsOf returns the VmFlags of all mappings within the memory.
func flagsOf(t testing.TB, mem [][]byte) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/smaps")
	require.NoError(t, err)
	var out []string
	inside := false
	for line := range strings.Lines(string(text)) {
		var start, end uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &start, &end); n == 2 {
			inside = slices.ContainsFunc(mem, func(b []byte) bool { return start < address(b)+uintptr(len(b)) && end > address(b) })
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			out = append(out, flags)
		}
	}
	return out
}

func TestMapShowsLayersOverEachOther(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	sizes := []int64{64 * page, 32 * page}
	model := make([]byte, total(sizes))
	layers := []Layer{
		randomLayer(t, rng, model, sizes, []Extent{{2 * page, 10 * page}, {40 * page, 30 * page}, {90 * page, 6 * page}}),
		randomLayer(t, rng, model, sizes, []Extent{{0, page}, {4 * page, 2 * page}, {60 * page, 8 * page}}),
		{File: layerFile(t)},
		randomLayer(t, rng, model, sizes, []Extent{{5 * page, 10 * page}, {95 * page, page}}),
	}
	image := newImage(t, sizes, layers...)
	assert.Equal(t, sizes, image.Sizes())
	assert.Equal(t, []Extent{{0, page}, {2 * page, 13 * page}, {40 * page, 30 * page}, {90 * page, 6 * page}}, image.Content())
	assert.Empty(t, image.Captured())
	mem := reserve(t, sizes...)
	for range 2 { // the second time over dirty memory
		for _, b := range mem {
			fill(b, rng)
		}
		require.NoError(t, image.Map(mem))
		requireContent(t, model, mem, "")
	}
}

func TestEmptyImageIsZeros(t *testing.T) {
	image := newImage(t, []int64{8 * page})
	mem := reserve(t, 8*page)
	mem[0][5*page] = 1
	require.NoError(t, image.Map(mem))
	requireContent(t, make([]byte, 8*page), mem, "")
	assert.Equal(t, 1, mapped(t, mem))
}

func TestMappingsAreBounded(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	sizes := []int64{24 << 20, 8 << 20}
	model := make([]byte, total(sizes))
	base := randomLayer(t, rng, model, sizes, scattered(rng, total(sizes), 3*page, 700))
	image := newImage(t, sizes, base)
	mem := reserve(t, sizes...)
	require.NoError(t, image.Map(mem))
	assert.LessOrEqual(t, mapped(t, mem), fileMappings)
	assert.Empty(t, image.own, "one file needs no other")
	requireContent(t, model, mem, "one layer")

	// Single pages all over the base, in three layers.
	base.File = reopen(t, base.File)
	layers := []Layer{base}
	for range 3 {
		layers = append(layers, randomLayer(t, rng, model, sizes, scattered(rng, total(sizes), page, 500)))
	}
	image = newImage(t, sizes, layers...)
	for range 2 {
		require.NoError(t, image.Map(mem))
		assert.LessOrEqual(t, mapped(t, mem), maxMappings)
		requireContent(t, model, mem, "four layers")
	}
	assert.NotEmpty(t, image.own)
}

func reopen(t testing.TB, f *os.File) *os.File {
	t.Helper()
	again, err := os.Open(f.Name())
	require.NoError(t, err)
	t.Cleanup(func() { _ = again.Close() })
	return again
}

func TestMappingsHaveTheirAdvice(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	sizes := []int64{64 * page}
	model := make([]byte, total(sizes))
	image := newImage(t, sizes, randomLayer(t, rng, model, sizes, []Extent{{8 * page, page}, {40 * page, page}}))
	mem := reserve(t, sizes...)
	for _, f := range flagsOf(t, mem) {
		assert.Contains(t, f, " dd")
		assert.Contains(t, f, " dc")
	}
	require.NoError(t, image.Map(mem))
	huge := 0
	flags := flagsOf(t, mem)
	require.Len(t, flags, 5)
	for _, f := range flags {
		assert.Contains(t, f, " dd") // not in core dumps
		assert.Contains(t, f, " dc") // not in forked children
		assert.Contains(t, f, " nr")
		if strings.Contains(f, " nh") {
			huge++
		}
	}
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err == nil {
		assert.Equal(t, 3, huge)
	}
}

func TestClonesDoNotSeeEachOther(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	sizes := []int64{128 * page}
	model := make([]byte, total(sizes))
	image := newImage(t, sizes, randomLayer(t, rng, model, sizes, []Extent{{16 * page, 32 * page}, {100 * page, 10 * page}}))
	a, b := reserve(t, sizes...), reserve(t, sizes...)
	require.NoError(t, image.Map(a))
	require.NoError(t, image.Map(b))
	wantA := bytes.Clone(model)
	for _, p := range []int64{0, 20, 47, 48, 99, 105, 127} {
		a[0][p*page+7] ^= 0xff
		wantA[p*page+7] ^= 0xff
	}
	requireContent(t, wantA, a, "the writer")
	requireContent(t, model, b, "the other")
	n, err := PrivateBytes(a)
	require.NoError(t, err)
	assert.EqualValues(t, 7*page, n)
	n, err = PrivateBytes(b)
	require.NoError(t, err)
	assert.Zero(t, n, "reading costs nothing")

	require.NoError(t, image.Reset(a))
	requireContent(t, model, a, "after the reset")
	n, err = PrivateBytes(a)
	require.NoError(t, err)
	assert.Zero(t, n)
	a[0][20*page] ^= 1 // still copy-on-write
	requireContent(t, model, b, "the other after the reset")
}

func TestConcurrentMaps(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	sizes := []int64{8 << 20}
	model := make([]byte, total(sizes))
	var layers []Layer
	for range 3 {
		layers = append(layers, randomLayer(t, rng, model, sizes, scattered(rng, total(sizes), page, 200)))
	}
	image := newImage(t, sizes, layers...)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			mem, err := Reserve(sizes)
			if !assert.NoError(t, err) {
				return
			}
			defer func() { assert.NoError(t, Release(mem)) }()
			for n := range 3 {
				if !assert.NoError(t, image.Map(mem)) {
					return
				}
				assert.True(t, bytes.Equal(model, mem[0]))
				mem[0][(g*8+n)*page] ^= 1
				list, err := image.Changed(mem)
				assert.NoError(t, err)
				assert.Equal(t, []Extent{{int64(g*8+n) * page, page}}, list)
				child, err := image.Capture(mem)
				if assert.NoError(t, err) {
					assert.NoError(t, child.Close())
				}
			}
		})
	}
	wg.Wait()
}

func TestMemoryMustFit(t *testing.T) {
	image := newImage(t, []int64{4 * page, 4 * page})
	mem := reserve(t, 4*page, 4*page)
	odd := reserve(t, 5*page)[0]
	for name, m := range map[string][][]byte{
		"none":      nil,
		"too few":   mem[:1],
		"too short": {mem[0], mem[1][:3*page]},
		"unaligned": {mem[0], odd[1 : 1+4*page]},
	} {
		assert.ErrorIs(t, image.Map(m), ErrMismatch, name)
		assert.ErrorIs(t, image.Reset(m), ErrMismatch, name)
		_, err := image.Changed(m)
		assert.ErrorIs(t, err, ErrMismatch, name)
		_, err = image.Capture(m)
		assert.ErrorIs(t, err, ErrMismatch, name)
	}
	_, err := Touched([][]byte{odd[1 : 1+page]})
	assert.ErrorIs(t, err, ErrMismatch)
	_, err = PrivateBytes(nil)
	assert.ErrorIs(t, err, ErrMismatch)
}

func TestLayersAreChecked(t *testing.T) {
	sizes := []int64{16 * page}
	short := layerFile(t)
	require.NoError(t, short.Truncate(3*page))
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer func() { _ = dir.Close() }()
	zero, err := os.Open("/dev/zero")
	require.NoError(t, err)
	defer func() { _ = zero.Close() }()
	for name, layer := range map[string]Layer{
		"no file":     {Extents: []Extent{{0, page}}},
		"short file":  {File: short, Extents: []Extent{{0, page}, {3 * page, page}}},
		"directory":   {File: dir, Extents: []Extent{{0, page}}},
		"device":      {File: zero, Extents: []Extent{{0, page}}},
		"overlapping": {File: short, Extents: []Extent{{0, 2 * page}, {page, page}}},
	} {
		_, err := NewImage(sizes, Layer{File: short, Extents: []Extent{{0, page}}}, layer)
		assert.ErrorIs(t, err, ErrInvalid, name)
	}
	_, err = NewImage(sizes, make([]Layer, MaxLayers+1)...)
	assert.ErrorIs(t, err, ErrInvalid)
	_, err = short.Stat()
	assert.NoError(t, err, "the file remains the caller's after an error")
	_, err = NewImage(sizes, Layer{File: short, Extents: []Extent{{0, 3 * page}}})
	assert.NoError(t, err)
}

func TestCloseAndRetain(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 1))
	sizes := []int64{16 * page}
	model := make([]byte, total(sizes))
	layer := randomLayer(t, rng, model, sizes, []Extent{{4 * page, 4 * page}})
	image, err := NewImage(sizes, layer)
	require.NoError(t, err)
	mem := reserve(t, sizes...)
	require.NoError(t, image.Retain())
	require.NoError(t, image.Map(mem))
	require.NoError(t, image.Close())
	require.NoError(t, image.Map(mem), "one reference is left")
	child, err := image.Capture(mem)
	require.NoError(t, err)
	require.NoError(t, image.Close())

	assert.ErrorIs(t, image.Close(), os.ErrClosed)
	assert.ErrorIs(t, image.Retain(), os.ErrClosed)
	assert.ErrorIs(t, image.Map(mem), os.ErrClosed)
	_, err = image.Changed(mem)
	assert.ErrorIs(t, err, os.ErrClosed)
	_, err = image.Capture(mem)
	assert.ErrorIs(t, err, os.ErrClosed)
	requireContent(t, model, mem, "mapped memory outlives the image")

	require.NoError(t, child.Map(mem), "the child shares the file")
	requireContent(t, model, mem, "")
	require.NoError(t, child.Close())
	_, err = layer.File.Stat()
	assert.ErrorIs(t, err, os.ErrClosed, "the last image closes the file")
}

func TestNothingLeaks(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	sizes := []int64{4 << 20}
	cycle := func() {
		model := make([]byte, total(sizes))
		var layers []Layer
		for range 3 {
			list := scattered(rng, total(sizes), page, 100)
			mem, err := Reserve(sizes)
			require.NoError(t, err)
			for _, e := range list {
				fill(model[e.Off:e.end()], rng)
			}
			copy(mem[0], model)
			f, err := os.CreateTemp("", "layer")
			require.NoError(t, err)
			require.NoError(t, os.Remove(f.Name()))
			require.NoError(t, WriteLayer(f, mem, list))
			require.NoError(t, Release(mem))
			layers = append(layers, Layer{File: f, Extents: list})
		}
		image, err := NewImage(sizes, layers...)
		require.NoError(t, err)
		mem, err := Reserve(sizes)
		require.NoError(t, err)
		for range 20 {
			require.NoError(t, image.Map(mem))
			mem[0][rng.IntN(len(mem[0]))] ^= 1
			_, err := image.Changed(mem)
			require.NoError(t, err)
			_, err = Touched(mem)
			require.NoError(t, err)
			child, err := image.Capture(mem)
			require.NoError(t, err)
			require.NoError(t, image.Close())
			image = child
		}
		require.NoError(t, image.Close())
		require.NoError(t, Release(mem))
	}
	fds := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(list)
	}
	maps := func() int {
		text, err := os.ReadFile("/proc/self/maps")
		require.NoError(t, err)
		return strings.Count(string(text), "guest-memory") + strings.Count(string(text), "layer")
	}
	cycle()
	before := fds()
	for range 3 {
		cycle()
	}
	assert.Equal(t, before, fds())
	assert.Zero(t, maps())
}

func FuzzNewImage(f *testing.F) {
	seed := func(values ...int64) []byte {
		var b []byte
		for _, v := range values {
			b = fmt.Appendf(b, "%d,", v)
		}
		return b
	}
	f.Add(seed(0, page, 4*page, 2*page), uint8(1))
	f.Add(seed(0, page, page, page, -1, 0, 2*page, page), uint8(2))
	f.Add(seed(1<<62, 1<<62, 4096, -4096), uint8(1))
	f.Add(seed(9223372036854771712, 8192), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, regions uint8) {
		var sizes []int64
		for n := range regions % 4 {
			sizes = append(sizes, int64(n+1)*16*page)
		}
		size := total(sizes)
		layers := make([]Layer, 1)
		var values []int64
		for field := range strings.SplitSeq(string(data), ",") {
			var v int64
			if _, err := fmt.Sscan(field, &v); err == nil {
				values = append(values, v)
			}
		}
		for k := 0; k+1 < len(values); k += 2 {
			if values[k] == -1 {
				layers = append(layers, Layer{})
				continue
			}
			last := &layers[len(layers)-1]
			last.Extents = append(last.Extents, Extent{values[k], values[k+1]})
		}
		for k := range layers {
			layers[k].File = fuzzFile(t, size, layers[k].Extents)
		}
		image, err := NewImage(sizes, layers...)
		if err != nil {
			for _, l := range layers {
				_ = l.File.Close()
			}
			return
		}
		mem, err := Reserve(sizes)
		require.NoError(t, err)
		require.NoError(t, image.Map(mem))
		model := make([]byte, size)
		for _, l := range layers {
			for _, e := range l.Extents {
				_, err := l.File.ReadAt(model[e.Off:e.end()], e.Off)
				require.NoError(t, err)
			}
		}
		requireContent(t, model, mem, "")
		require.NoError(t, image.Close())
		require.NoError(t, Release(mem))
	})
}

// fuzzFile returns a file of size bytes with content in those extents that are within it.
func fuzzFile(t *testing.T, size int64, list []Extent) *os.File {
	f, err := newMemfd(size)
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(uint64(len(list)), 1))
	for _, e := range list {
		if checkExtents([]Extent{e}, size) == nil {
			b := make([]byte, e.Len)
			fill(b, rng)
			_, err := f.WriteAt(b, e.Off)
			require.NoError(t, err)
		}
	}
	return f.File
}
