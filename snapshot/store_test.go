package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRoundTrip(t *testing.T) {
	s := openStore(t)
	base, top := full("base"), diff("top", "base")
	top.name, top.workingSet = "the top one", []byte("pages")
	bake(t, s, base, top)
	requireNothingLeft(t, s)
	for _, s := range []*Store{s, reopen(t, s)} {
		for _, v := range []Verify{VerifyOnce, VerifyAlways, VerifyNever} {
			snap := load(t, s, "base", v)
			requireHolds(t, snap, base)
			require.Nil(t, snap.WorkingSet)
			snap = load(t, s, "top", v)
			requireHolds(t, snap, base, top)
			require.Len(t, snap.Memory, 2)
			require.Equal(t, "pages", string(snap.WorkingSet))
			require.JSONEq(t, `{"of":"top"}`, string(snap.Manifest.Meta))
			require.Equal(t, CPU{Vendor: "Test", Family: 6, Model: 1}, snap.Manifest.CPU)
			require.Equal(t, "base", snap.Manifest.Base)
			require.NoError(t, snap.Close())
			require.NoError(t, snap.Close())
		}
	}
}

func TestImageTakesTheMemory(t *testing.T) {
	s := openStore(t)
	bake(t, s, full("base"), diff("top", "base"))
	snap := load(t, s, "top", VerifyOnce)
	image, err := snap.Image()
	require.NoError(t, err)
	require.Equal(t, []int64{testMemory / 2, testMemory / 2}, image.Sizes())
	_, err = snap.Image()
	require.ErrorIs(t, err, ErrInvalid)
	require.NoError(t, snap.Close())
	require.NoError(t, image.Close())
}

func TestSnapshotWithoutDisk(t *testing.T) {
	s := openStore(t)
	w, err := s.Create(context.Background(), "a")
	require.NoError(t, err)
	require.NoError(t, w.Commit(context.Background(), Contents{Regions: []Region{{Size: PageSize}}}))
	snap := load(t, s, "a", VerifyAlways)
	require.Empty(t, snap.Disk)
	require.Empty(t, snap.State)
	require.Len(t, snap.Memory, 1)
	require.WithinDuration(t, time.Now(), snap.Manifest.Created, time.Minute)
}

func TestCreateChecksArguments(t *testing.T) {
	s := openStore(t)
	ctx := context.Background()
	for _, id := range []string{"", ".", "..", "a/b", "../a", ".tmp-a", "A", "ä", "a_b", "a\x00", strings.Repeat("a", 65)} {
		_, err := s.Create(ctx, id)
		require.ErrorIs(t, err, ErrInvalid, "%q", id)
		if id != "" { // which means that there is no base
			_, err = s.CreateDiff(ctx, "x", id)
			require.ErrorIs(t, err, ErrInvalid, "%q", id)
		}
		_, err = s.Load(id, LoadOptions{})
		require.ErrorIs(t, err, ErrInvalid, "%q", id)
		_, _, err = s.Inspect(id)
		require.ErrorIs(t, err, ErrInvalid, "%q", id)
		for _, err := range []error{s.Remove(ctx, id), s.Touch(id), s.SetWorkingSet(id, nil), s.Flatten(ctx, id, "x"), s.Flatten(ctx, "x", id)} {
			require.ErrorIs(t, err, ErrInvalid, "%q", id)
		}
	}
	_, err := s.CreateDiff(ctx, "a", "a")
	require.ErrorIs(t, err, ErrInvalid)
	_, err = s.CreateDiff(ctx, "a", "b")
	require.ErrorIs(t, err, ErrNotFound)
	require.Equal(t, "b", errorOf(t, err).ID)
	bake(t, s, small("a"))
	_, err = s.Create(ctx, "a")
	require.ErrorIs(t, err, ErrExists)
	_, err = s.Load("a", LoadOptions{Verify: 9})
	require.ErrorIs(t, err, ErrInvalid)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = s.Create(canceled, "b")
	require.ErrorIs(t, err, context.Canceled)
	requireNothingLeft(t, s)
}

