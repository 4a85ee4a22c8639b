package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func open(t testing.TB, dir string) *os.File {
	f, err := os.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t testing.TB, name, content string, mode os.FileMode) {
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	require.NoError(t, os.Chmod(name, mode))
}

// describe lists a tree: type and mode, size, link target or contents, time.
func describe(t testing.TB, dir string) (all []string) {
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := d.Info()
		require.NoError(t, err)
		rel, _ := filepath.Rel(dir, p)
		line := fmt.Sprintf("%q %v %v", rel, info.Mode(), info.ModTime().UnixNano())
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			line += fmt.Sprintf(" %q", b)
		case info.Mode()&os.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			line += " -> " + target
		}
		all = append(all, line)
		return nil
	}))
	return all
}

func walk(t testing.TB, dir string, o WalkOptions) (paths []string) {
	require.NoError(t, Walk(open(t, dir), o, func(e *Entry) error {
		require.NoError(t, e.Err)
		paths = append(paths, e.Path)
		return nil
	}))
	sort.Strings(paths)
	return paths
}

func TestWalkVisitsEverythingAndFollowsNothing(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/b/file", "x", 0o600)
	write(t, dir+"/top", "x", 0o600)
	require.NoError(t, os.Symlink(dir, dir+"/a/loop"))
	require.Equal(t, []string{"a", "a/b", "a/b/file", "a/loop", "top"}, walk(t, dir, WalkOptions{OneFS: true}))
	require.Equal(t, []string{"a", "top"}, walk(t, dir, WalkOptions{Depth: 1}))
	require.Equal(t, []string{"a", "a/b", "a/loop", "top"}, walk(t, dir, WalkOptions{Depth: 2}))
	stop := errors.New("stop")
	require.ErrorIs(t, Walk(open(t, dir), WalkOptions{}, func(*Entry) error { return stop }), stop)
}

func TestWalkSurvivesWhatVanishesAndChanges(t *testing.T) {
	dir := t.TempDir()
	for i := range 50 {
		write(t, fmt.Sprintf("%s/d%d/file", dir, i), "x", 0o600)
	}
	seen := 0
	require.NoError(t, Walk(open(t, dir), WalkOptions{}, func(e *Entry) error {
		require.NoError(t, e.Err)
		if seen++; seen == 1 { // all directories' names are read by now
			for i := range 50 {
				name := fmt.Sprintf("%s/d%d", dir, i)
				require.NoError(t, os.RemoveAll(name))
				if i%2 == 0 {
					require.NoError(t, os.Symlink("/etc", name))
				}
			}
		}
		require.NotContains(t, e.Path, "passwd", "a link was followed")
		return nil
	}))
	require.Less(t, seen, 51)
}

