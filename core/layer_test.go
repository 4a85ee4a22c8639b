package core

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/virtio/block"
)

// modelled is a scratch disk, and what it should hold.
type modelled struct {
	*scratch
	want []byte
}

const testDisk = 64 * block.ClusterSize

// bottom returns the layer below all others, a file with random content.
func bottom(t *testing.T, dir string, rnd *rand.ChaCha8) (*layer, []byte) {
	t.Helper()
	content := make([]byte, testDisk)
	rnd.Read(content)
	path := filepath.Join(dir, "bottom")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	raw, err := block.OpenRaw(path, true)
	require.NoError(t, err)
	return newLayer(raw, nil), content
}

// over returns an empty disk over a layer, whose reference stays the caller's.
func over(t *testing.T, dir string, below *layer, content []byte) *modelled {
	t.Helper()
	s, err := newScratch(dir, below.hold())
	require.NoError(t, err)
	return &modelled{s, slices.Clone(content)}
}

func (m *modelled) write(t *testing.T, rnd *rand.ChaCha8) {
	t.Helper()
	r := rand.New(rnd)
	n := int64(1+r.IntN(24)) * block.SectorSize
	off := r.Int64N((testDisk-n)/block.SectorSize+1) * block.SectorSize
	data := make([]byte, n)
	var err error
	if r.IntN(5) == 0 {
		err = m.WriteZeroes(off, n, true)
	} else {
		rnd.Read(data)
		var v block.Vec
		v.Reset(data)
		err = m.WriteV(&v, off, n)
	}
	require.NoError(t, err)
	copy(m.want[off:], data)
}

func contentOf(t *testing.T, b block.Backend) []byte {
	t.Helper()
	got := make([]byte, b.Size())
	var v block.Vec
	v.Reset(got)
	require.NoError(t, b.ReadV(&v, 0, b.Size()))
	return got
}

func (m *modelled) check(t *testing.T, why string) {
	t.Helper()
	require.True(t, bytes.Equal(m.want, contentOf(t, m)), why)
}

func (m *modelled) splitOff(t *testing.T, dir string, keep *layer) *layer {
	t.Helper()
	l, err := m.split(dir, keep)
	require.NoError(t, err)
	return l
}

// filesIn counts the open files below a directory, those without a name too. Other tests' files come and go meanwhile.
func filesIn(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(target, dir) {
			n++
		}
	}
	return n
}

func TestSplitLayersKeepWhatTheDiskHeld(t *testing.T) {
	dir, rnd := t.TempDir(), rand.NewChaCha8([32]byte{1})
	low, content := bottom(t, dir, rnd)
	disk := over(t, dir, low, content)
	disk.write(t, rnd)
	then := slices.Clone(disk.want)
	l := disk.splitOff(t, dir, nil)
	other := over(t, dir, l, then)
	for range 20 {
		disk.write(t, rnd)
		other.write(t, rnd)
	}
	require.Equal(t, then, contentOf(t, l), "neither writes through")
	disk.check(t, "the disk itself")
	other.check(t, "another over the same layer")
	require.NoError(t, disk.Close())
	other.check(t, "the layer is not the disk's alone")
	for _, closer := range []interface{ Close() error }{other, l, low} {
		require.NoError(t, closer.Close())
	}
	require.Zero(t, filesIn(t, dir))
}

// A file that was closed twice would report it.
func TestLayersAreClosedOnceByTheLastWhoHoldsThem(t *testing.T) {
	dir, rnd := t.TempDir(), rand.NewChaCha8([32]byte{2})
	low, content := bottom(t, dir, rnd)
	require.Equal(t, 1, filesIn(t, dir))
	parent := over(t, dir, low, content)
	same := parent.splitOff(t, dir, nil)
	require.Same(t, low, same, "nothing was written")
	require.NoError(t, same.Close())
	parent.write(t, rnd)
	content = slices.Clone(parent.want)
	l := parent.splitOff(t, dir, nil)
	require.Equal(t, 3, filesIn(t, dir), "the bottom, the layer, the disk's own")
	var disks []*modelled
	for range 3 {
		disks = append(disks, over(t, dir, l, content))
	}
	require.Equal(t, 6, filesIn(t, dir))
	require.NoError(t, low.Close())
	require.NoError(t, l.Close())
	require.NoError(t, parent.Close())
	require.Equal(t, 5, filesIn(t, dir))
	for i, d := range disks {
		d.check(t, "what is left")
		require.NoError(t, d.Close())
		require.Equal(t, []int{4, 3, 0}[i], filesIn(t, dir))
	}
	_, err := newScratch("/dev/null", bottomOnly(t, dir, rnd))
	require.Error(t, err)
	require.Zero(t, filesIn(t, dir), "a failure has taken over the reference too")
}

func bottomOnly(t *testing.T, dir string, rnd *rand.ChaCha8) *layer {
	l, _ := bottom(t, dir, rnd)
	return l
}

