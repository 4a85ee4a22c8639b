package snapshot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// rewrite changes a file of a snapshot and lets it seem as old as it was.
func rewrite(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	tick()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	st, err := os.Stat(path)
	require.NoError(t, err)
	before := bytes.Clone(data)
	data = change(data)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	for off := 0; off < len(data); off += PageSize { // the pages that change, so that holes remain
		end := min(off+PageSize, len(data))
		if end > len(before) || !bytes.Equal(before[off:end], data[off:end]) {
			_, err := f.WriteAt(data[off:end], int64(off))
			require.NoError(t, err)
		}
	}
	require.NoError(t, os.Chtimes(path, time.Time{}, st.ModTime()))
}

func flip(off int) func([]byte) []byte {
	return func(b []byte) []byte { b[off] ^= 0x10; return b }
}

func TestFlippedBits(t *testing.T) {
	s := openStore(t)
	bake(t, s, full("base"), diff("top", "base"))
	const far = 1500 * PageSize
	for _, c := range []struct {
		file  string
		flip  int
		place int64 // of the error
	}{
		{memoryFile, 0, 0},
		{memoryFile, 3*PageSize + 5, 0},                            // in the first chunk, which begins at 0
		{memoryFile, 300 * PageSize, 258 * PageSize},               // the second chunk: 1+255 pages are in the first
		{memoryFile, 4096*PageSize - 1, 514 * PageSize},            // the last one
		{memoryFile, far, far},                                     // a hole
		{diskFile, 1 * PageSize, 1 * PageSize},                     //
		{diskFile, 2049*PageSize - 1, (100 + 253) * PageSize},      // the last cluster
		{stateFile, 3, 0},                                          //
		{manifestFile, 0, -1},                                      // the kind
		{manifestFile, len(manifestKind) + 1, -1},                  // the version
		{manifestFile, len(manifestKind) + 3, -1},                  // "crc32c:"
		{manifestFile, len(manifestKind) + 3 + len("crc32c:"), -1}, // the checksum
		{manifestFile, 200, -1},                                    // the rest
	} {
		name := fmt.Sprintf("%s %d", c.file, c.flip)
		rewrite(t, s.path("base", c.file), flip(c.flip))
		for _, s := range []*Store{s, reopen(t, s)} {
			for _, id := range []string{"base", "top"} {
				for range 2 { // the second time with whatever the first has left
					_, err := s.Load(id, LoadOptions{})
					require.ErrorIs(t, err, ErrCorrupt, name)
					e := errorOf(t, err)
					require.Equal(t, "base", e.ID, name)
					require.Equal(t, c.file, e.File, name)
					require.Equal(t, c.place, e.Offset, name)
					require.ErrorContains(t, err, c.file)
				}
			}
		}
		rewrite(t, s.path("base", c.file), flip(c.flip))
		load(t, s, "top", VerifyOnce)
	}
}

// TestMark checks that data is not read twice, and is when it must be.
func TestMark(t *testing.T) {
	s := openStore(t)
	bake(t, s, small("a"))
	path := s.path("a", memoryFile)
	mark := func() string {
		b, err := os.ReadFile(s.path("a", verifiedFile))
		require.NoError(t, err)
		return string(b)
	}
	first := mark()

	// Another file of the same content: to be verified again, once.
	tick()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, data, 0o600))
	load(t, s, "a", VerifyNever)
	require.Equal(t, first, mark())
	load(t, s, "a", VerifyOnce)
	second := mark()
	require.NotEqual(t, first, second)

	// The mark vouches for what a flipped bit is hidden behind. Nobody can do that by the file system, so the mark is forged.
	rewrite(t, path, flip(5*PageSize))
	forged := openPartOf(t, s, "a").identity
	require.NoError(t, os.WriteFile(s.path("a", verifiedFile), seal(verifiedKind, 1, []byte(forged)), 0o600))
	load(t, reopen(t, s), "a", VerifyOnce)
	load(t, reopen(t, s), "a", VerifyNever)
	_, err = reopen(t, s).Load("a", LoadOptions{Verify: VerifyAlways})
	require.ErrorIs(t, err, ErrCorrupt)
	_, err = reopen(t, s).Load("a", LoadOptions{})
	require.ErrorIs(t, err, ErrCorrupt, "the mark has gone with the failure")

	// A mark that is damaged is none.
	require.NoError(t, os.WriteFile(s.path("a", verifiedFile), flip(60)(seal(verifiedKind, 1, []byte(forged))), 0o600))
	_, err = reopen(t, s).Load("a", LoadOptions{})
	require.ErrorIs(t, err, ErrCorrupt)
}

