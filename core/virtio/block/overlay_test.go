package block

import (
	"bytes"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"
)

func readAll(t testing.TB, b Backend) []byte {
	p := make([]byte, b.Size())
	var v Vec
	v.Reset(p)
	require.NoError(t, b.ReadV(&v, 0, b.Size()))
	require.Zero(t, v.Len())
	return p
}

func writeAt(t testing.TB, b Backend, off int64, p []byte) {
	var v Vec
	v.Reset(p)
	require.NoError(t, b.WriteV(&v, off, int64(len(p))))
}

// blocks returns the bytes that the overlay's file takes on the host's disk.
func blocks(t *testing.T, o *Overlay) int64 {
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(o.File().Fd()), &st))
	return st.Blocks * 512
}

func TestOverlayStartsAsItsBase(t *testing.T) {
	content := pattern(64<<10, 1)
	base := raw(t, content, true)
	o := overlay(t, base, 128<<10)
	require.Equal(t, append(append([]byte(nil), content...), make([]byte, 64<<10)...), readAll(t, o), "zeros follow a shorter base")
	require.Empty(t, o.State().Written)
	require.Equal(t, make([]byte, 8192), readAll(t, overlay(t, nil, 8192)))
	require.Zero(t, blocks(t, o))
}

func TestOverlayNeverWritesToBase(t *testing.T) {
	content := pattern(64<<10, 1)
	base := raw(t, content, true)
	o := overlay(t, base, 64<<10)
	writeAt(t, o, 0, make([]byte, 64<<10))
	require.NoError(t, o.Discard(0, 4096))
	require.NoError(t, o.WriteZeroes(4096, 4096, true))
	require.Equal(t, content, readAll(t, base))
	require.NoError(t, o.Close())
	require.Equal(t, content, readAll(t, base), "closing an overlay leaves its base open")
}

// tracking counts the bytes read from a base.
type tracking struct {
	Backend
	read int64
}

func (b *tracking) ReadV(v *Vec, off, n int64) error {
	b.read += n
	return b.Backend.ReadV(v, off, n)
}

func TestOverlayCopiesPartsOnce(t *testing.T) {
	base := &tracking{Backend: raw(t, pattern(64<<10, 1), true)}
	o := overlay(t, base, 64<<10)
	writeAt(t, o, 4096, make([]byte, 8192))
	require.Zero(t, base.read, "whole clusters are not read first")
	writeAt(t, o, 16384+512, make([]byte, 1024))
	require.EqualValues(t, ClusterSize-1024, base.read, "only what the write leaves of the cluster is copied")
	writeAt(t, o, 16384, make([]byte, 512))
	writeAt(t, o, 16384+2048, make([]byte, 2048))
	require.EqualValues(t, ClusterSize-1024, base.read, "and only once")
	require.Equal(t, []Extent{{1, 2}, {4, 1}}, o.State().Written)
}

func TestOverlayGivesSpaceBack(t *testing.T) {
	o := overlay(t, raw(t, pattern(1<<20, 1), true), 1<<20)
	writeAt(t, o, 0, pattern(1<<20, 2))
	full := blocks(t, o)
	require.GreaterOrEqual(t, full, int64(1<<20))
	require.NoError(t, o.Discard(0, 512<<10))
	require.LessOrEqual(t, blocks(t, o), full-(512<<10))
	require.NoError(t, o.WriteZeroes(512<<10, 512<<10, false))
	require.Zero(t, blocks(t, o))
	require.Equal(t, make([]byte, 1<<20), readAll(t, o), "zeros, not the base, are behind the holes")
}

func TestOverlaysShareABase(t *testing.T) {
	content := pattern(256<<10, 1)
	base := raw(t, content, true)
	var all sync.WaitGroup
	for i := range 8 {
		o := overlay(t, base, 256<<10)
		all.Go(func() {
			for c := range int64(64) {
				writeAt(t, o, c*4096+int64(i)*512, pattern(512, byte(i)))
			}
			want := append([]byte(nil), content...)
			for c := range 64 {
				copy(want[c*4096+i*512:], pattern(512, byte(i)))
			}
			if !bytes.Equal(want, readAll(t, o)) {
				t.Errorf("overlay %d differs", i)
			}
		})
	}
	all.Wait()
}

func TestOverlayOnOverlay(t *testing.T) {
	lower := overlay(t, raw(t, pattern(64<<10, 1), true), 64<<10)
	writeAt(t, lower, 512, pattern(512, 77))
	want := readAll(t, lower)
	upper := overlay(t, lower, 64<<10)
	require.Equal(t, want, readAll(t, upper))
	writeAt(t, upper, 1024, pattern(512, 88))
	copy(want[1024:], pattern(512, 88))
	require.Equal(t, want, readAll(t, upper))
}

