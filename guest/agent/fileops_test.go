package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

// requireKind requires an error of the guest's that names the path.
func requireKind(t *testing.T, kind, path string, err error) {
	t.Helper()
	var e *agent.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, kind, e.Kind, e.Message)
	require.Contains(t, e.Message, path)
}

// filesGuest is a guest without programs.
func filesGuest(t testing.TB) (*testGuest, *agent.Client) {
	g := startGuest(t, testRoot(t, false))
	return g, g.client(t)
}

func put(t testing.TB, c *agent.Client, path, content string, options ...agent.WriteOption) {
	t.Helper()
	require.NoError(t, c.WriteFile(testContext(t), path, strings.NewReader(content), 0o644, options...))
}

func owners(t *testing.T, name string) [2]uint32 {
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(name, &st))
	return [2]uint32{st.Uid, st.Gid}
}

func TestRangesAreRead(t *testing.T) {
	_, c := filesGuest(t)
	put(t, c, "/tmp/file", "0123456789")
	for _, test := range []struct {
		offset, length int64
		want           string
	}{{0, -1, "0123456789"}, {3, 4, "3456"}, {8, 10, "89"}, {4, -1, "456789"}, {10, 5, ""}, {1 << 40, -1, ""}, {5, 0, ""}} {
		r, err := c.ReadFile(testContext(t), "/tmp/file", agent.Range(test.offset, test.length))
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, test.want, string(b), test)
		r.Close()
	}
	_, err := c.ReadFile(testContext(t), "/tmp/file", agent.Range(-1, 1))
	requireKind(t, wire.KindInvalid, "/tmp/file", err)
	_, err = c.ReadFile(testContext(t), "/tmp/nope", agent.Range(0, 0))
	requireKind(t, wire.KindNotFound, "/tmp/nope", err)
}

func TestFilesAreAppendedToAndWrittenInto(t *testing.T) {
	g, c := filesGuest(t)
	put(t, c, "/tmp/file", "one", agent.Append(), agent.Owner("app"))
	put(t, c, "/tmp/file", "two", agent.Append())
	require.Equal(t, "onetwo", string(read(t, c, "/tmp/file")))
	require.Equal(t, [2]uint32{1000, 100}, owners(t, g.root+"/tmp/file"))
	before, err := os.Stat(g.root + "/tmp/file")
	require.NoError(t, err)
	require.EqualValues(t, 0o644, before.Mode().Perm())

	put(t, c, "/tmp/file", "NET", agent.At(1))
	require.Equal(t, "oNETwo", string(read(t, c, "/tmp/file")))
	put(t, c, "/tmp/file", "end", agent.At(8))
	require.Equal(t, "oNETwo\x00\x00end", string(read(t, c, "/tmp/file")))
	after, err := os.Stat(g.root + "/tmp/file")
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))

	// Links are followed, and one to nothing makes what it points to.
	require.NoError(t, os.Symlink("log", g.root+"/tmp/link"))
	put(t, c, "/tmp/link", "x", agent.Append())
	require.Equal(t, "x", string(read(t, c, "/tmp/log")))

	require.NoError(t, unix.Mkfifo(g.root+"/tmp/fifo", 0o600))
	for _, test := range []struct {
		path, kind string
		o          agent.WriteOption
	}{
		{"/tmp/nope", wire.KindNotFound, agent.At(0)},
		{"/tmp/file", wire.KindInvalid, agent.At(-1)},
		{"/tmp", wire.KindInvalid, agent.Append()},
		{"/tmp/fifo", wire.KindInvalid, agent.Append()},
		{"/dev/zero", wire.KindInvalid, agent.At(0)},
		{"/no/file", wire.KindNotFound, agent.Append()},
	} {
		requireKind(t, test.kind, test.path, c.WriteFile(testContext(t), test.path, strings.NewReader("x"), 0o600, test.o))
	}
	requireKind(t, wire.KindNotFound, "nobody", c.WriteFile(testContext(t), "/tmp/new", strings.NewReader("x"), 0o600, agent.Append(), agent.Owner("nobody")))
	require.NoFileExists(t, g.root+"/tmp/new")
	requireKind(t, wire.KindNoSpace, "/small/big", c.WriteFile(testContext(t), "/small/big", bytes.NewReader(make([]byte, 1<<20)), 0o600, agent.Append()))
}