func openPartOf(t testing.TB, s *Store, id string) *part {
	p, err := s.openPart(id, false)
	require.NoError(t, err)
	p.close()
	return p
}

func TestTheProcessRemembersWhatItVerified(t *testing.T) {
	s := openStore(t)
	bake(t, s, small("a"))
	require.NoError(t, os.Remove(s.path("a", verifiedFile)))
	require.NoError(t, os.Mkdir(s.path("a", verifiedFile), 0o700)) // no mark can be kept
	require.True(t, s.isVerified(openPartOf(t, s, "a").identity))
	other := reopen(t, s)
	load(t, other, "a", VerifyOnce)
	require.True(t, other.isVerified(openPartOf(t, s, "a").identity))
	rewrite(t, s.path("a", memoryFile), flip(5*PageSize))
	_, err := other.Load("a", LoadOptions{})
	require.ErrorIs(t, err, ErrCorrupt)
}

func TestTruncatedAndMissingFiles(t *testing.T) {
	for _, file := range []string{manifestFile, stateFile, memoryFile, diskFile} {
		for name, spoil := range map[string]func(t *testing.T, path string){
			"shorter by one": func(t *testing.T, path string) {
				st, err := os.Stat(path)
				require.NoError(t, err)
				require.NoError(t, os.Truncate(path, st.Size()-1))
			},
			"empty":     func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 0)) },
			"longer":    func(t *testing.T, path string) { rewrite(t, path, func(b []byte) []byte { return append(b, 0) }) },
			"missing":   func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) },
			"directory": func(t *testing.T, path string) { replaceBy(t, path, func() error { return os.Mkdir(path, 0o700) }) },
			"FIFO":      func(t *testing.T, path string) { replaceBy(t, path, func() error { return unix.Mkfifo(path, 0o600) }) },
			"link": func(t *testing.T, path string) {
				require.NoError(t, os.Rename(path, path+".there"))
				require.NoError(t, os.Symlink(path+".there", path))
			},
		} {
			s := openStore(t)
			bake(t, s, small("a"))
			spoil(t, s.path("a", file))
			for _, v := range []Verify{VerifyOnce, VerifyAlways, VerifyNever} {
				_, err := s.Load("a", LoadOptions{Verify: v})
				require.ErrorIs(t, err, ErrCorrupt, "%s %s", file, name)
				require.Equal(t, file, errorOf(t, err).File, name)
			}
			list, err := s.List()
			require.NoError(t, err)
			require.Len(t, list, 1)
			require.ErrorIs(t, list[0].Err, ErrCorrupt, "%s %s", file, name)
			if file != manifestFile {
				require.NotEmpty(t, list[0].Fingerprint)
			}
			require.Positive(t, list[0].LastUsed.Unix())
		}
	}
}

func replaceBy(t *testing.T, path string, make func() error) {
	require.NoError(t, os.Remove(path))
	require.NoError(t, make())
}

// edit changes the JSON of a manifest and seals it again.
func edit(t testing.TB, s *Store, id string, version int, change func(m map[string]any)) {
	t.Helper()
	path := s.path(id, manifestFile)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	_, body, err := unseal(manifestKind, data)
	require.NoError(t, err)
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	require.NoError(t, d.Decode(&m))
	change(m)
	body, err = json.Marshal(m)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, seal(manifestKind, version, body), 0o600))
}