// deep makes directories below one another, deeper than a path can be long.
func deep(t testing.TB, dir string, n int) {
	f := open(t, dir)
	for range n {
		require.NoError(t, unix.Mkdirat(int(f.Fd()), "a-name-of-thirty-two-characters-", 0o755))
		sub, err := OpenDir(int(f.Fd()), "a-name-of-thirty-two-characters-")
		require.NoError(t, err)
		f.Close()
		f = sub
	}
	fd, err := unix.Openat(int(f.Fd()), "bottom", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	unix.Close(fd)
	f.Close()
}

func TestTreesThatAreTooDeep(t *testing.T) {
	dir := t.TempDir()
	deep(t, dir, 3*MaxDepth)
	var last error
	n := 0
	require.NoError(t, Walk(open(t, dir), WalkOptions{}, func(e *Entry) error {
		n++
		last = e.Err
		return nil
	}))
	require.ErrorIs(t, last, ErrTooDeep)
	require.Equal(t, MaxDepth+1, n)
	require.ErrorIs(t, Pack(io.Discard, open(t, dir), ".", PackOptions{}), ErrTooDeep)

	require.NoError(t, RemoveAll(int(open(t, filepath.Dir(dir)).Fd()), filepath.Base(dir), nil))
	require.NoDirExists(t, dir)
}

func TestRemoveAll(t *testing.T) {
	base := t.TempDir()
	parent := int(open(t, base).Fd())
	write(t, base+"/kept/file", "x", 0o600)
	write(t, base+"/tree/a/b", "x", 0o600)
	require.NoError(t, os.Symlink("../kept", base+"/tree/link"))
	for i := range 3000 {
		write(t, fmt.Sprintf("%s/tree/many/%d", base, i), "", 0o600)
	}
	stop := errors.New("stop")
	n := 0
	require.ErrorIs(t, RemoveAll(parent, "tree", func() error {
		if n++; n == 100 {
			return stop
		}
		return nil
	}), stop)
	require.DirExists(t, base+"/tree")
	require.NoError(t, RemoveAll(parent, "tree", nil))
	require.NoDirExists(t, base+"/tree")
	require.FileExists(t, base+"/kept/file")
	require.ErrorIs(t, RemoveAll(parent, "tree", nil), os.ErrNotExist)

	require.NoError(t, os.Symlink("kept", base+"/link"))
	require.NoError(t, RemoveAll(parent, "link", nil))
	require.FileExists(t, base+"/kept/file")
	require.NoError(t, RemoveAll(parent, "kept", nil))
}

// sample makes a tree with one of everything.
func sample(t testing.TB) string {
	dir := t.TempDir()
	write(t, dir+"/file", "hello", 0o640)
	write(t, dir+"/empty", "", 0o444)
	write(t, dir+"/sub/big", strings.Repeat("x", 200<<10), 0o755)
	write(t, dir+"/sub/\xff\xfe bytes", "raw", 0o600)
	write(t, dir+"/sub/"+strings.Repeat("long", 60), "long", 0o600)
	require.NoError(t, os.Mkdir(dir+"/closed", 0o500))
	require.NoError(t, os.Symlink("/nowhere/at all", dir+"/dangling"))
	require.NoError(t, os.Symlink("sub/big", dir+"/link"))
	require.NoError(t, os.Link(dir+"/file", dir+"/sub/hard"))
	for _, p := range []string{"/file", "/sub/big", "/sub", "/closed"} {
		require.NoError(t, os.Chtimes(dir+p, time.Time{}, time.Unix(1234567890, 123456789)))
	}
	return dir
}

func unpack(dir string, r io.Reader, o Options) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u, err := NewUnpacker(r, o)
	if err != nil {
		return err
	}
	return u.Extract(root, "", true)
}

func TestWhatIsPackedIsUnpacked(t *testing.T) {
	dir, out := sample(t), t.TempDir()
	hasXattrs := unix.Setxattr(dir+"/file", "user.note", []byte("kept\x00"), 0) == nil
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer unix.Close(l)
	require.NoError(t, unix.Bind(l, &unix.SockaddrUnix{Name: dir + "/socket"}))

	var b bytes.Buffer
	require.NoError(t, Pack(&b, open(t, dir), ".", PackOptions{}))
	require.NoError(t, os.Remove(dir+"/socket"))
	times := time.Unix(1, 0)
	require.NoError(t, os.Chtimes(dir, times, times))
	require.NoError(t, unpack(out, bytes.NewReader(b.Bytes()), Options{}))
	require.NoError(t, os.Chtimes(out, times, times))
	require.Equal(t, describe(t, dir), describe(t, out))

	a, err := os.Stat(out + "/file")
	require.NoError(t, err)
	hard, err := os.Stat(out + "/sub/hard")
	require.NoError(t, err)
	require.True(t, os.SameFile(a, hard))
	if hasXattrs {
		value := make([]byte, 10)
		n, err := unix.Getxattr(out+"/file", "user.note", value)
		require.NoError(t, err)
		require.Equal(t, "kept\x00", string(value[:n]))
	}
	// Once more over itself: files are replaced, directories stay, hard links do not lose their file.
	require.NoError(t, unpack(out, &b, Options{}))
	require.NoError(t, os.Chtimes(out, times, times))
	require.Equal(t, describe(t, dir), describe(t, out))
}

