package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// childEnv makes the test binary run one of children instead of the tests, with the store it names.
const childEnv = "SNAPSHOT_TEST_CHILD"

var children = map[string]func(s *Store, args []string) error{}

func TestMain(m *testing.M) {
	name, dir, ok := strings.Cut(os.Getenv(childEnv), ":")
	if !ok {
		os.Exit(m.Run())
	}
	s, err := Open(dir)
	if err == nil {
		err = children[name](s, os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(s *Store, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"="+name+":"+s.Dir(), "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}

func openStore(t testing.TB) *Store {
	// In memory if possible, as syncing takes most of the time of a test.
	s, err := Open(filepath.Join(otherFileSystem(t), "store"))
	require.NoError(t, err)
	return s
}

const (
	testMemory = 16 << 20 // in two regions
	testDisk   = 8<<20 + 512
)

// spec says what bake puts in a snapshot: each page's number, counted from 1, in the pages' bytes.
type spec struct {
	id, base   string
	memory     []Extent
	disk       []Extent
	seed       uint64
	workingSet []byte
	name       string
	little     bool // a little memory and disk, so that a test can have many
}

func (c spec) sizes() (memory, disk int64) {
	if c.little {
		return 16 * PageSize, 15*PageSize + 512
	}
	return testMemory, testDisk
}

func pages(first, n int64) Extent { return Extent{Off: first * PageSize, Len: n * PageSize} }

// full is a snapshot with several chunks, small extents and the ends of both files.
func full(id string) spec {
	return spec{
		id: id, seed: 1,
		memory: []Extent{pages(0, 1), pages(3, 600), pages(700, 5), pages(2047, 2), pages(4095, 1)},
		disk:   []Extent{pages(1, 3), pages(100, 300), pages(2048, 1)},
	}
}

func diff(id, base string) spec {
	return spec{id: id, base: base, seed: 2, memory: []Extent{pages(1, 4), pages(600, 102)}, disk: []Extent{pages(2, 1), pages(99, 2)}}
}

func small(id string) spec {
	return spec{id: id, seed: 3, memory: []Extent{pages(5, 2)}, disk: []Extent{pages(7, 1)}, little: true}
}

func (c spec) state() []byte { return fmt.Appendf(nil, "state of %s", c.id) }

// page returns what a page of memory, or a cluster of the disk, holds.
func (c spec) page(kind string, n int64) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%-6s %3d %4d\n", kind, c.seed, n), PageSize/16)
}

func (c spec) contents() Contents {
	memory, disk := c.sizes()
	return Contents{
		Name: c.name, Fingerprint: "fingerprint of " + c.id, CPU: CPU{Vendor: "Test", Family: 6, Model: 1},
		Regions: []Region{{Addr: 0, Size: memory / 2}, {Addr: 1 << 32, Size: memory / 2}}, MemoryExtents: c.memory,
		DiskSize: disk, ClusterSize: PageSize, DiskExtents: c.disk, State: c.state(), WorkingSet: c.workingSet,
		Meta: json.RawMessage(`{"of":"` + c.id + `"}`),
	}
}

func (c spec) fill(w *Writer) error {
	for _, f := range []struct {
		kind    string
		file    *os.File
		extents []Extent
	}{{"memory", w.MemoryFile(), c.memory}, {"disk", w.DiskFile(), c.disk}} {
		for _, e := range f.extents {
			for off := e.Off; off < e.Off+e.Len; off += PageSize {
				if _, err := f.file.WriteAt(c.page(f.kind, off/PageSize), off); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c spec) bake(s *Store) error {
	w, err := s.CreateDiff(context.Background(), c.id, c.base)
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := c.fill(w); err != nil {
		return err
	}
	return w.Commit(context.Background(), c.contents())
}

func bake(t testing.TB, s *Store, specs ...spec) {
	t.Helper()
	for _, c := range specs {
		require.NoError(t, c.bake(s), c.id)
	}
}

// flatBytes returns what layers hold together.
func flatBytes(t testing.TB, size int64, layers []Layer) []byte {
	t.Helper()
	b := make([]byte, size)
	for _, l := range layers {
		for _, e := range l.Extents {
			_, err := l.File.ReadAt(b[e.Off:e.Off+e.Len], e.Off)
			require.NoError(t, err)
		}
	}
	return b
}

// requireHolds fails unless the snapshot has the content of the specs, laid over each other.
func requireHolds(t testing.TB, snap *Snapshot, specs ...spec) {
	t.Helper()
	for _, kind := range []string{"memory", "disk"} {
		layers, size := snap.Memory, snap.Manifest.Memory.Size()
		if kind == "disk" {
			layers, size = snap.Disk, snap.Manifest.Disk.fileSize()
		}
		want := make([]byte, size)
		for _, c := range specs {
			extents := c.memory
			if kind == "disk" {
				extents = c.disk
			}
			for _, e := range extents {
				for off := e.Off; off < e.Off+e.Len; off += PageSize {
					copy(want[off:], c.page(kind, off/PageSize))
				}
			}
		}
		// Not require.Equal: it would print megabytes.
		require.True(t, string(want) == string(flatBytes(t, size, layers)), kind)
	}
	require.Equal(t, specs[len(specs)-1].state(), snap.State)
}

func load(t testing.TB, s *Store, id string, v Verify) *Snapshot {
	t.Helper()
	snap, err := s.Load(id, LoadOptions{Verify: v})
	require.NoError(t, err)
	t.Cleanup(func() { _ = snap.Close() })
	return snap
}

// reopen returns the store as another process sees it.
func reopen(t testing.TB, s *Store) *Store {
	other, err := Open(s.Dir())
	require.NoError(t, err)
	return other
}

func requireNothingLeft(t testing.TB, s *Store) {
	t.Helper()
	entries, err := os.ReadDir(s.Dir())
	require.NoError(t, err)
	for _, e := range entries {
		require.False(t, strings.HasPrefix(e.Name(), ".") && e.Name() != locksDir, e.Name())
	}
	locks, err := os.ReadDir(s.path(locksDir))
	require.NoError(t, err)
	for _, e := range locks {
		require.Equal(t, storeLock, e.Name())
	}
}

// tick waits until the file system gives other times to what is written.
func tick() { time.Sleep(12 * time.Millisecond) }

func errorOf(t testing.TB, err error) *Error {
	t.Helper()
	var own *Error
	require.True(t, errors.As(err, &own), "%v", err)
	return own
}