func TestOtherVersion(t *testing.T) {
	s := openStore(t)
	bake(t, s, small("base"), func() spec { c := small("top"); c.base = "base"; return c }())
	edit(t, s, "top", 2, func(m map[string]any) { m["version"] = 2; m["memory"] = "something else" })
	_, err := s.Load("top", LoadOptions{})
	require.ErrorIs(t, err, ErrVersion)
	require.Equal(t, manifestFile, errorOf(t, err).File)
	info, _, err := s.Inspect("top")
	require.ErrorIs(t, err, ErrVersion)
	require.Equal(t, "fingerprint of top", info.Fingerprint)
	require.ErrorIs(t, s.Remove(t.Context(), "base"), ErrInUse, "also for one of a later version")
	_, err = s.CreateDiff(t.Context(), "upper", "top")
	require.ErrorIs(t, err, ErrVersion)
}

func TestOtherArch(t *testing.T) {
	s := openStore(t)
	bake(t, s, small("a"))
	edit(t, s, "a", Version, func(m map[string]any) { m["arch"] = "sparc" })
	_, err := s.Load("a", LoadOptions{})
	require.ErrorIs(t, err, ErrArch)
	require.ErrorContains(t, err, "sparc instead of "+runtime.GOARCH)
	info, _, err := s.Inspect("a")
	require.NoError(t, err)
	require.Equal(t, "sparc", info.Arch)
}

func TestBrokenChains(t *testing.T) {
	top := func() spec { c := small("top"); c.base = "base"; return c }()
	for name, c := range map[string]struct {
		spoil func(s *Store)
		want  string
	}{
		"base missing": {func(s *Store) { require.NoError(t, os.RemoveAll(s.path("base"))) }, `base "base" is missing`},
		"other base": {func(s *Store) {
			require.NoError(t, os.RemoveAll(s.path("base")))
			bake(t, s, full("base"))
		}, "another snapshot"},
		"own base":    {func(s *Store) { edit(t, s, "top", Version, func(m map[string]any) { m["base"] = "top" }) }, "its own base"},
		"base's path": {func(s *Store) { edit(t, s, "top", Version, func(m map[string]any) { m["base"] = "../top" }) }, "an id is"},
		"no checksum": {func(s *Store) { edit(t, s, "top", Version, func(m map[string]any) { delete(m, "baseManifest") }) }, "base without"},
		"other id": {func(s *Store) {
			require.NoError(t, os.RemoveAll(s.path("top")))
			require.NoError(t, os.Rename(s.path("base"), s.path("top")))
		}, "of snapshot"},
		"other memory": {func(s *Store) {
			edit(t, s, "top", Version, func(m map[string]any) {
				m["memory"].(map[string]any)["regions"].([]any)[1].(map[string]any)["addr"] = 1 << 33
			})
		}, "differ from base"},
	} {
		s := openStore(t)
		bake(t, s, small("base"), top)
		c.spoil(s)
		_, err := s.Load("top", LoadOptions{})
		require.ErrorIs(t, err, ErrCorrupt, name)
		require.Equal(t, "top", errorOf(t, err).ID, name)
		require.ErrorContains(t, err, c.want, name)
	}

	// A circle: the checksum of the base's manifest would have to be in that manifest, so only a broken one gets this far.
	s := openStore(t)
	bake(t, s, small("base"), top)
	edit(t, s, "base", Version, func(m map[string]any) { m["base"] = "top"; m["baseManifest"] = "00000000" })
	_, err := s.Load("top", LoadOptions{})
	require.ErrorIs(t, err, ErrCorrupt)
	list, err := s.List()
	require.NoError(t, err)
	require.Len(t, list, 2)
	removed, err := s.Prune(t.Context(), PruneOptions{MaxBytes: 1})
	require.NoError(t, err)
	require.Empty(t, removed)
}

