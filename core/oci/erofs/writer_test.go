package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/oci/erofs"
)

// write builds an image from what fill puts into the root and returns its path.
func write(t *testing.T, fill func(w *erofs.Writer, root *erofs.Dir)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	w := erofs.NewWriter(f, [16]byte{1})
	root := newDir(0o755)
	fill(w, root)
	require.NoError(t, w.Finish(root))
	return path
}

func newDir(mode uint16) *erofs.Dir {
	return &erofs.Dir{Meta: erofs.Meta{Mode: mode}, Entries: map[string]erofs.Entry{}}
}

// open reads an image back with an independent implementation of the format.
func open(t *testing.T, path string) fs.FS {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	img, err := goerofs.Open(f)
	require.NoError(t, err)
	return img
}

// check runs fsck.erofs, which also reads every file, if it is installed.
func check(t *testing.T, path string) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Log("fsck.erofs is not installed: the image is checked by the reader alone")
		return
	}
	out, err := exec.Command(tool, path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, strings.ToLower(string(out)), "error")
}

func stat(t *testing.T, img fs.FS, name string) *goerofs.Stat {
	t.Helper()
	info, err := fs.Stat(img, name)
	require.NoError(t, err)
	return info.Sys().(*goerofs.Stat)
}

func TestFileSizes(t *testing.T) {
	random := make([]byte, 3<<20)
	rand.New(rand.NewSource(1)).Read(random)
	sizes := []int{0, 1, 31, 32, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 65535, 65536, 65537, 1 << 20, 3 << 20}
	path := write(t, func(w *erofs.Writer, root *erofs.Dir) {
		for _, n := range sizes {
			in, err := w.File(erofs.Meta{Mode: 0o644}, int64(n), bytes.NewReader(random))
			require.NoError(t, err)
			root.Entries[fmt.Sprint(n)] = erofs.Entry{Inode: in}
		}
	})
	img := open(t, path)
	for _, n := range sizes {
		got, err := fs.ReadFile(img, fmt.Sprint(n))
		require.NoError(t, err)
		require.True(t, bytes.Equal(random[:n], got), "file of %d bytes", n)
	}
	check(t, path)
}

