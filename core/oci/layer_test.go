package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/oci"
	. "github.com/supermachine/supermachine/core/oci/ocitest"
)

// pullLayers converts layers through a local layout.
func pullLayers(t testing.TB, opts oci.PullOptions, layers ...Layer) (*oci.Image, error) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, WriteLayout(dir, map[string]*Image{"test": NewImage(v1.Config{}, layers...)}))
	s := newStore(t)
	image, err := s.Pull(context.Background(), "oci:"+dir+":test", opts)
	if err != nil {
		requireEmptyStore(t, s)
	}
	return image, err
}

// tree describes an image: path → content of files, "-> target" of links, "/" of directories, "nod" of others.
func tree(t testing.TB, img fs.FS) map[string]string {
	t.Helper()
	m := map[string]string{}
	require.NoError(t, fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		switch {
		case d.IsDir():
			m[path] = "/"
		case d.Type() == fs.ModeSymlink:
			target, err := fs.ReadLink(img, path)
			m[path] = "-> " + target
			return err
		case d.Type() == 0:
			content, err := fs.ReadFile(img, path)
			m[path] = string(content)
			return err
		default:
			m[path] = "nod"
		}
		return nil
	}))
	return m
}

func stat(t testing.TB, img fs.FS, name string) *goerofs.Stat {
	t.Helper()
	f, err := img.(interface {
		Lstat(string) (fs.FileInfo, error)
	}).Lstat(name)
	require.NoError(t, err)
	return f.Sys().(*goerofs.Stat)
}

