package memory

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// bothWays runs a test with the kernel's PAGEMAP_SCAN, if it has that, and without.
func bothWays(t *testing.T, test func(t *testing.T)) {
	t.Run("scan", test)
	t.Run("read", func(t *testing.T) {
		noPagemapScan = true
		defer func() { noPagemapScan = false }()
		test(t)
	})
}

func TestChangedIsExact(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		sizes := []int64{64 * page, 32 * page}
		model := make([]byte, total(sizes))
		image := newImage(t, sizes, randomLayer(t, rng, model, sizes, []Extent{{8 * page, 16 * page}, {60 * page, 20 * page}}))
		mem := reserve(t, sizes...)
		require.NoError(t, image.Map(mem))
		list, err := image.Changed(mem)
		require.NoError(t, err)
		assert.Empty(t, list, "nothing was touched")

		sum := byte(0)
		for _, b := range flat(mem) {
			sum += b
		}
		list, err = image.Changed(mem)
		require.NoError(t, err)
		assert.Empty(t, list, "all was read (%d)", sum)

		low, high := mem[0], mem[1]
		copy(low[10*page:11*page], model[10*page:]) // the same content
		low[0] = 0                                  // zero over zeros
		clear(low[12*page : 14*page])               // zeros over content
		low[13*page] = model[13*page]               //
		low[15*page+100]++                          // a change that is undone
		low[15*page+100]--                          //
		low[16*page+page-1]++                       // the last byte of a page
		low[40*page+5] = 1                          // into a hole
		low[63*page]++                              // on both sides of the regions' border
		high[0]++                                   //
		high[31*page] = 9                           // the last page
		list, err = image.Changed(mem)
		require.NoError(t, err)
		assert.Equal(t, []Extent{{12 * page, 2 * page}, {16 * page, page}, {40 * page, page}, {63 * page, 2 * page}, {95 * page, page}}, list)

		n, err := PrivateBytes(mem)
		require.NoError(t, err)
		assert.EqualValues(t, 10*page, n)
		require.NoError(t, image.Reset(mem))
		requireContent(t, model, mem, "")
		list, err = image.Changed(mem)
		require.NoError(t, err)
		assert.Empty(t, list)
	})
}

func TestChangedOfBootedMemory(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		mem := reserve(t, 600*page, 5000*page)
		assert.Zero(t, mem[0][7*page]) // the kernel's page of zeros
		mem[0][8*page] = 0             // a page of zeros of its own
		mem[0][9*page] = 1
		mem[1][0] = 1
		for p := 700; p < 4000; p++ {
			mem[1][p*page] = 1
		}
		list, err := (*Image)(nil).Changed(mem)
		require.NoError(t, err)
		assert.Equal(t, []Extent{{9 * page, page}, {600 * page, page}, {1300 * page, 3300 * page}}, list)
		n, err := PrivateBytes(mem)
		require.NoError(t, err)
		assert.EqualValues(t, 3303*page, n)
	})
}

// TestChangedWithManyRuns has more runs of pages than one look at the page tables returns.
func TestChangedWithManyRuns(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		const pages = 40000
		mem := reserve(t, pages*page)
		var want []Extent
		for p := int64(0); p < pages; p += 3 {
			mem[0][p*page] = 1
			want = append(want, Extent{p * page, page})
		}
		list, err := (*Image)(nil).Changed(mem)
		require.NoError(t, err)
		require.Equal(t, len(want), len(list))
		for k := range want {
			require.Equal(t, want[k], list[k], "extent %d", k)
		}
	})
}

