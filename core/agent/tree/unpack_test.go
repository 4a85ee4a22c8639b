package tree

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// archive makes one of headers; a regular file's contents are "evil".
func archive(t testing.TB, headers ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		require.NoError(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			w.Write([]byte("evil"))
		}
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func file(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
func linkTo(kind byte, name, to string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: to}
}

// hostile are archives that try to reach out of their directory, which is "in" beside "out" with a file "victim".
func hostile(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"absolute":                     archive(t, file("/victim")),
		"dot dot":                      archive(t, file("../out/victim")),
		"dot dot inside":               archive(t, file("a/../../out/victim")),
		"link to a directory":          archive(t, linkTo(tar.TypeSymlink, "l", "../out"), file("l/victim")),
		"absolute link":                archive(t, linkTo(tar.TypeSymlink, "l", "/"), file("l/tmp/victim")),
		"link and directory":           archive(t, linkTo(tar.TypeSymlink, "l", "../out"), tar.Header{Typeflag: tar.TypeDir, Name: "l/made"}),
		"link through a link":          archive(t, linkTo(tar.TypeSymlink, "a", "."), linkTo(tar.TypeSymlink, "a/b", ".."), file("b/out/victim")),
		"hard link outside":            archive(t, linkTo(tar.TypeLink, "h", "../out/victim"), file("h")),
		"hard link, absolute":          archive(t, linkTo(tar.TypeLink, "h", "/etc/passwd")),
		"hard link through a link":     archive(t, linkTo(tar.TypeSymlink, "l", "../out"), linkTo(tar.TypeLink, "h", "l/victim")),
		"symbolic link through a link": archive(t, linkTo(tar.TypeSymlink, "l", "../out"), linkTo(tar.TypeSymlink, "l/new", "x")),
		"a file as the directory":      archive(t, file("./.")),
	}
}

func TestArchivesStayInTheirDirectory(t *testing.T) {
	for name, b := range hostile(t) {
		base := t.TempDir()
		require.NoError(t, os.Mkdir(base+"/in", 0o755))
		write(t, base+"/out/victim", "innocent", 0o644)
		before := describe(t, base+"/out")
		require.ErrorIs(t, unpack(base+"/in", bytes.NewReader(b), Options{}), ErrUnsafe, name)
		require.Equal(t, before, describe(t, base+"/out"), name)
	}
}

func TestLinksAreReplacedAndNotWrittenThrough(t *testing.T) {
	base := t.TempDir()
	require.NoError(t, os.Mkdir(base+"/in", 0o755))
	write(t, base+"/out/victim", "innocent", 0o644)
	before := describe(t, base+"/out")
	require.NoError(t, unpack(base+"/in", bytes.NewReader(archive(t,
		linkTo(tar.TypeSymlink, "file", "../out/victim"), file("file"),
		linkTo(tar.TypeSymlink, "dir", "../out"), tar.Header{Typeflag: tar.TypeDir, Name: "dir", Mode: 0o711}, file("dir/victim"),
		linkTo(tar.TypeSymlink, "hard", "../out/victim"), linkTo(tar.TypeLink, "hard2", "hard"), file("hard2"),
	)), Options{}))
	require.Equal(t, before, describe(t, base+"/out"))
	b, err := os.ReadFile(base + "/in/dir/victim")
	require.NoError(t, err)
	require.Equal(t, "evil", string(b))

	// A link that stays inside may be what a system has instead of a directory.
	require.NoError(t, os.MkdirAll(base+"/in/usr/bin", 0o755))
	require.NoError(t, os.Symlink("usr/bin", base+"/in/bin"))
	require.NoError(t, unpack(base+"/in", bytes.NewReader(archive(t, tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, file("bin/tool"))), Options{}))
	require.FileExists(t, base+"/in/usr/bin/tool")
}

func TestArchivesThatAreRefused(t *testing.T) {
	fifo, device := tar.Header{Typeflag: tar.TypeFifo, Name: "f"}, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}
	whole := archive(t, file("a"), file("b"), file("c"))
	for _, test := range []struct {
		name string
		b    []byte
		o    Options
		err  error
	}{
		{"fifo", archive(t, fifo), Options{}, ErrSpecial},
		{"device", archive(t, device), Options{}, ErrSpecial},
		{"cut off in a file", whole[:514], Options{}, ErrArchive},
		{"no archive", bytes.Repeat([]byte("x"), 1024), Options{}, ErrArchive},
		{"too many", whole, Options{MaxEntries: 2}, ErrLimit},
		{"too large", whole, Options{MaxBytes: 11}, ErrLimit},
		{"too deep", archive(t, file(strings.Repeat("d/", MaxDepth)+"f")), Options{}, ErrTooDeep},
		{"a file where a directory is", archive(t, tar.Header{Typeflag: tar.TypeDir, Name: "d"}, file("d")), Options{}, unix.EISDIR},
		{"a link to nothing", archive(t, linkTo(tar.TypeLink, "h", "nope")), Options{}, os.ErrNotExist},
	} {
		require.ErrorIs(t, unpack(t.TempDir(), bytes.NewReader(test.b), test.o), test.err, test.name)
	}
	dir := t.TempDir()
	require.NoError(t, unpack(dir, bytes.NewReader(archive(t, fifo, device, file("a"))), Options{Skip: true}))
	require.Len(t, describe(t, dir), 2)
	if os.Geteuid() == 0 {
		require.NoError(t, unpack(dir, bytes.NewReader(archive(t, fifo, device)), Options{Special: true}))
		info, err := os.Lstat(dir + "/null")
		require.NoError(t, err)
		require.Equal(t, os.ModeDevice|os.ModeCharDevice|0o644, info.Mode())
	}
}