// fsck checks an image with Debian's erofs-utils, if they are installed.
func fsck(t testing.TB, image *oci.Image) {
	t.Helper()
	tool, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Log("fsck.erofs is not installed: only the reader checks the image")
		return
	}
	out, err := exec.Command(tool, image.RootFS).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestLayers(t *testing.T) {
	type layers = [][]Entry
	tests := []struct {
		name   string
		layers layers
		want   map[string]string
	}{
		{"no layers", nil, map[string]string{}},
		{"empty layer", layers{{}}, map[string]string{}},
		{"missing parents are made", layers{{File("a/b/c", "x")}}, map[string]string{"a": "/", "a/b": "/", "a/b/c": "x"}},
		{"names in all spellings",
			layers{{Dir("./a"), File("/a/abs", "1"), File("./a/dot", "2"), File("a//b/../slashes", "3")}},
			map[string]string{"a": "/", "a/abs": "1", "a/dot": "2", "a/slashes": "3"}},
		{"UTF-8", layers{{File("grüße/日本語.txt", "é")}}, map[string]string{"grüße": "/", "grüße/日本語.txt": "é"}},
		{"long names",
			layers{{File(strings.Repeat("d", 200)+"/"+strings.Repeat("f", 255), "x")}},
			map[string]string{strings.Repeat("d", 200): "/", strings.Repeat("d", 200) + "/" + strings.Repeat("f", 255): "x"}},
		{"the last of two entries wins", layers{{File("a", "1"), File("a", "2")}}, map[string]string{"a": "2"}},
		{"upper file wins", layers{{File("a", "1")}, {File("a", "2")}}, map[string]string{"a": "2"}},
		{"directories merge", layers{{File("d/a", "1")}, {Dir("d"), File("d/b", "2")}}, map[string]string{"d": "/", "d/a": "1", "d/b": "2"}},

		{"whiteout of a file", layers{{File("a", "1"), File("b", "2")}, {Whiteout("a")}}, map[string]string{"b": "2"}},
		{"whiteout of a directory", layers{{File("d/x/y", "1")}, {Whiteout("d")}}, map[string]string{}},
		{"whiteout of nothing", layers{{File("a", "1")}, {Whiteout("nope"), Whiteout("no/pe")}}, map[string]string{"a": "1"}},
		{"whiteout, then the file again in the same layer", layers{{File("a", "1")}, {Whiteout("a"), File("a", "2")}}, map[string]string{"a": "2"}},
		{"whiteout after the file in the same layer hides only the lower one", layers{{File("a", "1")}, {File("a", "2"), Whiteout("a")}}, map[string]string{"a": "2"}},
		{"whiteout after its directory in the same layer",
			layers{{File("d/low", "1")}, {File("d/up", "2"), Whiteout("d")}},
			map[string]string{"d": "/", "d/up": "2"}},
		{"whiteout, two layers later back", layers{{File("a", "1")}, {Whiteout("a")}, {File("a", "3")}}, map[string]string{"a": "3"}},
		{"whiteout through a directory that a lower layer only implied", layers{{File("d/a", "1"), File("d/b", "2")}, {Whiteout("d/a")}}, map[string]string{"d": "/", "d/b": "2"}},
		{"AUFS metadata is skipped", layers{{File(".wh..wh.plnk/1", ""), File(".wh..wh.aufs", "")}}, map[string]string{".wh..wh.plnk": "/", ".wh..wh.plnk/1": ""}},

		{"opaque before", layers{{File("d/low", "1")}, {Opaque("d"), File("d/up", "2")}}, map[string]string{"d": "/", "d/up": "2"}},
		{"opaque after", layers{{File("d/low", "1")}, {Dir("d"), File("d/up", "2"), Opaque("d")}}, map[string]string{"d": "/", "d/up": "2"}},
		{"opaque reaches below directories of its layer",
			layers{{File("d/e/low", "1")}, {File("d/e/up", "2"), Opaque("d")}},
			map[string]string{"d": "/", "d/e": "/", "d/e/up": "2"}},
		{"opaque root", layers{{File("a", "1"), File("d/b", "2")}, {Opaque("."), File("c", "3")}}, map[string]string{"c": "3"}},
		{"opaque of nothing", layers{{Opaque("d")}}, map[string]string{}},

		{"file replaces directory", layers{{File("d/a", "1")}, {File("d", "2")}}, map[string]string{"d": "2"}},
		{"directory replaces file", layers{{File("d", "1")}, {Dir("d"), File("d/a", "2")}}, map[string]string{"d": "/", "d/a": "2"}},
		{"implied directory replaces lower file", layers{{File("d", "1")}, {File("d/a", "2")}}, map[string]string{"d": "/", "d/a": "2"}},
		{"directory replaces symbolic link", layers{{Dir("real"), Symlink("d", "real")}, {Dir("d")}}, map[string]string{"real": "/", "d": "/"}},
		{"symbolic link replaces directory", layers{{File("d/a", "1")}, {Symlink("d", "e")}}, map[string]string{"d": "-> e"}},

		{"link of the same layer is followed",
			layers{{Dir("usr/lib"), Symlink("lib", "usr/lib"), File("lib/a", "1")}},
			map[string]string{"usr": "/", "usr/lib": "/", "usr/lib/a": "1", "lib": "-> usr/lib"}},
		{"link of a lower layer gives way to a directory",
			layers{{Dir("usr/lib"), Symlink("lib", "usr/lib")}, {File("lib/a", "1")}},
			map[string]string{"usr": "/", "usr/lib": "/", "lib": "/", "lib/a": "1"}},
		{"absolute link stays inside", layers{{Symlink("l", "/etc"), File("l/passwd", "x")}}, map[string]string{"l": "-> /etc", "etc": "/", "etc/passwd": "x"}},
		{"link with .. stays inside", layers{{Symlink("l", "../../../etc"), File("l/passwd", "x")}}, map[string]string{"l": "-> ../../../etc", "etc": "/", "etc/passwd": "x"}},
		{"chain of links",
			layers{{Symlink("a", "b"), Symlink("b", "/c/d"), Symlink("c", "e"), File("a/f", "x")}},
			map[string]string{"a": "-> b", "b": "-> /c/d", "c": "-> e", "e": "/", "e/d": "/", "e/d/f": "x"}},
		{"whiteout through a link of a lower layer does nothing",
			layers{{File("real/a", "1"), Symlink("l", "real")}, {Whiteout("l/a")}},
			map[string]string{"real": "/", "real/a": "1", "l": "-> real"}},

		{"hard link", layers{{File("a", "1"), Link("b", "a")}}, map[string]string{"a": "1", "b": "1"}},
		{"hard link to an absolute name", layers{{File("d/a", "1"), Link("b", "/d/a")}}, map[string]string{"d": "/", "d/a": "1", "b": "1"}},
		{"hard link to a symbolic link", layers{{Symlink("a", "x"), Link("b", "a")}}, map[string]string{"a": "-> x", "b": "-> x"}},
		{"hard link into a lower layer", layers{{File("a", "1")}, {Link("b", "a")}}, map[string]string{"a": "1", "b": "1"}},
		{"hard link into a lower layer through a link",
			layers{{File("usr/a", "1"), Symlink("l", "usr")}, {Link("b", "l/a")}},
			map[string]string{"usr": "/", "usr/a": "1", "l": "-> usr", "b": "1"}},
		{"hard link, then its target is whited out", layers{{File("a", "1"), Link("b", "a")}, {Whiteout("a")}}, map[string]string{"b": "1"}},
		{"hard link into a lower layer, then the whiteout", layers{{File("a", "1")}, {Link("b", "a"), Whiteout("a")}}, map[string]string{"b": "1"}},
		{"one name of a hard link is replaced", layers{{File("a", "1"), Link("b", "a")}, {File("a", "2")}}, map[string]string{"a": "2", "b": "1"}},
		{"hard link to itself", layers{{File("a", "1"), Link("a", "a")}}, map[string]string{"a": "1"}},
		{"hard link replaces a directory", layers{{File("a", "1"), File("d/x", "2")}, {Link("d", "a")}}, map[string]string{"a": "1", "d": "1"}},
		{"devices", layers{{Char("dev/null", 1, 3), FIFO("pipe"), Block("dev/sda", 8, 0)}}, map[string]string{"dev": "/", "dev/null": "nod", "dev/sda": "nod", "pipe": "nod"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var built []Layer
			for _, entries := range tt.layers {
				built = append(built, Plain(entries...))
			}
			image, err := pullLayers(t, oci.PullOptions{}, built...)
			require.NoError(t, err)
			require.Equal(t, tt.want, tree(t, openImage(t, image)))
			fsck(t, image)
		})
	}
}