func TestWriteLayer(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	sizes := []int64{32 * page, 16 * page}
	mem := reserve(t, sizes...)
	model := make([]byte, total(sizes))
	list := []Extent{{3 * page, 2 * page}, {30 * page, 4 * page}}
	for _, e := range list {
		fill(model[e.Off:e.end()], rng)
	}
	setAll(mem, model)
	mem[0][10*page] = 1 // not asked for
	f := layerFile(t)
	require.NoError(t, WriteLayer(f, mem, list))
	got, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	assert.True(t, bytes.Equal(model, got))
	assert.ErrorContains(t, WriteLayer(f, mem, list), "not empty")
	empty := layerFile(t)
	assert.ErrorIs(t, WriteLayer(empty, mem, []Extent{{47 * page, 2 * page}}), ErrInvalid)
	require.NoError(t, WriteLayer(empty, mem, nil))
	st, err := empty.Stat()
	require.NoError(t, err)
	assert.Equal(t, total(sizes), st.Size())
	readOnly := reopen(t, layerFile(t))
	assert.Error(t, WriteLayer(readOnly, mem, list))
}

func TestDiffering(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 2))
	sizes := []int64{16 * page, 16 * page}
	model := make([]byte, total(sizes))
	image := newImage(t, sizes, randomLayer(t, rng, model, sizes, []Extent{{4 * page, 16 * page}}))
	mem := reserve(t, sizes...)
	setAll(mem, model)
	mem[0][2*page] = 1
	clear(mem[0][8*page : 9*page])
	mem[1][10*page] = 1 // not asked for
	asked := []Extent{{0, 20 * page}}
	list, err := image.Differing(mem, asked)
	require.NoError(t, err)
	assert.Equal(t, []Extent{{2 * page, page}, {8 * page, page}}, list)
	list, err = (*Image)(nil).Differing(mem, asked)
	require.NoError(t, err)
	assert.Equal(t, []Extent{{2 * page, page}, {4 * page, 4 * page}, {9 * page, 11 * page}}, list)
	_, err = image.Differing(mem, []Extent{{0, 33 * page}})
	assert.ErrorIs(t, err, ErrInvalid)
}

func TestShares(t *testing.T) {
	defer func(n int64) { minShare = n }(minShare)
	minShare = page
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 4))
		l, err := newLayout([]int64{500 * page})
		require.NoError(t, err)
		list := randomExtents(rng, 500, 1+rng.Int64N(400))
		shares := l.shares(list)
		require.LessOrEqual(t, len(shares), workers())
		var at int64
		for _, p := range shares {
			require.Equal(t, at, p.off)
			require.Positive(t, p.len)
			require.Zero(t, p.len%page)
			require.NotEmpty(t, within(pieces(nil, list), []piece{p}), "seed %d: %v of %v", seed, shares, list)
			at = p.end()
		}
		require.Equal(t, l.total, at)
	}
}

// TestUnreadableFileIsAnError breaks the rule for files: what the package itself reads must not end the process.
func TestUnreadableFileIsAnError(t *testing.T) {
	f := layerFile(t)
	mem := reserve(t, page)
	require.NoError(t, f.Truncate(page))
	require.NoError(t, mapFixed(mem[0], int(f.Fd()), 0, readWrite, 0))
	require.NoError(t, f.Truncate(0))
	l, err := layoutOf(mem)
	require.NoError(t, err)
	_, err = l.differing(mem, nil, []Extent{{0, page}}, nil)
	assert.ErrorContains(t, err, "read guest memory")
	assert.Error(t, WriteLayer(layerFile(t), mem, []Extent{{0, page}}))
	assert.PanicsWithValue(t, 7, func() { _ = readGuarded(func() { panic(7) }) })
}

func TestCaptureOfBootedMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 2))
	sizes := []int64{16 << 20, 4 << 20}
	mem := reserve(t, sizes...)
	model := make([]byte, total(sizes))
	for _, e := range scattered(rng, total(sizes), 2*page, 300) {
		fill(model[e.Off:e.end()], rng)
	}
	setAll(mem, model) // all pages are the mapping's own, most of them zeros
	image, err := (*Image)(nil).Capture(mem)
	require.NoError(t, err)
	defer func() { assert.NoError(t, image.Close()) }()
	assert.EqualValues(t, 300*2*page, Bytes(image.Captured()))
	assert.Equal(t, image.Captured(), image.Content())
	require.NoError(t, image.Prepare())
	clone := reserve(t, sizes...)
	require.NoError(t, image.Map(clone))
	assert.LessOrEqual(t, mapped(t, clone), maxMappings)
	requireContent(t, model, clone, "the clone")

	// The parent moves to the image of itself, and gives its pages back.
	require.NoError(t, image.Map(mem))
	n, err := PrivateBytes(mem)
	require.NoError(t, err)
	assert.Zero(t, n)
	mem[0][0]++
	requireContent(t, model, clone, "the clone after the parent wrote")
}