func TestStat(t *testing.T) {
	g, c := filesGuest(t)
	put(t, c, "/tmp/file", "12345")
	now := time.Unix(1234567890, 987654321)
	require.NoError(t, os.Chtimes(g.root+"/tmp/file", now, now))
	require.NoError(t, os.Chown(g.root+"/tmp/file", 7, 8))
	require.NoError(t, os.Chmod(g.root+"/tmp/file", 0o640|os.ModeSetgid))
	require.NoError(t, os.Symlink("file", g.root+"/tmp/l\xffnk"))
	info, err := c.Stat(testContext(t), "/tmp/file", false)
	require.NoError(t, err)
	require.True(t, now.Equal(info.ModTime))
	require.Equal(t, []any{"file", "/tmp/file", int64(5), 0o640 | os.ModeSetgid, uint32(7), uint32(8), uint64(1)},
		[]any{info.Name, info.Path, info.Size, info.Mode, info.UID, info.GID, info.Links})

	linked, err := c.Stat(testContext(t), "/tmp/l\xffnk", true)
	require.NoError(t, err)
	require.Equal(t, info.Ino, linked.Ino)
	require.Equal(t, "l\xffnk", linked.Name)
	l, err := c.Stat(testContext(t), "/tmp/l\xffnk", false)
	require.NoError(t, err)
	require.Equal(t, os.ModeSymlink|0o777, l.Mode)
	require.Equal(t, "file", l.Target)

	for path, mode := range map[string]os.FileMode{
		"/": os.ModeDir | 0o755, "/tmp/": os.ModeDir | os.ModeSticky | 0o777, "/dev/null": os.ModeDevice | os.ModeCharDevice | 0o666,
	} {
		info, err := c.Stat(testContext(t), path, false)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode, path)
	}
	for path, kind := range map[string]string{"/nope": wire.KindNotFound, "rel": wire.KindInvalid, "/a\x00b": wire.KindInvalid, "/tmp/file/x": wire.KindNotFound} {
		_, err := c.Stat(testContext(t), path, false)
		requireKind(t, kind, strings.Trim(path, "/\x00b"), err)
	}
}

// paths returns the paths of a list or walk, sorted.
func paths(t testing.TB, r *agent.Records[agent.FileInfo], err error) (all []string) {
	t.Helper()
	require.NoError(t, err)
	for info, err := range r.All() {
		require.NoError(t, err)
		require.NoError(t, info.Err)
		all = append(all, info.Path)
	}
	sort.Strings(all)
	return all
}

