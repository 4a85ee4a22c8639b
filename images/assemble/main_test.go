package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
)

// file is one entry of a test's archive; a name that ends in a slash is a directory.
type file struct{ name, content, link string }

func archive(t *testing.T, name string, files ...file) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	for _, e := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o644, Size: int64(len(e.content)), ModTime: time.Unix(1, 0)}
		switch {
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, e.link
		case e.name[len(e.name)-1] == '/':
			h.Typeflag = tar.TypeDir
		}
		require.NoError(t, w.WriteHeader(h))
		_, err := io.WriteString(w, e.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return path
}

func names(t *testing.T, r io.Reader) []string {
	t.Helper()
	var names []string
	for r := tar.NewReader(r); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		require.NoError(t, err)
		names = append(names, h.Name)
	}
}

func TestSecondStageBecomesTheDifference(t *testing.T) {
	for name, c := range map[string]struct {
		before, after []file
		exclude       []string
		want          []string
	}{
		"nothing": {
			before: []file{{name: "./a/"}, {name: "./a/b", content: "1"}},
			after:  []file{{name: "./a/"}, {name: "./a/b", content: "1"}},
		},
		"added and changed": {
			before: []file{{name: "./a/"}, {name: "./a/b", content: "1"}, {name: "./c", content: "1"}},
			after:  []file{{name: "./a/"}, {name: "./a/b", content: "2"}, {name: "./c", content: "1"}, {name: "./d/"}},
			want:   []string{"a/b", "d/"},
		},
		"removed": {
			before: []file{{name: "./a/"}, {name: "./a/b"}, {name: "./a/c/"}, {name: "./a/c/d"}, {name: "./e"}},
			after:  []file{{name: "./a/"}},
			want:   []string{"a/.wh.b", "a/.wh.c", ".wh.e"},
		},
		"hard link to an old file": {
			before: []file{{name: "./a", content: "1"}},
			after:  []file{{name: "./a", content: "1"}, {name: "./b", link: "./a"}},
			want:   []string{"a", "b"},
		},
		"excluded": {
			before: []file{{name: "./a"}},
			after:  []file{{name: "./a"}, {name: "./d/"}, {name: "./d/e"}, {name: "./d/f/"}, {name: "./d/f/g"}, {name: "./h/"}, {name: "./h/i"}},

			exclude: []string{"d/*", "h"},
			want:    []string{"d/"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "layer.tar")
			before, err := readTree(archive(t, "before.tar", c.before...), c.exclude)
			require.NoError(t, err)
			_, err = writeLayer(out, archive(t, "after.tar", c.after...), before, c.exclude)
			require.NoError(t, err)
			f, err := os.Open(out)
			require.NoError(t, err)
			defer f.Close()
			require.Equal(t, c.want, names(t, f))
		})
	}
}

func TestLayoutHasEveryTagAndTheConfiguration(t *testing.T) {
	out := filepath.Join(t.TempDir(), "layout")
	o, err := parse([]string{"--out", out, "--created", "7", "--name", "one", "--name", "two",
		"--stage", archive(t, "base.tar", file{name: "./a"}),
		"--stage", archive(t, "more.tar", file{name: "./a"}, file{name: "./b"}),
		"--env", "A=B", "--cmd", "run", "--cmd", "it", "--port", "80/tcp", "--workdir", "/w"})
	require.NoError(t, err)
	require.NoError(t, assemble(o))

	index, err := layout.ImageIndexFromPath(out)
	require.NoError(t, err)
	manifest, err := index.IndexManifest()
	require.NoError(t, err)
	var tags []string
	for _, d := range manifest.Manifests {
		tags = append(tags, d.Annotations[refName])
	}
	require.Equal(t, []string{"one", "two"}, tags)

	img, err := index.Image(manifest.Manifests[0].Digest)
	require.NoError(t, err)
	c, err := img.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, []string{"A=B"}, c.Config.Env)
	require.Equal(t, []string{"run", "it"}, c.Config.Cmd)
	require.Equal(t, map[string]struct{}{"80/tcp": {}}, c.Config.ExposedPorts)
	require.Equal(t, "/w", c.Config.WorkingDir)
	require.Equal(t, int64(7), c.Created.Unix())

	layers, err := img.Layers()
	require.NoError(t, err)
	for i, want := range [][]string{{"a"}, {"b"}} {
		media, err := layers[i].MediaType()
		require.NoError(t, err)
		require.Equal(t, types.OCILayer, media)
		r, err := layers[i].Uncompressed()
		require.NoError(t, err)
		require.Equal(t, want, names(t, r))
		require.NoError(t, r.Close())
	}

	entries, err := os.ReadDir(filepath.Dir(out))
	require.NoError(t, err)
	require.Len(t, entries, 1, "the layers' directory is gone")
}

func TestParseRefuses(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing":   nil,
		"a word":    {"--out", "o", "--stage", "s", "--name", "n", "word"},
		"a time":    {"--out", "o", "--stage", "s", "--name", "n", "--created", "today"},
		"a pattern": {"--out", "o", "--stage", "s", "--name", "n", "--exclude", "["},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(args)
			require.Error(t, err)
		})
	}
}
