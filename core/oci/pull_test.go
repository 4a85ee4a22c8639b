package oci_test

import (
	"context"
	"io/fs"
	"os"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/oci"
	"github.com/supermachine/supermachine/core/oci/ocitest"
)

func newStore(t testing.TB) *oci.Store {
	t.Helper()
	s, err := oci.OpenStore(t.TempDir())
	require.NoError(t, err)
	return s
}

// openImage reads an image's root filesystem with an independent implementation of EROFS.
func openImage(t testing.TB, image *oci.Image) fs.FS {
	t.Helper()
	f, err := os.Open(image.RootFS)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	img, err := goerofs.Open(f)
	require.NoError(t, err)
	return img
}

func TestPullFromRegistry(t *testing.T) {
	host := ocitest.NewRegistry(t, nil)
	image := ocitest.NewImage(v1.Config{User: "app", Env: []string{"A=b"}, Cmd: []string{"/bin/app"}},
		ocitest.Gzip(ocitest.File("etc/hostname", "one")),
		ocitest.Zstd(ocitest.File("etc/hosts", "two")),
		ocitest.Plain(ocitest.File("bin/app", "three").Mode(0o755)))
	require.NoError(t, image.Push(context.Background(), host, "app", "v1"))

	s := newStore(t)
	got, err := s.Pull(context.Background(), host+"/app:v1", oci.PullOptions{})
	require.NoError(t, err)
	require.Equal(t, image.Digest().String(), got.Digest)
	require.Equal(t, "app", got.Config.User)
	img := openImage(t, got)
	for name, want := range map[string]string{"etc/hostname": "one", "etc/hosts": "two", "bin/app": "three"} {
		content, err := fs.ReadFile(img, name)
		require.NoError(t, err)
		require.Equal(t, want, string(content))
	}
}

// requireEmptyStore checks that nothing at all is left of a failed pull.
func requireEmptyStore(t testing.TB, s *oci.Store) {
	t.Helper()
	require.NoError(t, fs.WalkDir(os.DirFS(s.Dir()), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && path != "locks/store" && path != "locks/records" {
			t.Errorf("left in the store: %s", path)
		}
		return err
	}))
}