func TestTooManyLayersAreMergedAboveTheOneToKeep(t *testing.T) {
	for name, kept := range map[string]int{"down to the bottom": 0, "down to a snapshot's": 3} {
		t.Run(name, func(t *testing.T) {
			dir, rnd := t.TempDir(), rand.NewChaCha8([32]byte{3})
			low, content := bottom(t, dir, rnd)
			disk := over(t, dir, low, content)
			var keep *layer
			for range kept {
				disk.write(t, rnd)
				if keep != nil {
					require.NoError(t, keep.Close())
				}
				keep = disk.splitOff(t, dir, nil)
			}
			limit := maxLayers + keep.depth()
			merges := 0
			for range 3 * maxLayers {
				disk.write(t, rnd)
				before := disk.below
				l := disk.splitOff(t, dir, keep)
				if l.below != before {
					merges++
					_, reached, err := l.written(before)
					require.NoError(t, err)
					require.False(t, reached, "what was merged is no longer below")
				}
				require.LessOrEqual(t, l.depth(), limit)
				if keep != nil {
					_, reached, err := l.written(keep)
					require.NoError(t, err)
					require.True(t, reached, "the snapshot's layer stays")
				}
				require.Equal(t, disk.want, contentOf(t, l))
				disk.check(t, "over what was merged")
				require.NoError(t, l.Close())
				require.LessOrEqual(t, filesIn(t, dir), limit+2, "layers that were merged are closed")
			}
			require.Greater(t, merges, 1)
			require.NoError(t, disk.Close())
			require.NoError(t, keep.Close())
			require.NoError(t, low.Close())
			require.Zero(t, filesIn(t, dir))
		})
	}
}

func TestWrittenHoldsAllThatDiffers(t *testing.T) {
	dir, rnd := t.TempDir(), rand.NewChaCha8([32]byte{4})
	low, content := bottom(t, dir, rnd)
	disk := over(t, dir, low, content)
	type point struct {
		layer *layer
		want  []byte
	}
	points := []point{{nil, make([]byte, testDisk)}, {low, content}}
	for range maxLayers - 2 { // no merge
		disk.write(t, rnd)
		points = append(points, point{disk.splitOff(t, dir, nil), slices.Clone(disk.want)})
	}
	for i, top := range points[1:] {
		for _, until := range points[:i+2] {
			extents, reached, err := top.layer.written(until.layer)
			require.NoError(t, err)
			require.True(t, reached)
			in := make([]bool, testDisk/block.ClusterSize)
			next := int64(-1)
			for _, e := range extents {
				require.Greater(t, e.First, next, "ascending, not touching")
				for c := e.First; c < e.First+e.Count; c++ {
					in[c] = true
				}
				next = e.First + e.Count
			}
			for c := range in {
				from, to := c*block.ClusterSize, (c+1)*block.ClusterSize
				require.True(t, in[c] || bytes.Equal(top.want[from:to], until.want[from:to]), "cluster %d", c)
			}
			if top.layer == until.layer {
				require.Empty(t, extents)
			}
		}
		if i+2 < len(points) {
			_, reached, err := top.layer.written(points[i+2].layer)
			require.NoError(t, err)
			require.False(t, reached, "a layer above is not below")
		}
	}
	for _, p := range points[1:] {
		require.NoError(t, p.layer.Close())
	}
	require.NoError(t, disk.Close())
	require.Zero(t, filesIn(t, dir))
}

// A family of VMs: they write, split, have children and end in random order, as forks do.
func TestRandomWritesThroughAHundredSplits(t *testing.T) {
	dir, rnd := t.TempDir(), rand.NewChaCha8([32]byte{5})
	r := rand.New(rnd)
	low, content := bottom(t, dir, rnd)
	family := []*modelled{over(t, dir, low, content)}
	require.NoError(t, low.Close())
	for range 100 {
		m := family[r.IntN(len(family))]
		for range r.IntN(8) {
			m.write(t, rnd)
		}
		l := m.splitOff(t, dir, nil)
		for range r.IntN(3) {
			family = append(family, over(t, dir, l, m.want))
		}
		require.NoError(t, l.Close())
		for len(family) > 12 {
			i := r.IntN(len(family))
			require.NoError(t, family[i].Close())
			family = slices.Delete(family, i, i+1)
		}
		for _, m := range family {
			m.check(t, "some VM of the family")
		}
	}
	for _, m := range family {
		require.NoError(t, m.Close())
	}
	require.Zero(t, filesIn(t, dir))
}

func TestUnionIsAscendingAndDoesNotTouch(t *testing.T) {
	x := func(first, count int64) block.Extent { return block.Extent{First: first, Count: count} }
	for _, tt := range []struct{ a, b, want []block.Extent }{
		{nil, nil, nil},
		{[]block.Extent{x(5, 1)}, []block.Extent{x(0, 2)}, []block.Extent{x(0, 2), x(5, 1)}},
		{[]block.Extent{x(0, 2)}, []block.Extent{x(2, 3)}, []block.Extent{x(0, 5)}},
		{[]block.Extent{x(0, 9)}, []block.Extent{x(2, 3), x(8, 4)}, []block.Extent{x(0, 12)}},
		{[]block.Extent{x(1<<40, 1)}, []block.Extent{x(0, 1)}, []block.Extent{x(0, 1), x(1<<40, 1)}},
	} {
		require.Equal(t, tt.want, union(tt.a, tt.b))
	}
}