func TestCommitChecksContents(t *testing.T) {
	s := openStore(t)
	sized := func(id, base string) spec { c := small(id); c.base, c.little = base, false; return c }
	bake(t, s, sized("base", ""))
	for name, spoil := range map[string]func(*Contents){
		"extent beyond the end":    func(c *Contents) { c.MemoryExtents = []Extent{pages(4095, 2)} },
		"extents overlap":          func(c *Contents) { c.MemoryExtents = []Extent{pages(0, 2), pages(1, 2)} },
		"extents not ascending":    func(c *Contents) { c.MemoryExtents = []Extent{pages(9, 2), pages(1, 2)} },
		"extent not aligned":       func(c *Contents) { c.MemoryExtents = []Extent{{Off: 512, Len: PageSize}} },
		"length not aligned":       func(c *Contents) { c.MemoryExtents = []Extent{{Off: 0, Len: 512}} },
		"empty extent":             func(c *Contents) { c.MemoryExtents = []Extent{{Off: 0, Len: 0}} },
		"negative extent":          func(c *Contents) { c.MemoryExtents = []Extent{{Off: -PageSize, Len: PageSize}} },
		"overflowing extent":       func(c *Contents) { c.MemoryExtents = []Extent{{Off: PageSize, Len: 1<<63 - PageSize}} },
		"data outside of extents":  func(c *Contents) { c.MemoryExtents = c.MemoryExtents[:0] },
		"no regions":               func(c *Contents) { c.Regions = nil },
		"regions overlap":          func(c *Contents) { c.Regions[1].Addr = PageSize },
		"region wraps around":      func(c *Contents) { c.Regions[1].Addr = 1<<64 - PageSize },
		"region not aligned":       func(c *Contents) { c.Regions[1].Addr++ },
		"region too large":         func(c *Contents) { c.Regions[1].Size = MaxMemory },
		"memory longer than that":  func(c *Contents) { c.Regions = []Region{{Size: PageSize}}; c.MemoryExtents = nil },
		"disk extent beyond":       func(c *Contents) { c.DiskExtents = []Extent{pages(2049, 1)} },
		"disk too large":           func(c *Contents) { c.DiskSize = MaxDisk + 1 },
		"disk of negative size":    func(c *Contents) { c.DiskSize = -1 },
		"clusters of 6000 bytes":   func(c *Contents) { c.ClusterSize = 6000 },
		"less than a cluster":      func(c *Contents) { c.ClusterSize = 2 * PageSize },
		"extents without disk":     func(c *Contents) { c.DiskSize = 0 },
		"name that rings the bell": func(c *Contents) { c.Name = "\a" },
		"endless fingerprint":      func(c *Contents) { c.Fingerprint = strings.Repeat("x", 1000) },
		"meta that is no JSON":     func(c *Contents) { c.Meta = []byte("{") },
		"other memory than base's": func(c *Contents) { c.Regions[1].Addr *= 2 },
	} {
		c := sized("a", "base")
		w, err := s.CreateDiff(context.Background(), "a", "base")
		require.NoError(t, err)
		require.NoError(t, c.fill(w))
		contents := c.contents()
		spoil(&contents)
		err = w.Commit(context.Background(), contents)
		require.ErrorIs(t, err, ErrInvalid, name)
		require.Equal(t, "a", errorOf(t, err).ID, name)
		requireNothingLeft(t, s)
		require.ErrorIs(t, w.Commit(context.Background(), c.contents()), ErrInvalid)
		w.Abort()
	}
	require.NoDirExists(t, s.path("a"))
}

func TestCommitIsCanceled(t *testing.T) {
	s := openStore(t)
	w, err := s.Create(context.Background(), "a")
	require.NoError(t, err)
	require.NoError(t, full("a").fill(w))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, w.Commit(ctx, full("a").contents()), context.Canceled)
	requireNothingLeft(t, s)
}

func TestFirstWriterWins(t *testing.T) {
	s := openStore(t)
	ctx := context.Background()
	w, err := s.Create(ctx, "a")
	require.NoError(t, err)
	second := small("a")
	second.seed = 77
	require.NoError(t, second.fill(w))
	bake(t, s, small("a"))
	require.ErrorIs(t, w.Commit(ctx, second.contents()), ErrExists)
	requireNothingLeft(t, s)
	requireHolds(t, load(t, s, "a", VerifyAlways), small("a"))
}

func TestAbort(t *testing.T) {
	s := openStore(t)
	w, err := s.Create(context.Background(), "a")
	require.NoError(t, err)
	s.sweep() // keeps away from what lives
	require.Equal(t, "a", w.ID())
	require.FileExists(t, w.MemoryFile().Name())
	w.Abort()
	w.Abort()
	requireNothingLeft(t, s)
}

func TestSweep(t *testing.T) {
	s := openStore(t)
	for _, dir := range []string{".tmp-a-0011", ".trash-b-0022"} {
		require.NoError(t, os.MkdirAll(s.path(dir, "sub"), 0o700))
		require.NoError(t, os.WriteFile(s.path(dir, memoryFile), []byte("x"), 0o600))
	}
	require.NoError(t, os.WriteFile(s.path(".trash-file"), nil, 0o600))
	require.NoError(t, os.WriteFile(s.path(locksDir, "dead"), nil, 0o600))
	list, err := s.List()
	require.NoError(t, err)
	require.Empty(t, list)
	requireNothingLeft(t, s)
}