func TestPlacesOfCopies(t *testing.T) {
	for _, test := range []struct {
		src, dst  string
		directory bool
		at, as    string // Root below the base, and As; or
		err       error
	}{
		{"x/src", "new", true, "new", "", nil},
		{"x/src", "new/", true, "new", "", nil},
		{"x/src/", "dir", true, "dir/src", "", nil},
		{"x/src/.", "dir", true, "dir", "", nil},
		{"x/src/.", "new", true, "new", "", nil},
		{"x/src", "file", true, "", "", unix.EEXIST},
		{"x/src", "no/new", true, "", "", os.ErrNotExist},
		{"x/src", "file/new", true, "", "", unix.ENOTDIR},
		{"x/f", "new", false, ".", "new", nil},
		{"x/f", "dir", false, "dir", "f", nil},
		{"x/f", "file", false, ".", "file", nil},
		{"x/f", "new/", false, "", "", os.ErrNotExist},
		{"x/trap", "dir", true, "", "", unix.EEXIST}, // dir/trap is a link that an earlier copy may have brought
		{"x/trap", "dir", false, "dir", "trap", nil},
		{"..", "dir", true, "", "", unix.EINVAL},
		{"/", "dir", true, "", "", unix.EINVAL},
		{"/.", "dir", true, "dir", "", nil},
	} {
		base := t.TempDir()
		require.NoError(t, os.Mkdir(base+"/dir", 0o755))
		require.NoError(t, os.Symlink("/", base+"/dir/trap"))
		write(t, base+"/file", "x", 0o600)
		_, s, err := NewSource(test.src)
		var p Place
		if err == nil {
			p, err = OpenPlace(base+"/"+test.dst, s, test.directory)
		}
		if test.err != nil {
			require.ErrorIs(t, err, test.err, test)
			continue
		}
		require.NoError(t, err, test)
		require.Equal(t, test.as, p.As, test)
		got, err := p.Root.Stat(".")
		require.NoError(t, err)
		want, err := os.Stat(base + "/" + test.at)
		require.NoError(t, err)
		require.True(t, os.SameFile(want, got), test)
		p.Root.Close()
	}
}

// Somebody swaps directories for links all the time: what is removed, changed and unpacked stays in the tree.
func TestTreesThatAreAttacked(t *testing.T) {
	base := t.TempDir()
	write(t, base+"/out/victim", "innocent", 0o644)
	require.NoError(t, os.Mkdir(base+"/in", 0o755))
	before := describe(t, base+"/out")
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
			}
			os.Mkdir(base+"/in/d", 0o755)
			os.Symlink("../out", base+"/in/l")
			unix.Renameat2(unix.AT_FDCWD, base+"/in/d", unix.AT_FDCWD, base+"/in/l", unix.RENAME_EXCHANGE)
		}
	}()
	in := open(t, base)
	b := archive(t, tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o700}, file("d/victim"), file("d/more"), linkTo(tar.TypeLink, "hard", "d/victim"), file("hard"))
	for range 300 {
		unpack(base+"/in", bytes.NewReader(b), Options{})
		Pack(io.Discard, in, "in", PackOptions{})
		if dir, err := OpenDir(int(in.Fd()), "in"); err == nil {
			Walk(dir, WalkOptions{}, func(e *Entry) error {
				unix.Fchmodat(e.Dir, e.Name, 0o700, unix.AT_SYMLINK_NOFOLLOW)
				return nil
			})
			dir.Close()
		}
		left := 200
		RemoveAll(int(in.Fd()), "in", func() error {
			if left--; left == 0 {
				return ErrLimit
			}
			return nil
		})
		os.Mkdir(base+"/in", 0o755)
	}
	close(stop)
	<-ended
	require.Equal(t, before, describe(t, base+"/out"))
}

// Whatever the archive: nothing appears, changes or vanishes outside of the directory, and unpacking ends.
func FuzzUnpack(f *testing.F) {
	for _, b := range hostile(f) {
		f.Add(b)
	}
	var b bytes.Buffer
	dir := sample(f)
	require.NoError(f, os.Truncate(dir+"/sub/big", 700))
	require.NoError(f, Pack(&b, open(f, dir), ".", PackOptions{}))
	f.Add(b.Bytes())
	f.Add(archive(f, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}))
	f.Add(archive(f, file("a"), tar.Header{Typeflag: tar.TypeDir, Name: "a/b"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		base := t.TempDir()
		require.NoError(t, os.Mkdir(base+"/in", 0o755))
		write(t, base+"/out/victim", "innocent", 0o644)
		before := describe(t, base+"/out")
		unpack(base+"/in", bytes.NewReader(b), Options{MaxBytes: 1 << 20, MaxEntries: 100, Skip: true})
		require.Equal(t, before, describe(t, base+"/out"))
		entries, err := os.ReadDir(base)
		require.NoError(t, err)
		require.Len(t, entries, 2)
		filepath.WalkDir(base+"/in", func(p string, d fs.DirEntry, err error) error { // so that TempDir can be removed
			if err == nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}