func TestMetadataIsKept(t *testing.T) {
	when := time.Unix(1234567890, 987654321)
	image, err := pullLayers(t, oci.PullOptions{}, Gzip(
		Dir(".").Mode(0o700).Owner(3, 4),
		Dir("tmp").Mode(0o1777),
		File("su", "x").Mode(0o4755).Owner(1000, 1<<20).Time(when).
			Xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00").
			Xattr("user.ünï", "välue"),
		Link("sg", "su"),
		File("old", "").Time(time.Unix(-5, 0)),
		Char("tty", 4, 300)),
		Gzip(Dir("tmp").Mode(0o711).Xattr("user.dir", "yes"), Link("third", "sg")))
	require.NoError(t, err)
	img := openImage(t, image)

	root := stat(t, img, ".")
	require.Equal(t, fs.ModeDir|0o700, root.Mode)
	require.Equal(t, []uint32{3, 4}, []uint32{root.UID, root.GID})
	su := stat(t, img, "su")
	require.Equal(t, fs.ModeSetuid|0o755, su.Mode)
	require.Equal(t, []uint32{1000, 1 << 20}, []uint32{su.UID, su.GID})
	require.Equal(t, when, time.Unix(int64(su.Mtime), int64(su.MtimeNs)))
	require.Len(t, su.Xattrs, 2)
	require.Equal(t, "välue", su.Xattrs["user.ünï"])
	for _, name := range []string{"sg", "third"} {
		require.Equal(t, su.Ino, stat(t, img, name).Ino)
	}
	require.Equal(t, 3, su.Nlink)
	require.Equal(t, int64(-5), int64(stat(t, img, "old").Mtime))
	tmp := stat(t, img, "tmp")
	require.Equal(t, fs.ModeDir|0o711, tmp.Mode)
	require.Equal(t, "yes", tmp.Xattrs["user.dir"])
	require.Equal(t, uint32(4<<8|300&0xff|300&^0xff<<12), stat(t, img, "tty").Rdev)
	fsck(t, image)
}

func TestSparseFile(t *testing.T) {
	const size = 1 << 30
	image, err := pullLayers(t, oci.PullOptions{}, Plain(
		Sparse("sparse", size, Piece{Offset: 0, Data: "start"}, Piece{Offset: 700 << 20, Data: "middle"}, Piece{Offset: size - 3, Data: "end"}),
		Sparse("hole", size),
		File("after", "x")))
	require.NoError(t, err)
	require.Less(t, image.Size, int64(4<<20))
	img := openImage(t, image)
	f, err := img.Open("sparse")
	require.NoError(t, err)
	defer f.Close()
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, f)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	zeros := make([]byte, 1<<20)
	write := func(n int, s string) {
		for ; n > 0; n -= min(n, len(zeros)) {
			want.Write(zeros[:min(n, len(zeros))])
		}
		io.WriteString(want, s)
	}
	write(0, "start")
	write(700<<20-5, "middle")
	write(size-3-700<<20-6, "end")
	require.Equal(t, want.Sum(nil), got.Sum(nil))
	require.EqualValues(t, size, stat(t, img, "hole").Size)
	fsck(t, image)
}