func TestOverlayStateRoundTrip(t *testing.T) {
	base := raw(t, pattern(1<<20, 1), true)
	o := overlay(t, base, 1<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		writeAt(t, o, rng.Int64N(2040)*512, pattern(int(1+rng.Int64N(8))*512, byte(rng.Uint32())))
	}
	b, err := msgpack.Marshal(o.State())
	require.NoError(t, err)
	var s OverlayState
	require.NoError(t, msgpack.Unmarshal(b, &s))
	require.Equal(t, o.State(), s)

	data, err := os.ReadFile(o.File().Name())
	require.Error(t, err, "the file has no name")
	data = make([]byte, 1<<20)
	_, err = o.File().ReadAt(data, 0)
	require.NoError(t, err)
	r, err := RestoreOverlay(base, s, file(t, data))
	require.NoError(t, err)
	require.True(t, bytes.Equal(readAll(t, o), readAll(t, r)))
	require.Equal(t, s, r.State())
}

func TestRestoreOverlayRefuses(t *testing.T) {
	good := OverlayState{Size: 64 << 10, ClusterSize: ClusterSize, Written: []Extent{{0, 2}, {4, 1}}}
	for name, change := range map[string]func(*OverlayState){
		"size 0":            func(s *OverlayState) { s.Size = 0 },
		"negative size":     func(s *OverlayState) { s.Size = -4096 },
		"size of no sector": func(s *OverlayState) { s.Size++ },
		"huge":              func(s *OverlayState) { s.Size = 1 << 62 },
		"longer than file":  func(s *OverlayState) { s.Size = 1 << 20 },
		"cluster size":      func(s *OverlayState) { s.ClusterSize = 0 },
		"empty extent":      func(s *OverlayState) { s.Written = []Extent{{3, 0}} },
		"negative extent":   func(s *OverlayState) { s.Written = []Extent{{-1, 1}} },
		"negative count":    func(s *OverlayState) { s.Written = []Extent{{1, -1}} },
		"descending":        func(s *OverlayState) { s.Written = []Extent{{4, 1}, {0, 1}} },
		"overlapping":       func(s *OverlayState) { s.Written = []Extent{{4, 2}, {5, 1}} },
		"beyond the end":    func(s *OverlayState) { s.Written = []Extent{{15, 2}} },
		"overflow":          func(s *OverlayState) { s.Written = []Extent{{1, 1<<63 - 1}} },
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			change(&s)
			_, err := RestoreOverlay(nil, s, file(t, make([]byte, 64<<10)))
			require.Error(t, err)
		})
	}
	_, err := RestoreOverlay(nil, good, file(t, make([]byte, 64<<10)))
	require.NoError(t, err)
	_, err = NewOverlay(nil, MaxOverlaySize+4096, file(t, nil))
	require.Error(t, err)
}

func TestOverlayOfOddSize(t *testing.T) {
	// The last cluster is cut short: 3 sectors.
	content := pattern(4096+3*512, 1)
	o := overlay(t, raw(t, content, true), int64(len(content)))
	writeAt(t, o, 4096+512, pattern(512, 9))
	copy(content[4096+512:], pattern(512, 9))
	require.Equal(t, content, readAll(t, o))
	require.NoError(t, o.Discard(4096, 3*512))
	require.Equal(t, append(content[:4096:4096], make([]byte, 3*512)...), readAll(t, o))
}

func TestOverlayFailedWriteChangesNothing(t *testing.T) {
	content := pattern(64<<10, 1)
	base := raw(t, content, true)
	ro, err := os.Open(file(t, make([]byte, 64<<10)).Name())
	require.NoError(t, err)
	o, err := RestoreOverlay(base, OverlayState{Size: 64 << 10, ClusterSize: ClusterSize}, ro)
	require.NoError(t, err)
	var v Vec
	v.Reset(make([]byte, 8192))
	require.Error(t, o.WriteV(&v, 4096, 8192))
	require.Error(t, o.WriteZeroes(4096, 8192, true))
	require.Equal(t, content, readAll(t, o))
}

func TestMapRuns(t *testing.T) {
	o := overlay(t, nil, 300*ClusterSize)
	o.mark(60, 200)
	for _, tt := range []struct {
		first, limit, end int64
		written           bool
	}{{0, 300, 60, false}, {0, 10, 10, false}, {60, 300, 200, true}, {63, 300, 200, true}, {64, 128, 128, true},
		{199, 300, 200, true}, {200, 300, 300, false}, {250, 300, 300, false}} {
		end, written := o.run(tt.first, tt.limit)
		require.Equal(t, tt.end, end, "%+v", tt)
		require.Equal(t, tt.written, written, "%+v", tt)
	}
}