func TestHostileManifests(t *testing.T) {
	at := func(m map[string]any, path string) (map[string]any, string) {
		keys := strings.Split(path, ".")
		for _, k := range keys[:len(keys)-1] {
			m = m[k].(map[string]any)
		}
		return m, keys[len(keys)-1]
	}
	for _, c := range []struct {
		path  string
		value string
	}{
		{"memory.extents", `[5]`}, {"memory.extents", `[5,-2]`}, {"memory.extents", `[5,2.0]`},
		{"memory.extents", `[5,2e0]`}, {"memory.extents", `["5",2]`},
		{"memory.extents", `[[5,2]]`}, {"memory.extents", `{"5":2}`}, {"memory.extents", `"5,2"`}, {"memory.extents", `[99999999999999999999,2]`},
		{"memory.extents", `[281474976710656,281474976710656,281474976710656,1]`}, {"memory.extents", `[5,0]`}, {"memory.extents", `[15,2]`},
		{"memory.extents", `[]`}, {"memory.extents", `[5,600]`}, {"memory.extents", `null`},
		{"memory.checksums", `""`}, {"memory.checksums", `"0011223"`}, {"memory.checksums", `"0011223g"`}, {"memory.checksums", `5`},
		{"memory.checksums", `"0011223344556677"`}, {"memory.regions", `[]`}, {"memory.regions", `[{"addr":0,"size":-4096}]`},
		{"memory.regions", `[{"addr":0,"size":9223372036854771712},{"addr":9223372036854771712,"size":9223372036854771712}]`},
		{"disk.extents", `[16,1]`}, {"disk.size", `-1`},
		{"disk.size", `9223372036854775807`}, {"disk.clusterSize", `0`}, {"disk.clusterSize", `4097`},
		{"disk.clusterSize", `-4096`}, {"state.length", `-1`}, {"state.length", `4294967296`}, {"state.checksum", `""`}, {"pageSize", `16384`},
		{"name", `"\u001b[31m"`}, {"created", `"yesterday"`}, {"id", `"b"`}, {"version", `2`}, {"cpu", `[]`},
	} {
		s := openStore(t)
		bake(t, s, small("a"))
		edit(t, s, "a", Version, func(m map[string]any) {
			m, key := at(m, c.path)
			m[key] = json.RawMessage(c.value)
		})
		_, err := s.Load("a", LoadOptions{})
		require.ErrorIs(t, err, ErrCorrupt, "%s: %s", c.path, c.value)
		require.Equal(t, manifestFile, errorOf(t, err).File, "%s: %s", c.path, c.value)
	}
}

func FuzzManifest(f *testing.F) {
	s := openStore(f)
	bake(f, s, full("a"), diff("b", "a"))
	for _, id := range []string{"a", "b"} {
		data, err := os.ReadFile(s.path(id, manifestFile))
		require.NoError(f, err)
		_, body, err := unseal(manifestKind, data)
		require.NoError(f, err)
		f.Add(body, 1, true)
		f.Add(body, 2, true)
		f.Add(data, 1, false)
		f.Add(data[:len(data)/2], 1, false)
		f.Add(bytes.Replace(body, []byte(`"extents":[`), []byte(`"extents":[1,1,`), 1), 1, true)
	}
	f.Add([]byte(`{"id":"a","version":1,"pageSize":4096,"memory":{"regions":[{"size":4096}]},"state":{"checksum":"00000000"}}`), 1, true)
	f.Add([]byte(`{"id":"a","version":1,"memory":{"extents":[ 1 , 2,3 ],"checksums":null}}`), 1, true)
	f.Fuzz(func(t *testing.T, data []byte, version int, sealed bool) {
		if sealed {
			data = seal(manifestKind, version, data)
		}
		m, sum, err := parseManifest("a", data)
		if err != nil {
			e := errorOf(t, err)
			require.Equal(t, manifestFile, e.File)
			require.Equal(t, "a", e.ID)
			require.True(t, e.Err == ErrCorrupt || e.Err == ErrVersion)
			require.Equal(t, e.Err == ErrVersion, m != nil)
			return
		}
		require.NoError(t, m.check())
		require.Len(t, sum, 8)
		body, err := json.Marshal(m)
		require.NoError(t, err)
		again, _, err := parseManifest("a", seal(manifestKind, Version, body))
		require.NoError(t, err)
		second, err := json.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(body), string(second))
	})
}

func TestFileEndsWhileItIsRead(t *testing.T) {
	s := openStore(t)
	bake(t, s, full("a"))
	p, err := s.openPart("a", false)
	require.NoError(t, err)
	defer p.close()
	require.NoError(t, os.Truncate(s.path("a", memoryFile), 300*PageSize+7))
	err = p.verify()
	require.ErrorIs(t, err, ErrCorrupt)
	e := errorOf(t, err)
	require.Equal(t, Error{ID: "a", File: memoryFile, Offset: 300*PageSize + 7, Reason: "file ends here", Err: ErrCorrupt}, *e)
}