func TestManyFiles(t *testing.T) {
	const n = 100_000
	entries := make([]Entry, n)
	for i := range entries {
		entries[i] = File(fmt.Sprintf("dir%d/file %d", i%7, i), fmt.Sprint(i))
	}
	image, err := pullLayers(t, oci.PullOptions{}, Plain(entries...))
	require.NoError(t, err)
	require.Less(t, image.Size, int64(n*160))
	img := openImage(t, image)
	for i := 0; i < n; i += 997 {
		content, err := fs.ReadFile(img, fmt.Sprintf("dir%d/file %d", i%7, i))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(i), string(content))
	}
	names, err := fs.ReadDir(img, "dir3")
	require.NoError(t, err)
	require.Len(t, names, n/7+1)
	fsck(t, image)
}

func TestSameLayersGiveTheSameBytes(t *testing.T) {
	layers := []Layer{Gzip(File("a", strings.Repeat("x", 100000)), File("d/b", "2"), Link("c", "a")), Gzip(Whiteout("a"), File("e", "3"))}
	var first []byte
	for range 3 {
		image, err := pullLayers(t, oci.PullOptions{}, layers...)
		require.NoError(t, err)
		content, err := os.ReadFile(image.RootFS)
		require.NoError(t, err)
		if first == nil {
			first = content
		}
		require.True(t, bytes.Equal(first, content))
	}
}

func TestReplacedFilesTakeNoSpace(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	image, err := pullLayers(t, oci.PullOptions{},
		Gzip(File("big", string(big))), Gzip(File("big", string(big))), Gzip(File("big", string(big))))
	require.NoError(t, err)
	info, err := os.Stat(image.RootFS)
	require.NoError(t, err)
	used := info.Sys().(*syscall.Stat_t).Blocks * 512
	if used > 12<<20 {
		t.Skip("this file system cannot punch holes")
	}
	require.Less(t, used, int64(5<<20))
}