func TestListAndInspect(t *testing.T) {
	s := openStore(t)
	c := full("b")
	c.name = "name"
	bake(t, s, c, small("a"), diff("c", "b"))
	require.NoError(t, os.WriteFile(s.path("not an id"), nil, 0o600))
	require.NoError(t, os.WriteFile(s.path("file"), nil, 0o600))
	require.NoError(t, os.Mkdir(s.path("empty"), 0o700))
	list, err := s.List()
	require.NoError(t, err)
	var ids []string
	for _, info := range list {
		ids = append(ids, info.ID)
		if info.ID == "file" || info.ID == "empty" {
			require.ErrorIs(t, info.Err, ErrCorrupt)
			continue
		}
		require.NoError(t, info.Err)
		require.WithinDuration(t, time.Now(), info.LastUsed, time.Minute)
		require.WithinDuration(t, time.Now(), info.Created, time.Minute)
		require.Less(t, info.Bytes, int64(testMemory))
		if info.ID == "b" {
			require.Greater(t, info.Apparent, int64(testMemory+testDisk))
			require.Greater(t, info.Bytes, int64(900*PageSize))
		}
		require.JSONEq(t, `{"of":"`+info.ID+`"}`, string(info.Meta))
		require.Equal(t, "fingerprint of "+info.ID, info.Fingerprint)
	}
	require.Equal(t, []string{"a", "b", "c", "empty", "file"}, ids)
	require.Equal(t, "name", list[1].Name)
	require.Equal(t, "b", list[2].Base)

	info, m, err := s.Inspect("c")
	require.NoError(t, err)
	require.Equal(t, list[2].Bytes, info.Bytes)
	require.Equal(t, Extents(diff("c", "b").memory), m.Memory.Extents)
	_, _, err = s.Inspect("d")
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, s.Remove(context.Background(), "file"))
	require.NoError(t, s.Remove(context.Background(), "empty"))
	requireNothingLeft(t, s)
}

func TestRemove(t *testing.T) {
	s := openStore(t)
	ctx := context.Background()
	bake(t, s, full("base"), diff("top", "base"))
	err := s.Remove(ctx, "base")
	require.ErrorIs(t, err, ErrInUse)
	require.ErrorContains(t, err, "top")
	snap := load(t, s, "top", VerifyOnce)
	require.NoError(t, s.Remove(ctx, "top"))
	require.NoError(t, s.Remove(ctx, "base"))
	require.ErrorIs(t, s.Remove(ctx, "base"), ErrNotFound)
	requireNothingLeft(t, s)
	requireHolds(t, snap, full("base"), diff("top", "base"))
	_, err = s.Load("top", LoadOptions{})
	require.ErrorIs(t, err, ErrNotFound)

	bake(t, s, small("base"))
	w, err := s.CreateDiff(ctx, "top", "base")
	require.NoError(t, err)
	require.ErrorIs(t, s.Remove(ctx, "base"), ErrInUse, "while the diff is being made")
	w.Abort()
	require.NoError(t, s.Remove(ctx, "base"))
}

func TestRemoveWaitsForLoad(t *testing.T) {
	s := openStore(t)
	bake(t, s, small("a"))
	d, err := s.enter("a")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.NoError(t, s.Remove(ctx, "a"), "removed, though not yet deleted")
	_, _, err = d.open(memoryFile)
	require.NoError(t, err)
	_, err = s.Load("a", LoadOptions{})
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, d.Close())
	_, err = s.List()
	require.NoError(t, err)
	requireNothingLeft(t, s)
}

func TestTouchAndLoadNoteTheUse(t *testing.T) {
	s := openStore(t)
	bake(t, s, small("a"))
	used := func() time.Time {
		info, _, err := s.Inspect("a")
		require.NoError(t, err)
		return info.LastUsed
	}
	set := func(ago time.Duration) time.Time {
		at := time.Now().Add(-ago)
		require.NoError(t, os.Chtimes(s.path("a", usedFile), at, at))
		return used()
	}
	recent := set(30 * time.Second)
	load(t, s, "a", VerifyOnce)
	require.Equal(t, recent, used(), "a restore does not always write")
	set(2 * time.Minute)
	load(t, s, "a", VerifyOnce)
	require.WithinDuration(t, time.Now(), used(), 10*time.Second)
	set(30 * time.Second)
	require.NoError(t, s.Touch("a"))
	require.WithinDuration(t, time.Now(), used(), 10*time.Second)
	require.NoError(t, os.Remove(s.path("a", usedFile)))
	require.NoError(t, s.Touch("a"))
	require.FileExists(t, s.path("a", usedFile))
	require.ErrorIs(t, s.Touch("b"), ErrNotFound)
}