func TestHoles(t *testing.T) {
	const size = 1<<30 + 5
	content := func() io.Reader {
		return io.MultiReader(
			strings.NewReader("start"), io.LimitReader(zeroReader{}, 600<<20),
			strings.NewReader("middle"), io.LimitReader(zeroReader{}, size-5-600<<20-6-3),
			strings.NewReader("end"))
	}
	path := write(t, func(w *erofs.Writer, root *erofs.Dir) {
		in, err := w.File(erofs.Meta{Mode: 0o644}, size, content())
		require.NoError(t, err)
		root.Entries["sparse"] = erofs.Entry{Inode: in}
		in, err = w.File(erofs.Meta{Mode: 0o644}, 1<<20, zeroReader{})
		require.NoError(t, err)
		root.Entries["zeros"] = erofs.Entry{Inode: in}
	})
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Less(t, info.Size(), int64(1<<20))

	f, err := open(t, path).Open("sparse")
	require.NoError(t, err)
	defer f.Close()
	got, want := sha256.New(), sha256.New()
	_, err = io.Copy(got, f)
	require.NoError(t, err)
	_, err = io.Copy(want, content())
	require.NoError(t, err)
	require.Equal(t, want.Sum(nil), got.Sum(nil))
	check(t, path)
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestMetadata(t *testing.T) {
	meta := erofs.Meta{
		Mode: 0o6751, UID: 1000, GID: 1 << 20, Mtime: 1700000000, MtimeNs: 123456789,
		Xattrs: map[string]string{
			"user.note":           "hello",
			"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00",
			"trusted.long":        strings.Repeat("x", 9000),
			"unknown.space":       "left out",
		},
	}
	path := write(t, func(w *erofs.Writer, root *erofs.Dir) {
		file, err := w.File(meta, 5, strings.NewReader("hello"))
		require.NoError(t, err)
		w.Link(file)
		dir := newDir(0o1777)
		dir.Entries["link"] = erofs.Entry{Inode: file}
		root.Entries["dir"] = erofs.Entry{Dir: dir}
		root.Entries["file"] = erofs.Entry{Inode: file}
		for name, target := range map[string]string{"short": "dir/link", "long": strings.Repeat("t", erofs.MaxSymlink)} {
			in, err := w.Symlink(erofs.Meta{Mode: 0o777}, target)
			require.NoError(t, err)
			root.Entries[name] = erofs.Entry{Inode: in}
		}
		null, err := w.Node(erofs.Meta{Mode: 0o666}, erofs.ModeChar, erofs.Rdev(1, 3))
		require.NoError(t, err)
		root.Entries["null"] = erofs.Entry{Inode: null}
		fifo, err := w.Node(erofs.Meta{Mode: 0o600}, erofs.ModeFIFO, 0)
		require.NoError(t, err)
		root.Entries["fifo"] = erofs.Entry{Inode: fifo}
	})
	img := open(t, path)

	file := stat(t, img, "file")
	require.Equal(t, 2, file.Nlink)
	require.Equal(t, file.Ino, stat(t, img, "dir/link").Ino)
	require.Equal(t, []uint32{1000, 1 << 20}, []uint32{file.UID, file.GID})
	require.Equal(t, []uint64{1700000000, 123456789}, []uint64{file.Mtime, uint64(file.MtimeNs)})
	require.Equal(t, fs.FileMode(0o751)|fs.ModeSetuid|fs.ModeSetgid, file.Mode)
	delete(meta.Xattrs, "unknown.space")
	require.Equal(t, meta.Xattrs, file.Xattrs)

	require.Equal(t, 3, stat(t, img, ".").Nlink)
	require.Equal(t, fs.ModeDir|fs.ModeSticky|0o777, stat(t, img, "dir").Mode)
	require.Equal(t, erofs.Rdev(1, 3), stat(t, img, "null").Rdev)
	require.Equal(t, fs.ModeNamedPipe|0o600, stat(t, img, "fifo").Mode)
	for name, want := range map[string]string{"short": "dir/link", "long": strings.Repeat("t", erofs.MaxSymlink)} {
		got, err := fs.ReadLink(img, name)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	check(t, path)
}

func TestDirectories(t *testing.T) {
	for _, n := range []int{0, 1, 100, 170, 171, 5000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var want []string
			path := write(t, func(w *erofs.Writer, root *erofs.Dir) {
				sub := newDir(0o755)
				root.Entries["sub"] = erofs.Entry{Dir: sub}
				for i := range n {
					name := fmt.Sprintf("%c entry %d ü", "!+-.A~"[i%6], i)
					in, err := w.Symlink(erofs.Meta{}, "x")
					require.NoError(t, err)
					sub.Entries[name] = erofs.Entry{Inode: in}
					want = append(want, name)
				}
			})
			entries, err := fs.ReadDir(open(t, path), "sub")
			require.NoError(t, err)
			var got []string
			for _, e := range entries {
				got = append(got, e.Name())
			}
			require.ElementsMatch(t, want, got)
			check(t, path)
		})
	}
}

func TestDiscardGivesSpaceBack(t *testing.T) {
	random := make([]byte, 8<<20)
	rand.New(rand.NewSource(1)).Read(random)
	path := write(t, func(w *erofs.Writer, root *erofs.Dir) {
		gone, err := w.File(erofs.Meta{}, int64(len(random)), bytes.NewReader(random))
		require.NoError(t, err)
		require.NoError(t, w.Discard(gone))
		in, err := w.File(erofs.Meta{}, 5, strings.NewReader("stays"))
		require.NoError(t, err)
		root.Entries["file"] = erofs.Entry{Inode: in}
	})
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	if bytes.Contains(data, random[:4096]) {
		t.Skip("this file system cannot punch holes")
	}
	got, err := fs.ReadFile(open(t, path), "file")
	require.NoError(t, err)
	require.Equal(t, "stays", string(got))
	check(t, path)
}

func TestTooLarge(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	require.NoError(t, err)
	defer f.Close()
	w := erofs.NewWriter(f, [16]byte{})
	_, err = w.File(erofs.Meta{}, erofs.MaxFile+1, zeroReader{})
	require.ErrorIs(t, err, erofs.ErrTooLarge)
	_, err = w.Symlink(erofs.Meta{}, strings.Repeat("x", erofs.MaxSymlink+1))
	require.ErrorIs(t, err, erofs.ErrTooLarge)
	_, err = w.File(erofs.Meta{Xattrs: map[string]string{"user.x": strings.Repeat("x", erofs.MaxXattrValue+1)}}, 0, nil)
	require.ErrorIs(t, err, erofs.ErrTooLarge)
	_, err = w.File(erofs.Meta{}, 10, strings.NewReader("short"))
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	long := newDir(0o755)
	long.Entries[strings.Repeat("n", erofs.MaxName+1)] = erofs.Entry{Dir: newDir(0)}
	require.ErrorIs(t, w.Finish(long), erofs.ErrTooLarge)
}
