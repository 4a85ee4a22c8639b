package memory

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"
)

const page = PageSize

func TestExtentsAreChecked(t *testing.T) {
	const size = 16 * page
	good := [][]Extent{
		nil,
		{{0, size}},
		{{0, page}, {page, page}, {15 * page, page}},
	}
	for _, list := range good {
		assert.NoError(t, checkExtents(list, size), "%v", list)
	}
	bad := map[string][]Extent{
		"empty":             {{0, 0}},
		"negative length":   {{page, -page}},
		"negative offset":   {{-page, 2 * page}},
		"odd offset":        {{1, page}},
		"odd length":        {{0, page + 1}},
		"behind the end":    {{size, page}},
		"across the end":    {{15 * page, 2 * page}},
		"overflow":          {{page, math.MaxInt64 - page + 1}},
		"far away":          {{math.MaxInt64 - page + 1, page}},
		"overlap":           {{0, 2 * page}, {page, page}},
		"descending":        {{4 * page, page}, {0, page}},
		"the same twice":    {{4 * page, page}, {4 * page, page}},
		"smallest integers": {{math.MinInt64, math.MinInt64}},
		"too many":          make([]Extent, MaxExtents+1),
	}
	for name, list := range bad {
		assert.ErrorIs(t, checkExtents(list, size), ErrInvalid, name)
	}
}

func TestSizesAreChecked(t *testing.T) {
	for _, sizes := range [][]int64{
		nil, {0}, {-page}, {page + 1}, {MaxSize + page}, {MaxSize, page}, {math.MaxInt64 &^ (page - 1), page},
		{page, page, page, page, page, page, page, page, page},
	} {
		_, err := NewImage(sizes)
		assert.ErrorIs(t, err, ErrInvalid, "%v", sizes)
		_, err = Reserve(sizes)
		assert.ErrorIs(t, err, ErrInvalid, "%v", sizes)
	}
}

func TestCoalesce(t *testing.T) {
	list := func() []Extent {
		return []Extent{{0, page}, {2 * page, page}, {6 * page, page}, {7 * page, page}, {100 * page, page}}
	}
	assert.Equal(t, []Extent{{0, page}, {2 * page, page}, {6 * page, 2 * page}, {100 * page, page}}, coalesce(list(), 0, 10))
	assert.Equal(t, []Extent{{0, 3 * page}, {6 * page, 2 * page}, {100 * page, page}}, coalesce(list(), page, 10))
	assert.Equal(t, []Extent{{0, 8 * page}, {100 * page, page}}, coalesce(list(), 0, 2))
	assert.Equal(t, []Extent{{0, 101 * page}}, coalesce(list(), 0, 1))
	assert.Empty(t, coalesce(nil, 0, 1))
}

func TestUnion(t *testing.T) {
	a := []Extent{{0, 2 * page}, {8 * page, 4 * page}}
	b := []Extent{{page, 3 * page}, {9 * page, page}, {12 * page, page}}
	assert.Equal(t, []Extent{{0, 4 * page}, {8 * page, 5 * page}}, Union(a, b))
	assert.Equal(t, a, Union(a, nil))
	assert.Equal(t, a, Union(nil, a))
	assert.Empty(t, Union(nil, nil))
	assert.EqualValues(t, 6*page, Bytes(a))
}

func TestExtentEncodings(t *testing.T) {
	set := WorkingSet{Read: []Extent{{0, page}, {2 * page, page}}, Written: []Extent{{page, page}}}
	text, err := json.Marshal(set)
	require.NoError(t, err)
	assert.JSONEq(t, `{"read":[{"off":0,"len":4096},{"off":8192,"len":4096}],"written":[{"off":4096,"len":4096}]}`, string(text))
	packed, err := msgpack.Marshal(set)
	require.NoError(t, err)
	var back WorkingSet
	require.NoError(t, msgpack.Unmarshal(packed, &back))
	assert.Equal(t, set, back)
}

// TestPlanAgainstModel lays random layers over each other and checks each page of content and plan.
func TestPlanAgainstModel(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		sizes := make([]int64, 1+rng.IntN(3))
		for i := range sizes {
			sizes[i] = (1 + rng.Int64N(300)) * page
		}
		l, err := newLayout(sizes)
		require.NoError(t, err)
		pages := l.total / page
		model := make([]*file, pages)
		var content []piece
		files := make([]*file, 1+rng.IntN(5))
		for i := range files {
			files[i] = new(file)
			list := randomExtents(rng, pages, 1+rng.Int64N(30))
			content = overlay(content, pieces(files[i], list))
			for _, e := range list {
				for p := e.Off / page; p < e.end()/page; p++ {
					model[p] = files[i]
				}
			}
		}
		for p, f := range pagesOf(content, pages) {
			require.Same(t, model[p], f, "seed %d: content of page %d", seed, p)
		}

		target := files[len(files)-1]
		if rng.IntN(2) == 0 {
			target = new(file)
		}
		limit := 3*len(sizes) + rng.IntN(40)
		own := targets{{file: target, len: l.total}}
		plan := l.plan(content, own, limit)
		require.LessOrEqual(t, mappingsOf(l, plan), limit, "seed %d", seed)
		for p, f := range pagesOf(plan, pages) {
			if f == target || f == model[p] {
				continue
			}
			require.Nil(t, model[p], "seed %d: plan of page %d", seed, p)
		}
		filled := 0
		for p, f := range pagesOf(within(content, own.clusters(plan)), pages) {
			if f != nil {
				filled++
				require.Same(t, model[p], f)
			}
		}
		for p, f := range pagesOf(plan, pages) {
			if f == target && model[p] != nil {
				filled--
			}
		}
		require.Zero(t, filled)
	}
}

// pagesOf returns each page's file, and checks the order of the list.
func pagesOf(list []piece, pages int64) []*file {
	out := make([]*file, pages)
	var next int64
	for _, p := range list {
		if p.off < next || p.len <= 0 {
			panic("pieces are not in order")
		}
		next = p.end()
		for k := p.off / page; k < p.end()/page; k++ {
			out[k] = p.file
		}
	}
	return out
}

// mappingsOf counts the mappings of a plan, those of zeros between included.
func mappingsOf(l layout, plan []piece) int {
	n := 0
	for i, start := range l.starts {
		at := start
		for _, p := range plan {
			if p.off >= start && p.off < start+l.sizes[i] {
				if p.off > at {
					n++
				}
				n++
				at = p.end()
			}
		}
		if at < start+l.sizes[i] {
			n++
		}
	}
	return n
}

func randomExtents(rng *rand.Rand, pages, longest int64) []Extent {
	var list []Extent
	for at := rng.Int64N(pages); at < pages; {
		n := min(1+rng.Int64N(longest), pages-at)
		list = append(list, Extent{Off: at * page, Len: n * page})
		at += n + rng.Int64N(2*longest)
	}
	return list
}