func TestASingleFileIsPackedUnderItsName(t *testing.T) {
	dir := sample(t)
	for name, typ := range map[string]byte{"file": tar.TypeReg, "link": tar.TypeSymlink} {
		var b bytes.Buffer
		require.NoError(t, Pack(&b, open(t, dir), name, PackOptions{}))
		tr := tar.NewReader(&b)
		h, err := tr.Next()
		require.NoError(t, err)
		require.Equal(t, name, h.Name)
		require.Equal(t, typ, h.Typeflag)
		_, err = tr.Next()
		require.Equal(t, io.EOF, err)
	}
	require.ErrorIs(t, Pack(io.Discard, open(t, dir), "nope", PackOptions{}), os.ErrNotExist)
}

func TestPackingStops(t *testing.T) {
	stop := errors.New("stop")
	require.ErrorIs(t, Pack(io.Discard, open(t, sample(t)), ".", PackOptions{Stop: func() error { return stop }}), stop)
	require.ErrorIs(t, Pack(failing{stop}, open(t, sample(t)), ".", PackOptions{}), stop)
}

type failing struct{ error }

func (f failing) Write([]byte) (int, error) { return 0, f.error }

func TestOwnersAndSetuidAreKeptOnlyIfAsked(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	dir := t.TempDir()
	write(t, dir+"/su", "x", 0o755)
	require.NoError(t, os.Mkdir(dir+"/d", 0o755))
	require.NoError(t, os.Symlink("x", dir+"/l"))
	for _, n := range []string{"/su", "/d", "/l"} {
		require.NoError(t, os.Lchown(dir+n, 1234, 5678))
	}
	require.NoError(t, os.Chmod(dir+"/su", 0o755|os.ModeSetuid|os.ModeSetgid))
	var b bytes.Buffer
	require.NoError(t, Pack(&b, open(t, dir), ".", PackOptions{}))
	for _, test := range []struct {
		o        Options
		uid, gid uint32
		mode     uint32
	}{
		{Options{}, 0, 0, 0o755},
		{Options{Owners: true, Setuid: true}, 1234, 5678, 0o6755},
		{Options{UID: 7, GID: 8}, 7, 8, 0o755},
	} {
		out := t.TempDir()
		require.NoError(t, unpack(out, bytes.NewReader(b.Bytes()), test.o))
		for _, n := range []string{"/su", "/d", "/l"} {
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(out+n, &st))
			require.Equal(t, [2]uint32{test.uid, test.gid}, [2]uint32{st.Uid, st.Gid}, n)
			if n == "/su" {
				require.Equal(t, test.mode, st.Mode&0o7777)
			}
		}
	}
}

// Who is not root can copy a tree that has directories closed to himself.
func TestUnpackingWithoutPrivileges(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	dir := sample(t)
	require.NoError(t, os.Chmod(dir+"/closed", 0o700))
	write(t, dir+"/closed/inner/file", "x", 0o400)
	require.NoError(t, os.Chmod(dir+"/closed/inner", 0o100))
	require.NoError(t, os.Chmod(dir+"/closed", 0o500))
	out, other := t.TempDir(), t.TempDir()
	require.NoError(t, os.Chown(out, 1000, 1000))
	require.NoError(t, os.Chown(other, 1000, 1000))
	for p := filepath.Dir(out); p != "/"; p = filepath.Dir(p) {
		require.NoError(t, os.Chmod(p, 0o755|os.ModeSticky))
		if filepath.Dir(p) == os.TempDir() {
			break
		}
	}
	var b bytes.Buffer
	require.NoError(t, Pack(&b, open(t, dir), ".", PackOptions{}))
	errs := make(chan error, 2)
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		if err := unix.Setfsuid(1000); err != nil {
			errs <- err
		}
		errs <- unpack(out, bytes.NewReader(b.Bytes()), Options{})
		errs <- unpack(other, bytes.NewReader(b.Bytes()), Options{Owners: true})
	}()
	require.NoError(t, <-errs)
	require.ErrorIs(t, <-errs, unix.EPERM, "nobody but root gives files away")
	for _, p := range []string{dir, out} {
		require.NoError(t, os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0)))
	}
	require.Equal(t, describe(t, dir)[1:], describe(t, out)[1:])
	var st unix.Stat_t
	require.NoError(t, unix.Stat(out+"/closed/inner/file", &st))
	require.EqualValues(t, 1000, st.Uid)
}