func TestCaptureChains(t *testing.T) {
	defer func(n int64) { minShare = n }(minShare)
	for seed := range uint64(3) {
		minShare = []int64{2 << 20, page, 64 * page}[seed] // one file for each capture, or several
		rng := rand.New(rand.NewPCG(seed, 3))
		sizes := []int64{2 << 20, 1 << 20}
		model := make([]byte, total(sizes))
		var image *Image
		if seed > 0 {
			base := randomLayer(t, rng, model, sizes, scattered(rng, total(sizes), 3*page, 80))
			top := randomLayer(t, rng, model, sizes, scattered(rng, total(sizes), page, 80*int64(seed-1)+1))
			var err error
			image, err = NewImage(sizes, base, top)
			require.NoError(t, err)
		}
		mem := reserve(t, sizes...)
		if image != nil {
			require.NoError(t, image.Map(mem))
		}
		other := reserve(t, sizes...)
		for generation := range 100 {
			for range rng.IntN(60) {
				randomWrite(rng, mem, model)
			}
			if image != nil {
				list, err := image.Changed(mem)
				require.NoError(t, err)
				want := flat(other)
				if generation > 0 {
					requireExact(t, list, want, model)
				}
			}
			child, err := image.Capture(mem)
			require.NoError(t, err)
			if image != nil {
				require.NoError(t, image.Close())
			}
			image = child
			require.NoError(t, image.Map(other))
			require.LessOrEqual(t, mapped(t, other), maxMappings)
			require.LessOrEqual(t, len(image.files), maxCaptured+workers()+2)
			requireContent(t, model, other, "seed %d, generation %d", seed, generation)
			requireContent(t, model, mem, "the parent, seed %d, generation %d", seed, generation)
			if rng.IntN(2) == 0 {
				mem, other = other, mem // go on in the child
				require.NoError(t, image.Map(other))
			} else {
				require.NoError(t, image.Map(mem)) // go on in the parent, from its own image
			}
		}
		requireSaved(t, image, model, sizes, seed > 0)
		require.NoError(t, image.Close())
	}
}

func randomWrite(rng *rand.Rand, mem [][]byte, model []byte) {
	at := rng.Int64N(int64(len(model)))
	n := min(1+rng.Int64N(3*page), int64(len(model))-at)
	b := model[at : at+n]
	switch rng.IntN(4) {
	case 0:
		at -= at % page
		b = model[at : at+min(2*page, int64(len(model))-at)]
		clear(b)
	case 1: // the same again
	default:
		fill(b[:len(b)/8*8], rng)
	}
	for i, region := range mem {
		start := int64(0)
		for _, r := range mem[:i] {
			start += int64(len(r))
		}
		from, to := max(at, start), min(at+int64(len(b)), start+int64(len(region)))
		if from < to {
			copy(region[from-start:to-start], model[from:to])
		}
	}
}

// requireExact checks that list is just the pages in which the two differ.
func requireExact(t *testing.T, list []Extent, old, now []byte) {
	t.Helper()
	var want []Extent
	for at := 0; at < len(now); at += page {
		if !bytes.Equal(old[at:at+page], now[at:at+page]) {
			want = add(want, int64(at), page)
		}
	}
	require.Equal(t, want, list)
}