func TestListAndWalk(t *testing.T) {
	g, c := filesGuest(t)
	for _, name := range []string{"a/b/c", "a/f", "\xff\xfe"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(g.root+"/tmp/w/"+name), 0o755))
		require.NoError(t, os.WriteFile(g.root+"/tmp/w/"+name, []byte(name), 0o600))
	}
	require.NoError(t, os.Symlink("/etc", g.root+"/tmp/w/a/link"))
	require.NoError(t, os.Symlink("/tmp/w/a", g.root+"/tmp/toa"))
	ctx := testContext(t)
	list := func(path string) []string { r, err := c.List(ctx, path); return paths(t, r, err) }
	walk := func(path string, o ...agent.WalkOption) []string {
		r, err := c.Walk(ctx, path, o...)
		return paths(t, r, err)
	}
	require.Equal(t, []string{"a", "\xff\xfe"}, list("/tmp/w"))
	require.Equal(t, []string{"b", "f", "link"}, list("/tmp/toa/"))
	require.Equal(t, []string{"a", "a/b", "a/b/c", "a/f", "a/link", "\xff\xfe"}, walk("/tmp/w"))
	require.Equal(t, []string{"a", "a/b", "a/f", "a/link", "\xff\xfe"}, walk("/tmp/w", agent.Depth(2)))
	require.Contains(t, list("/"), "etc")
	all := walk("/", agent.OneFileSystem())
	require.Contains(t, all, "proc")
	require.NotContains(t, all, "proc/self")

	r, err := c.List(ctx, "/tmp/w/a")
	require.NoError(t, err)
	for info, err := range r.All() {
		require.NoError(t, err)
		if info.Name == "link" {
			require.Equal(t, "/etc", info.Target)
		}
	}
	for path, kind := range map[string]string{"/nope": wire.KindNotFound, "/etc/passwd": wire.KindInvalid, "/etc/passwd/x": wire.KindNotFound, "x": wire.KindInvalid} {
		_, err := c.List(ctx, path)
		requireKind(t, kind, path, err)
	}
}

func TestLargeDirectories(t *testing.T) {
	g, c := filesGuest(t)
	const n = 20_000
	var err error
	g.server.threads.do(func() { // in memory: disks are slow
		err = os.Mkdir("/dev/many", 0o755)
		for i := range n {
			err = errors.Join(err, os.WriteFile(fmt.Sprintf("/dev/many/a-file-with-a-longer-name-%05d", i), nil, 0o600))
		}
	})
	require.NoError(t, err)
	ctx := testContext(t)
	r, err := c.List(ctx, "/dev/many")
	all := paths(t, r, err)
	require.Len(t, all, n)
	require.Equal(t, fmt.Sprintf("a-file-with-a-longer-name-%05d", n-1), all[n-1])

	// Given up in the middle, by Close and by a context; other requests go on meanwhile.
	r, err = c.List(ctx, "/dev/many")
	require.NoError(t, err)
	_, err = r.Next()
	require.NoError(t, err)
	_, err = c.Stat(ctx, "/dev/many", false)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	_, err = r.Next()
	for err == nil {
		_, err = r.Next()
	}
	require.ErrorIs(t, err, io.ErrClosedPipe)

	canceled, cancel := context.WithCancel(ctx)
	r, err = c.Walk(canceled, "/dev")
	require.NoError(t, err)
	_, err = r.Next()
	require.NoError(t, err)
	cancel()
	for err == nil {
		_, err = r.Next()
	}
	require.ErrorIs(t, err, context.Canceled)
	r.Close()

	require.NoError(t, c.Chmod(ctx, "/dev/many", 0o700, true))
	require.NoError(t, c.Remove(ctx, "/dev/many", true))
	_, err = c.Stat(ctx, "/dev/many", false)
	requireKind(t, wire.KindNotFound, "/dev/many", err)
	eventually(t, func() bool { return requestsUnderWay(g) == 0 }, "requests that were given up")
}

func requestsUnderWay(g *testGuest) (n int) {
	g.server.mu.Lock()
	defer g.server.mu.Unlock()
	for c := range g.server.conns {
		c.mu.Lock()
		n += len(c.streams)
		c.mu.Unlock()
	}
	return n + len(g.server.threads.files)
}