func TestHostileLayers(t *testing.T) {
	deep := strings.Repeat("d/", 300) + "f"
	truncated := Tar(File("a", strings.Repeat("x", 5000)))[:3000]
	odd := File("odd", "")
	odd.Header.Typeflag = 'Q'
	tests := []struct {
		name   string
		layer  Layer
		limits oci.Limits
		kind   error
		text   string
	}{
		{"name leads out", Plain(File("../../etc/passwd", "x")), oci.Limits{}, oci.ErrInvalidImage, "leads out of the image"},
		{"name leads out after a directory", Plain(File("a/../../b", "x")), oci.Limits{}, oci.ErrInvalidImage, "leads out of the image"},
		{"link loop", Plain(Symlink("a", "b"), Symlink("b", "a"), File("a/x", "")), oci.Limits{}, oci.ErrInvalidImage, "symbolic links"},
		{"file below a file", Plain(File("a", ""), File("a/b", "")), oci.Limits{}, oci.ErrInvalidImage, "not a directory"},
		{"root is a file", Plain(File(".", "x")), oci.Limits{}, oci.ErrInvalidImage, "the root can only be a directory"},
		{"hard link out", Plain(Link("a", "../../etc/passwd")), oci.Limits{}, oci.ErrInvalidImage, "leads out of the image"},
		{"hard link to nothing", Plain(Link("a", "b")), oci.Limits{}, oci.ErrInvalidImage, "does not exist"},
		{"hard link before its target", Plain(Link("a", "b"), File("b", "")), oci.Limits{}, oci.ErrInvalidImage, "does not exist"},
		{"hard link to a directory", Plain(Dir("d"), Link("a", "d")), oci.Limits{}, oci.ErrInvalidImage, "hard link to the directory"},
		{"hard link to the root", Plain(Link("a", "/")), oci.Limits{}, oci.ErrInvalidImage, "hard link to the directory"},
		{"hard link into a link loop", Plain(Symlink("l", "l"), Link("a", "l/x")), oci.Limits{}, oci.ErrInvalidImage, "does not exist"},
		{"whiteout of the directory itself", Plain(File("d/.wh..", "")), oci.Limits{}, oci.ErrInvalidImage, "whiteout of nothing"},
		{"whiteout of the parent", Plain(File("d/.wh...", "")), oci.Limits{}, oci.ErrInvalidImage, "whiteout of nothing"},
		{"whiteout without a name", Plain(File("d/.wh.", "")), oci.Limits{}, oci.ErrInvalidImage, "whiteout of nothing"},
		{"device out of range", Plain(Char("c", 5000, 0)), oci.Limits{}, oci.ErrInvalidImage, "out of range"},
		{"negative owner", Plain(File("a", "").Owner(-1, 0)), oci.Limits{}, oci.ErrInvalidImage, "out of range"},
		{"unknown type", Plain(odd), oci.Limits{}, oci.ErrInvalidImage, "unknown type"},
		{"not a tar", PlainTar(bytes.Repeat([]byte("junk"), 1000)), oci.Limits{}, oci.ErrInvalidImage, "bad tar"},
		{"cut tar", PlainTar(truncated), oci.Limits{}, oci.ErrInvalidImage, "ends in the middle"},
		{"name component too long", Plain(File(strings.Repeat("n", 256), "")), oci.Limits{}, oci.ErrLimit, "255 are allowed"},
		{"name too long", Plain(File(strings.Repeat("abcdefg/", 600)+"f", "")), oci.Limits{}, oci.ErrLimit, "4096 are allowed"},
		{"too deep", Plain(File(deep, "")), oci.Limits{}, oci.ErrLimit, "levels deep"},
		{"too deep through links",
			Plain(Dir("d/d/d/d"), Symlink("d/d/d/d/l", "."), Symlink("m", "d/d/d/d/x/x/x/x"), File("m/e/e/e/f", "")), oci.Limits{Depth: 9}, oci.ErrLimit, "levels deep"},
		{"too many entries", Plain(File("a", ""), File("b", ""), File("c", "")), oci.Limits{Entries: 2}, oci.ErrLimit, "more than 2 entries"},
		{"file too large", Plain(Sparse("bomb", 1<<32)), oci.Limits{FileBytes: 1 << 30}, oci.ErrLimit, "file of 4294967296 bytes"},
		{"contents too large", Plain(Sparse("a", 600<<10), Sparse("b", 600<<10)), oci.Limits{Bytes: 1 << 20}, oci.ErrLimit, "contents of more than"},
		{"stream too large", GzipTar(make([]byte, 10<<20)), oci.Limits{Bytes: 1 << 20}, oci.ErrLimit, "bytes uncompressed"},
		{"xattrs too large", Plain(File("a", "").Xattr("user.x", strings.Repeat("x", 70000))), oci.Limits{}, oci.ErrLimit, "extended attributes"},
		{"xattr larger than the format allows", Plain(File("a", "").Xattr("user.x", strings.Repeat("x", 40000)).Xattr("user.y", strings.Repeat("y", 40000))), oci.Limits{XattrBytes: 1 << 20}, oci.ErrLimit, "extended attributes"},
		{"link target too long", Plain(Symlink("a", strings.Repeat("t", 5000))), oci.Limits{}, oci.ErrLimit, "symbolic link"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			image, err := pullLayers(t, oci.PullOptions{Limits: tt.limits}, tt.layer)
			require.ErrorIs(t, err, tt.kind)
			require.ErrorContains(t, err, tt.text)
			require.ErrorContains(t, err, tt.layer.Digest.String(), "the layer is named")
			require.Nil(t, image)
			var typed *oci.Error
			require.ErrorAs(t, err, &typed)
		})
	}
}

func TestTooManyLayers(t *testing.T) {
	_, err := pullLayers(t, oci.PullOptions{Limits: oci.Limits{Layers: 1}}, Plain(), Plain(File("a", "")))
	require.ErrorIs(t, err, oci.ErrLimit)
}

// TestGlobalHeader checks that what git archive writes in front is no entry.
func TestGlobalHeader(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "abc"}}))
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "a", Size: 1}))
	_, err := w.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	image, err := pullLayers(t, oci.PullOptions{}, GzipTar(b.Bytes()))
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "x"}, tree(t, openImage(t, image)))
}
