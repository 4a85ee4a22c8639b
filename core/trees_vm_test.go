package core_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

func TestPartsOfFilesAreReadAndWritten(t *testing.T) {
	vm := vmtest.Shared(t)
	const path = "/tmp/parts"
	require.NoError(t, vm.WriteFile(t.Context(), path, strings.NewReader("hello"), 0o600, core.Append()))
	require.NoError(t, vm.WriteFile(t.Context(), path, strings.NewReader(" world"), 0o600, core.Append()))
	require.NoError(t, vm.WriteFile(t.Context(), path, strings.NewReader("J"), 0o600, core.At(0)))
	r, err := vm.ReadFile(t.Context(), path, core.Range(0, 7))
	require.NoError(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "Jello w", string(b))
	require.Equal(t, "Jello world", vmtest.Shell(t, vm, "cat "+path))
}

func TestNamesAndAttributesOfFiles(t *testing.T) {
	vm := vmtest.Shared(t)
	ctx := t.Context()
	require.NoError(t, vm.Mkdir(ctx, "/tmp/names/a/b", 0o750, true, "1000:1000"))
	require.NoError(t, vm.Symlink(ctx, "a/b", "/tmp/names/link"))
	require.Equal(t, "750 1000 1000", vmtest.Shell(t, vm, "stat -c '%a %u %g' /tmp/names/link/."))
	info, err := vm.Lstat(ctx, "/tmp/names/link")
	require.NoError(t, err)
	require.Equal(t, "a/b", info.Target)
	info, err = vm.Stat(ctx, "/tmp/names/link")
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o750, info.Mode)

	var all []string
	walk, err := vm.Walk(ctx, "/tmp/names")
	require.NoError(t, err)
	for info, err := range walk.All() {
		require.NoError(t, err)
		all = append(all, info.Path)
	}
	slices.Sort(all)
	require.Equal(t, []string{"a", "a/b", "link"}, all)

	require.ErrorIs(t, vm.Mkdir(ctx, "/tmp/names", 0o755, false, ""), core.ErrExists)
	require.ErrorIs(t, vm.Remove(ctx, "/tmp/names", false), core.ErrNotEmpty)
	require.ErrorIs(t, vm.Rename(ctx, "/tmp/names/a", "/tmp/names/link", true), core.ErrExists)
	require.NoError(t, vm.Chown(ctx, "/tmp/names", "7:8", true, false))
	require.NoError(t, vm.Chmod(ctx, "/tmp/names", 0o700, true))
	require.NoError(t, vm.Rename(ctx, "/tmp/names/a/b", "/tmp/names/c", false))
	require.Equal(t, "700 7 8", vmtest.Shell(t, vm, "stat -c '%a %u %g' /tmp/names/c"))
	require.NoError(t, vm.Remove(ctx, "/tmp/names", true))
	_, err = vm.List(ctx, "/tmp/names")
	require.ErrorIs(t, err, core.ErrNotFound)
	require.ErrorContains(t, err, "/tmp/names")
}

func TestChangesAreTold(t *testing.T) {
	vm := vmtest.Shared(t)
	vmtest.Shell(t, vm, "mkdir -p /tmp/watched")
	w, err := vm.Watch(t.Context(), "/tmp/watched", true)
	require.NoError(t, err)
	defer w.Close()
	vmtest.Shell(t, vm, "mkdir -p /tmp/watched/new && touch /tmp/watched/new/file && mv /tmp/watched/new/file /tmp/watched/moved && rm -r /tmp/watched")
	seen := map[string]bool{}
	for e, err := range w.All() {
		require.NoError(t, err)
		seen[e.Op+" "+e.Path] = true
	}
	for _, want := range []string{"created new", "removed moved", "removed ."} {
		require.True(t, seen[want], "%s is not in %v", want, seen)
	}
}

func TestTreesAreCopiedInAndOut(t *testing.T) {
	vm := vmtest.Shared(t)
	ctx := t.Context()
	src, out := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "out")
	require.NoError(t, os.MkdirAll(src+"/sub", 0o755))
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	require.NoError(t, os.WriteFile(src+"/sub/large", large, 0o640))
	require.NoError(t, os.Symlink("sub/large", src+"/link"))
	vmtest.Shell(t, vm, "mkdir -p /tmp/copies")
	require.NoError(t, vm.CopyIn(ctx, src, "/tmp/copies", core.UnpackOptions{}))
	require.Equal(t, "640 16777216 sub/large", vmtest.Shell(t, vm, "cd /tmp/copies/src; echo $(stat -c '%a %s' sub/large) $(readlink link)"))
	require.NoError(t, vm.CopyOut(ctx, "/tmp/copies/src", out, core.CopyOutOptions{}))
	b, err := os.ReadFile(out + "/link")
	require.NoError(t, err)
	require.True(t, bytes.Equal(large, b))

	r, err := vm.Pack(ctx, "/tmp/copies/src")
	require.NoError(t, err)
	defer r.Close()
	vmtest.Shell(t, vm, "mkdir /tmp/copies/again")
	require.NoError(t, vm.Unpack(ctx, "/tmp/copies/again", r, core.UnpackOptions{}))
	require.Equal(t, "same", vmtest.Shell(t, vm, "cmp /tmp/copies/src/sub/large /tmp/copies/again/link && echo same"))

	vmtest.Shell(t, vm, "mkfifo /tmp/copies/src/fifo")
	require.ErrorIs(t, vm.CopyOut(ctx, "/tmp/copies/src/.", out, core.CopyOutOptions{}), core.ErrUnsafe)
	require.ErrorIs(t, vm.CopyOut(ctx, "/no/such", out, core.CopyOutOptions{}), core.ErrNotFound)
	require.ErrorIs(t, vm.CopyOut(ctx, "/etc", out+"/no/such", core.CopyOutOptions{}), core.ErrNotFound)
	require.ErrorIs(t, vm.CopyOut(ctx, "/etc", out+"/link", core.CopyOutOptions{}), core.ErrExists)
	vmtest.Shell(t, vm, "rm -r /tmp/copies")
}