func TestWorkingSet(t *testing.T) {
	s := openStore(t)
	bake(t, s, small("a"))
	for _, data := range []string{"one", "", strings.Repeat("x", 10000)} {
		require.NoError(t, s.SetWorkingSet("a", []byte(data)))
		require.Equal(t, data, string(load(t, s, "a", VerifyAlways).WorkingSet))
	}
	path := s.path("a", workingSetFile)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	data[len(data)-1] ^= 1
	require.NoError(t, os.WriteFile(path, data, 0o600))
	require.Nil(t, load(t, s, "a", VerifyAlways).WorkingSet, "a broken one is ignored")
	require.NoError(t, os.WriteFile(path+".new", []byte("left by the dead"), 0o600))
	require.NoError(t, s.SetWorkingSet("a", []byte("two")))
	require.NoFileExists(t, path+".new")
	require.Equal(t, "two", string(load(t, s, "a", VerifyAlways).WorkingSet))
	require.ErrorIs(t, s.SetWorkingSet("b", nil), ErrNotFound)
	require.ErrorIs(t, s.SetWorkingSet("a", make([]byte, MaxWorkingSet+1)), ErrInvalid)
}

func TestPrune(t *testing.T) {
	ctx := context.Background()
	ago := func(s *Store, id string, d time.Duration) {
		require.NoError(t, os.Chtimes(s.path(id, usedFile), time.Now().Add(-d), time.Now().Add(-d)))
	}
	prune := func(s *Store, o PruneOptions) (ids []string) {
		removed, err := s.Prune(ctx, o)
		require.NoError(t, err)
		for _, info := range removed {
			ids = append(ids, info.ID)
			require.NoDirExists(t, s.path(info.ID))
		}
		requireNothingLeft(t, s)
		return ids
	}
	fresh := func() *Store {
		s := openStore(t)
		bake(t, s, full("base"), diff("top", "base"), diff("upper", "top"), small("a"), small("b"))
		for i, id := range []string{"base", "top", "a", "b", "upper"} {
			ago(s, id, time.Duration(5-i)*time.Hour)
		}
		return s
	}
	s := fresh()
	require.Empty(t, prune(s, PruneOptions{}))
	require.Equal(t, []string{"a"}, prune(s, PruneOptions{OlderThan: 150 * time.Minute}), "the others are used with upper")
	require.Equal(t, []string{"b", "upper", "top", "base"}, prune(s, PruneOptions{OlderThan: time.Minute}))

	s = fresh()
	keep := func(i Info) bool { return i.ID == "top" }
	require.Equal(t, []string{"a", "b", "upper"}, prune(s, PruneOptions{OlderThan: time.Minute, Keep: keep}))

	s = fresh()
	info, _, err := s.Inspect("base")
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "upper", "top"}, prune(s, PruneOptions{MaxBytes: info.Bytes}))
	require.Empty(t, prune(s, PruneOptions{MaxBytes: info.Bytes}))
	w, err := s.CreateDiff(ctx, "top", "base")
	require.NoError(t, err)
	removed, err := s.Prune(ctx, PruneOptions{MaxBytes: 1})
	require.NoError(t, err)
	require.Empty(t, removed, "a diff is being made")
	w.Abort()
	require.Equal(t, []string{"base"}, prune(s, PruneOptions{MaxBytes: 1}))
	_, err = s.Prune(ctx, PruneOptions{MaxBytes: -1})
	require.ErrorIs(t, err, ErrInvalid)
}

func TestLock(t *testing.T) {
	s := openStore(t)
	unlock, err := s.Lock(context.Background(), "../any thing/\x00")
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = s.Lock(ctx, "../any thing/\x00")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	other, err := s.Lock(context.Background(), "")
	require.NoError(t, err)
	other()
	unlock()
	unlock()
	requireNothingLeft(t, s)
}

func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := Open(dir)
	require.NoError(t, err)
	st, err := os.Stat(s.Dir())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), st.Mode().Perm())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
	_, err = Open(filepath.Join(dir, "x"))
	require.ErrorIs(t, err, unix.ENOTDIR)
	errorOf(t, err)
}

func TestChainIsBounded(t *testing.T) {
	s := openStore(t)
	bake(t, s, small("s0"))
	for i := 1; i < MaxChain; i++ {
		c := small("s" + string(rune('0'+i)))
		c.base = "s" + string(rune('0'+i-1))
		bake(t, s, c)
	}
	load(t, s, "s7", VerifyOnce)
	_, err := s.CreateDiff(context.Background(), "s8", "s7")
	require.ErrorIs(t, err, ErrInvalid)
	require.NoError(t, s.Flatten(context.Background(), "s7", "flat"))
	c := small("s8")
	c.base = "flat"
	bake(t, s, c)
}
