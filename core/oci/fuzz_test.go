package oci

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/oci/erofs"
	"github.com/supermachine/supermachine/core/oci/ocitest"
)

// FuzzLayer feeds any bytes as a layer on top of another: whatever happens must
// be an error of ours, or an image that an independent reader can walk.
func FuzzLayer(f *testing.F) {
	f.Add(ocitest.Tar(ocitest.File("a/b", "x"), ocitest.Symlink("l", "a"), ocitest.Link("h", "l/b"), ocitest.Whiteout("a/b"), ocitest.Opaque("a")))
	f.Add(ocitest.Tar(ocitest.Sparse("s", 1<<20, ocitest.Piece{Offset: 4096, Data: "data"}), ocitest.Char("c", 1, 3), ocitest.FIFO("p"), ocitest.File("x", "y").Xattr("user.a", "b")))
	f.Add(ocitest.Tar(ocitest.Dir("d").Mode(0o1777), ocitest.File("../x", ""), ocitest.File("/abs", ""), ocitest.Dir("d/.wh.."), ocitest.Link("d", "d")))
	f.Add(ocitest.Tar(ocitest.Link("h", "a/low"), ocitest.Whiteout("a"), ocitest.Symlink("d", "/a"), ocitest.File("d/x", "1"), ocitest.File("a", "2"), ocitest.Dir("a")))
	long := ocitest.Tar(ocitest.File(strings.Repeat("long/", 60)+"name", "x").Time(time.Unix(1, 5)))
	f.Add(long)
	f.Add(long[:len(long)/2])
	f.Add(ocitest.GzipTar(ocitest.Tar(ocitest.File("z", "z"))).Blob)
	f.Add(ocitest.Zstd(ocitest.File("z", "z")).Blob)
	base := ocitest.Tar(ocitest.File("a/low", "x"), ocitest.Symlink("d", "a"), ocitest.Link("h", "a/low"))
	path := filepath.Join(f.TempDir(), "image")
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := os.Create(path)
		require.NoError(t, err)
		defer file.Close()
		lim := Limits{Bytes: 8 << 20, FileBytes: 4 << 20, Entries: 200}.withDefaults()
		w := erofs.NewWriter(file, [16]byte{})
		a := &applier{tree: newTree(w, lim)}
		require.NoError(t, a.apply(context.Background(), bytes.NewReader(base)))
		r, closeReader, err := decompress(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer closeReader()
		if err := a.apply(context.Background(), r); err != nil {
			var typed *Error
			require.True(t, errors.As(err, &typed), "%v", err)
			require.NotErrorIs(t, err, ErrStore)
			return
		}
		require.NoError(t, w.Finish(a.root))
		img, err := goerofs.Open(file)
		require.NoError(t, err)
		require.NoError(t, fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				_, err = fs.ReadFile(img, path)
			}
			return err
		}))
	})
}

// FuzzManifest feeds any bytes as a manifest or index.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:` + strings.Repeat("0", 64) + `","size":2},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + strings.Repeat("0", 64) + `","size":2,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`[]`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "index.json"), data, 0o600))
		l := &layout{files: dirFiles(dir), ref: reference{path: dir}}
		want, err := parsePlatform("linux/amd64")
		require.NoError(t, err)
		_, err = resolve(context.Background(), l, want, Limits{}.withDefaults())
		var typed *Error
		require.True(t, errors.As(err, &typed), "%v", err)
	})
}

// FuzzArchive feeds any bytes as an image archive.
func FuzzArchive(f *testing.F) {
	image := ocitest.NewImage(v1.Config{}, ocitest.Gzip(ocitest.File("a", "b")))
	f.Add(ocitest.Archive(map[string]*ocitest.Image{"v1": image}))
	f.Add(ocitest.DockerArchive(map[string]*ocitest.Image{"app:v1": image}))
	f.Add(ocitest.Tar(ocitest.Symlink("index.json", "index.json")))
	f.Add(ocitest.Tar(ocitest.File("manifest.json", `[{"Config":"../x","Layers":["a"]}]`)))
	path := filepath.Join(f.TempDir(), "archive")
	temp := func() (*os.File, error) { return os.CreateTemp(filepath.Dir(path), "") }
	f.Fuzz(func(t *testing.T, data []byte) {
		require.NoError(t, os.WriteFile(path, data, 0o600))
		lim := Limits{Bytes: 4 << 20}.withDefaults()
		src, err := openLocal(reference{kind: kindPath, path: path}, temp, lim)
		if err == nil {
			defer src.close()
			want, platformErr := parsePlatform("")
			require.NoError(t, platformErr)
			_, err = resolve(context.Background(), src, want, lim)
		}
		if err != nil {
			var typed *Error
			require.True(t, errors.As(err, &typed), "%v", err)
		}
	})
}