func TestMkdir(t *testing.T) {
	g, c := filesGuest(t)
	ctx := testContext(t)
	require.NoError(t, c.Mkdir(ctx, "/tmp/d", 0o777|os.ModeSticky, false, "app:video"))
	info, err := os.Stat(g.root + "/tmp/d")
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|os.ModeSticky|0o777, info.Mode())
	require.Equal(t, [2]uint32{1000, 44}, owners(t, g.root+"/tmp/d"))
	require.NoError(t, c.Mkdir(ctx, "/tmp/d/e/f/", 0o700, true, "app"))
	require.Equal(t, [2]uint32{1000, 100}, owners(t, g.root+"/tmp/d/e"))
	require.Equal(t, [2]uint32{1000, 44}, owners(t, g.root+"/tmp/d"), "an existing one stays")
	info, err = os.Stat(g.root + "/tmp/d/e")
	require.NoError(t, err)
	require.EqualValues(t, 0o755, info.Mode().Perm())
	require.NoError(t, c.Mkdir(ctx, "/tmp/d/e/f", 0o755, true, ""))
	put(t, c, "/tmp/file", "x")
	requireKind(t, wire.KindExists, "/tmp/d", c.Mkdir(ctx, "/tmp/d", 0o755, false, ""))
	requireKind(t, wire.KindExists, "/tmp/file", c.Mkdir(ctx, "/tmp/file", 0o755, true, ""))
	requireKind(t, wire.KindNotFound, "/tmp/no/d", c.Mkdir(ctx, "/tmp/no/d", 0o755, false, ""))
	requireKind(t, wire.KindNotFound, "nobody", c.Mkdir(ctx, "/tmp/x", 0o755, false, "nobody"))
	requireKind(t, wire.KindInvalid, "rel", c.Mkdir(ctx, "rel", 0o755, true, ""))
	require.NoDirExists(t, g.root+"/tmp/x")
}

func TestRemove(t *testing.T) {
	g, c := filesGuest(t)
	ctx := testContext(t)
	require.NoError(t, c.Mkdir(ctx, "/tmp/d/e", 0o755, true, ""))
	put(t, c, "/tmp/d/e/file", "x")
	require.NoError(t, c.Symlink(ctx, "/etc", "/tmp/d/etc"))
	requireKind(t, wire.KindNotEmpty, "/tmp/d", c.Remove(ctx, "/tmp/d", false))
	require.NoError(t, c.Remove(ctx, "/tmp/d/e/file", false))
	require.NoError(t, c.Remove(ctx, "/tmp/d/e/", false))
	require.NoError(t, c.Remove(ctx, "/tmp/d", true))
	require.FileExists(t, g.root+"/etc/passwd")
	require.NoError(t, c.Symlink(ctx, "/etc", "/tmp/link"))
	require.NoError(t, c.Remove(ctx, "/tmp/link", true))
	require.FileExists(t, g.root+"/etc/passwd")
	for _, recursive := range []bool{false, true} {
		requireKind(t, wire.KindNotFound, "/tmp/nope", c.Remove(ctx, "/tmp/nope", recursive))
		requireKind(t, wire.KindNotFound, "/no/nope", c.Remove(ctx, "/no/nope", recursive))
		requireKind(t, wire.KindInvalid, "/", c.Remove(ctx, "/", recursive))
		requireKind(t, wire.KindInvalid, "/tmp/..", c.Remove(ctx, "/tmp/..", recursive))
	}
}

func TestRenameAndSymlink(t *testing.T) {
	g, c := filesGuest(t)
	ctx := testContext(t)
	put(t, c, "/tmp/a", "a")
	put(t, c, "/tmp/b", "b")
	requireKind(t, wire.KindExists, "/tmp/b", c.Rename(ctx, "/tmp/a", "/tmp/b", true))
	require.NoError(t, c.Rename(ctx, "/tmp/a", "/tmp/b", false))
	require.Equal(t, "a", string(read(t, c, "/tmp/b")))
	require.NoError(t, c.Rename(ctx, "/tmp/b", "/tmp/c", true))
	requireKind(t, wire.KindNotFound, "/tmp/b", c.Rename(ctx, "/tmp/b", "/tmp/d", false))
	requireKind(t, wire.KindInvalid, "/small/c", c.Rename(ctx, "/tmp/c", "/small/c", false))
	require.NoError(t, c.Mkdir(ctx, "/tmp/d1", 0o755, false, ""))
	require.NoError(t, c.Mkdir(ctx, "/tmp/d2/x", 0o755, true, ""))
	requireKind(t, wire.KindNotEmpty, "/tmp/d2", c.Rename(ctx, "/tmp/d1", "/tmp/d2", false))
	requireKind(t, wire.KindInvalid, "rel", c.Rename(ctx, "/tmp/d1", "rel", false))

	require.NoError(t, c.Symlink(ctx, "../any \xff thing", "/tmp/l"))
	target, err := os.Readlink(g.root + "/tmp/l")
	require.NoError(t, err)
	require.Equal(t, "../any \xff thing", target)
	requireKind(t, wire.KindExists, "/tmp/l", c.Symlink(ctx, "x", "/tmp/l"))
	requireKind(t, wire.KindNotFound, "/no/l", c.Symlink(ctx, "x", "/no/l"))
}