// requireSaved checks that what Captured says is enough to save the image as a layer of files.
func requireSaved(t *testing.T, image *Image, model []byte, sizes []int64, based bool) {
	t.Helper()
	mem := reserve(t, sizes...)
	require.NoError(t, image.Map(mem))
	list := image.Captured()
	if !based {
		require.Equal(t, list, image.Content())
	}
	f := layerFile(t)
	require.NoError(t, WriteLayer(f, mem, list))
	got, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	for _, e := range list {
		require.True(t, bytes.Equal(model[e.Off:e.end()], got[e.Off:e.end()]))
	}
}

func TestWorkingSet(t *testing.T) {
	bothWays(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(5, 2))
		sizes := []int64{512 * page, 64 * page}
		model := make([]byte, total(sizes))
		image := newImage(t, sizes, randomLayer(t, rng, model, sizes, []Extent{{64 * page, 128 * page}, {520 * page, 30 * page}}))
		mem := reserve(t, sizes...)
		require.NoError(t, image.Map(mem))
		sum := mem[0][70*page] + mem[0][300*page] + mem[1][10*page]
		for _, p := range []int64{100, 101, 400, 511} {
			mem[0][p*page] ^= 1
		}
		mem[1][0] ^= 1
		set, err := Touched(mem)
		require.NoError(t, err)
		assert.Equal(t, []Extent{{100 * page, 2 * page}, {400 * page, page}, {511 * page, 2 * page}}, set.Written, "read %d", sum)
		for _, p := range []int64{70, 300, 522} {
			assert.True(t, holds(set.Read, p*page), "page %d in %v", p, set.Read)
		}

		clone := reserve(t, sizes...)
		require.NoError(t, image.Map(clone))
		require.NoError(t, Prefetch(t.Context(), clone, set))
		requireContent(t, model, clone, "prefetching changes nothing")
		n, err := PrivateBytes(clone)
		require.NoError(t, err)
		assert.EqualValues(t, 5*page, n)
		again, err := Touched(clone)
		require.NoError(t, err)
		assert.Equal(t, set.Written, again.Written)
		for _, e := range set.Read {
			assert.True(t, holds(again.Read, e.Off) && holds(again.Read, e.end()-page), "%v", e)
		}
	})
}

func holds(list []Extent, off int64) bool {
	return slices.ContainsFunc(list, func(e Extent) bool { return off >= e.Off && off < e.end() })
}

func TestPrefetchWhileTheGuestRuns(t *testing.T) {
	rng := rand.New(rand.NewPCG(6, 2))
	sizes := []int64{8 << 20}
	model := make([]byte, total(sizes))
	image := newImage(t, sizes, randomLayer(t, rng, model, sizes, scattered(rng, total(sizes), 4*page, 200)))
	mem := reserve(t, sizes...)
	require.NoError(t, image.Map(mem))
	all := []Extent{{0, total(sizes)}}
	done := make(chan error)
	go func() { done <- Prefetch(context.Background(), mem, WorkingSet{Read: all, Written: all}) }()
	for at := 0; at < len(model); at += page {
		mem[0][at] ^= 0x55
		model[at] ^= 0x55
	}
	require.NoError(t, <-done)
	requireContent(t, model, mem, "")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, Prefetch(ctx, mem, WorkingSet{Read: all}), context.Canceled)
}

func TestHostileWorkingSets(t *testing.T) {
	mem := reserve(t, 16*page)
	for _, list := range [][]Extent{{{0, 17 * page}}, {{-page, page}}, {{4 * page, page}, {0, page}}, {{1 << 62, 1 << 62}}, {{page, 0}}} {
		assert.ErrorIs(t, Prefetch(t.Context(), mem, WorkingSet{Read: list}), ErrInvalid)
		assert.ErrorIs(t, Prefetch(t.Context(), mem, WorkingSet{Written: list}), ErrInvalid)
	}
	n, err := PrivateBytes(mem)
	require.NoError(t, err)
	assert.Zero(t, n)
	assert.NoError(t, Prefetch(t.Context(), mem, WorkingSet{}))
}
