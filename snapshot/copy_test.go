package snapshot

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestFlatten(t *testing.T) {
	s := openStore(t)
	base, top, upper := full("base"), diff("top", "base"), small("upper")
	upper.base, upper.name, upper.workingSet, upper.little = "top", "flat", []byte("set"), false
	bake(t, s, base, top, upper)
	require.NoError(t, s.Flatten(context.Background(), "upper", "flat"))
	require.ErrorIs(t, s.Flatten(context.Background(), "upper", "flat"), ErrExists)
	require.ErrorIs(t, s.Flatten(context.Background(), "nothing", "other"), ErrNotFound)
	for _, id := range []string{"upper", "top", "base"} {
		require.NoError(t, s.Remove(context.Background(), id))
	}
	snap := load(t, s, "flat", VerifyAlways)
	requireHolds(t, snap, base, top, upper)
	require.Empty(t, snap.Manifest.Base)
	require.Len(t, snap.Memory, 1)
	require.Equal(t, "flat", snap.Manifest.Name)
	require.Equal(t, "fingerprint of upper", snap.Manifest.Fingerprint)
	require.JSONEq(t, `{"of":"upper"}`, string(snap.Manifest.Meta))
	require.Equal(t, "set", string(snap.WorkingSet))
	info, _, err := s.Inspect("flat")
	require.NoError(t, err)
	require.Less(t, info.Bytes, int64(5<<20), "holes stay holes")
	requireNothingLeft(t, s)
}

func TestFlattenDoesNotPassOnDamage(t *testing.T) {
	s := openStore(t)
	top := small("top")
	top.base = "base"
	bake(t, s, small("base"), top)
	rewrite(t, s.path("base", diskFile), flip(7*PageSize))
	forged := openPartOf(t, s, "base").identity
	require.NoError(t, os.WriteFile(s.path("base", verifiedFile), seal(verifiedKind, 1, []byte(forged)), 0o600))
	require.ErrorIs(t, s.Flatten(context.Background(), "top", "flat"), ErrCorrupt)
	require.NoDirExists(t, s.path("flat"))
	requireNothingLeft(t, s)
}

func TestMerge(t *testing.T) {
	const size = 40
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		var layers []Layer
		want := make([]int, size)
		for i := range 4 {
			var l Layer
			for off := r.Int64N(6); off < size; {
				n := min(1+r.Int64N(8), size-off)
				l.Extents = append(l.Extents, pages(off, n))
				for k := off; k < off+n; k++ {
					want[k] = i + 1
				}
				off += n + r.Int64N(8)
			}
			layers = append(layers, l)
		}
		got := make([]int, size)
		var next int64
		for _, p := range merge(layers) {
			require.GreaterOrEqual(t, p.Off, next)
			require.Positive(t, p.Len)
			next = p.Off + p.Len
			for k := p.Off / PageSize; k < next/PageSize; k++ {
				got[k] = p.layer + 1
			}
		}
		require.Equal(t, want, got)
	}
}

func TestCopyExtents(t *testing.T) {
	dir := t.TempDir()
	create := func(dir, name string, data []byte) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		_, err = f.WriteAt(data, 0)
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
	src := create(dir, "src", data)
	require.NoError(t, unix.Fallocate(int(src.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 64*PageSize, 64*PageSize))
	clear(data[64*PageSize : 128*PageSize])
	extents := []Extent{pages(1, 1), pages(32, 64), pages(120, 400)}
	for name, dst := range map[string]*os.File{
		"same file system":  create(dir, "same", bytes.Repeat([]byte{'x'}, 200*PageSize)),
		"empty":             create(dir, "empty", nil),
		"other file system": create(otherFileSystem(t), "other", bytes.Repeat([]byte{'x'}, 200*PageSize)),
	} {
		before, err := os.ReadFile(dst.Name())
		require.NoError(t, err)
		require.NoError(t, CopyExtents(dst, src, extents), name)
		want := make([]byte, 520*PageSize)
		copy(want, before)
		for _, e := range extents {
			copy(want[e.Off:], data[e.Off:e.Off+e.Len])
		}
		got, err := os.ReadFile(dst.Name())
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), name)
		start, _, err := nextData(dst, 70*PageSize, 96*PageSize)
		require.NoError(t, err)
		require.EqualValues(t, 96*PageSize, start, "%s: the hole stays one", name)
	}
	// As where the kernel cannot copy.
	dst := create(dir, "by hand", bytes.Repeat([]byte{'x'}, 3<<20))
	c := copier{ctx: context.Background(), dst: dst, src: src, noClone: true, noRange: true}
	require.NoError(t, c.copy(0, int64(len(data))))
	got, err := os.ReadFile(dst.Name())
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))

	err = CopyExtents(create(dir, "short", nil), src, []Extent{pages(700, 200)})
	require.Error(t, err)
	require.Equal(t, "src", errorOf(t, err).File)
	readOnly, err := os.Open(src.Name())
	require.NoError(t, err)
	defer readOnly.Close()
	require.ErrorIs(t, CopyExtents(readOnly, src, extents), unix.EBADF)
}

// otherFileSystem returns a directory that is not on the file system of the tests' temporary files, if there is one.
func otherFileSystem(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "snapshot-test-")
	if err != nil {
		t.Logf("nothing is copied between file systems: %v", err)
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// scripts/test-reflink runs this on a file system that has reflinks.
func TestCopiesShareBlocksWhereTheFileSystemCan(t *testing.T) {
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	src, dst := open("src"), open("dst")
	data := make([]byte, 32<<20)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	_, err := src.Write(data)
	require.NoError(t, err)
	probe := copier{ctx: context.Background(), dst: open("probe"), src: src}
	if !probe.clone(0, PageSize) && os.Getenv("SUPERMACHINE_REQUIRE_REFLINK") == "" {
		t.Skip("this file system has no reflinks; scripts/test-reflink makes one that has")
	}
	free := func() int64 {
		unix.Sync()
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &st))
		return int64(st.Bfree) * st.Bsize
	}
	before := free()
	require.NoError(t, CopyExtents(dst, src, []Extent{{Off: 0, Len: 16 << 20}, {Off: 20 << 20, Len: 12 << 20}}))
	require.Less(t, before-free(), int64(4<<20), "the copy takes blocks of its own")
	got, err := os.ReadFile(dst.Name())
	require.NoError(t, err)
	copy(data[16<<20:20<<20], make([]byte, 4<<20))
	require.True(t, bytes.Equal(data, got))
	_, err = dst.WriteAt([]byte("changed"), 5)
	require.NoError(t, err)
	b := make([]byte, 7)
	_, err = src.ReadAt(b, 5)
	require.NoError(t, err)
	require.Equal(t, data[5:12], b, "what is written to a copy stays in it")
}