func TestChmodAndChown(t *testing.T) {
	g, c := filesGuest(t)
	ctx := testContext(t)
	require.NoError(t, c.Mkdir(ctx, "/tmp/d/e", 0o755, true, ""))
	put(t, c, "/tmp/d/e/file", "x")
	put(t, c, "/tmp/outside", "x")
	require.NoError(t, c.Symlink(ctx, "/tmp/outside", "/tmp/d/link"))
	mode := func(name string) os.FileMode {
		info, err := os.Stat(g.root + name)
		require.NoError(t, err)
		return info.Mode()
	}
	require.NoError(t, c.Chmod(ctx, "/tmp/d/e/file", 0o4755&0o777|os.ModeSetuid, false))
	require.Equal(t, os.ModeSetuid|0o755, mode("/tmp/d/e/file"))
	require.NoError(t, c.Chmod(ctx, "/tmp/d", 0o700, true))
	for _, name := range []string{"/tmp/d", "/tmp/d/e", "/tmp/d/e/file"} {
		require.EqualValues(t, 0o700, mode(name).Perm(), name)
	}
	require.EqualValues(t, 0o644, mode("/tmp/outside").Perm())
	require.NoError(t, c.Chown(ctx, "/tmp/d", "app", true, false))
	for _, name := range []string{"/tmp/d", "/tmp/d/e", "/tmp/d/e/file", "/tmp/d/link"} {
		require.Equal(t, [2]uint32{1000, 0}, owners(t, g.root+name), name)
	}
	require.Equal(t, [2]uint32{0, 0}, owners(t, g.root+"/tmp/outside"))
	require.NoError(t, c.Chown(ctx, "/tmp/d/e/file", ":video", false, false))
	require.Equal(t, [2]uint32{1000, 44}, owners(t, g.root+"/tmp/d/e/file"))
	require.NoError(t, c.Chown(ctx, "/tmp/d/e/file", "5:6", true, false), "a file may be recursive too")
	require.Equal(t, [2]uint32{5, 6}, owners(t, g.root+"/tmp/d/e/file"))
	require.NoError(t, os.Symlink("outside", g.root+"/tmp/l"))
	require.NoError(t, c.Chown(ctx, "/tmp/l", "9:9", false, true))
	require.Equal(t, [2]uint32{0, 0}, owners(t, g.root+"/tmp/outside"))
	require.NoError(t, c.Chown(ctx, "/tmp/l", "9:9", false, false))
	require.Equal(t, [2]uint32{9, 9}, owners(t, g.root+"/tmp/outside"))

	requireKind(t, wire.KindNotFound, "/nope", c.Chmod(ctx, "/nope", 0o700, true))
	requireKind(t, wire.KindNotFound, "/nope", c.Chown(ctx, "/nope", "app", true, false))
	requireKind(t, wire.KindNotFound, "nobody", c.Chown(ctx, "/tmp/d", "nobody", false, false))
	requireKind(t, wire.KindNotFound, "nogroup", c.Chown(ctx, "/tmp/d", ":nogroup", false, false))
	requireKind(t, wire.KindInvalid, "/tmp/d", c.Chown(ctx, "/tmp/d", "", false, false))
}
