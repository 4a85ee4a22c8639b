package core_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core"
	"github.com/supermachine/supermachine/core/vmtest"
)

func TestFilesAreWrittenAndReadBack(t *testing.T) {
	vm := vmtest.Shared(t)
	vmtest.Shell(t, vm, "mkdir -p /tmp/files")
	large := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{2}).Read(large)
	for name, content := range map[string][]byte{"empty": {}, "small": []byte("text\x00\xff"), "20 MiB, ümlaut": large} {
		t.Run(name, func(t *testing.T) {
			path := "/tmp/files/" + name
			require.NoError(t, vm.WriteFile(t.Context(), path, bytes.NewReader(content), 0o640))
			r, err := vm.ReadFile(t.Context(), path)
			require.NoError(t, err)
			defer r.Close()
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, got))
			require.Equal(t, "640", vmtest.Shell(t, vm, "stat -c %a '"+path+"'"))
		})
	}
}

func TestWriteFileReplacesAllOrNothing(t *testing.T) {
	vm := vmtest.Shared(t)
	vmtest.Shell(t, vm, "mkdir -p /tmp/replace")
	const path = "/tmp/replace/file"
	require.NoError(t, vm.WriteFile(t.Context(), path, strings.NewReader("old"), 0o600))
	broken := errors.New("the source broke")
	err := vm.WriteFile(t.Context(), path, io.MultiReader(strings.NewReader("new"), iotest.ErrReader(broken)), 0o600)
	require.ErrorIs(t, err, broken)
	require.Equal(t, "old", vmtest.Shell(t, vm, "cat "+path))
	require.NoError(t, vm.WriteFile(t.Context(), path, strings.NewReader("new"), 0o755))
	require.Equal(t, "new 755", vmtest.Shell(t, vm, "echo $(cat "+path+") $(stat -c %a "+path+")"))
	eventually(t, func() bool { return vmtest.Shell(t, vm, "ls -A /tmp/replace") == "file" }, "nothing is left over")
}

func TestFileErrorsAreTyped(t *testing.T) {
	vm := vmtest.Shared(t)
	for path, code := range map[string]core.Code{
		"/no/such/file":   core.ErrNotFound,
		"/etc":            core.ErrInvalidArgument,
		"relative":        core.ErrInvalidArgument,
		"/etc/passwd/sub": core.ErrNotFound,
	} {
		_, err := vm.ReadFile(t.Context(), path)
		require.ErrorIs(t, err, code, path)
		require.ErrorContains(t, err, path)
		if path != "/no/such/file" {
			require.ErrorIs(t, vm.WriteFile(t.Context(), path, strings.NewReader(""), 0o600), code, path)
		}
	}
	require.ErrorIs(t, vm.WriteFile(t.Context(), "/no/such/dir/file", strings.NewReader("x"), 0o600), core.ErrNotFound)
}

func TestReadingEndsWithTheContext(t *testing.T) {
	vm := vmtest.Shared(t)
	vmtest.Shell(t, vm, "dd if=/dev/zero of=/tmp/zeros bs=1M count=8 2>/dev/null")
	ctx, cancel := context.WithCancel(t.Context())
	r, err := vm.ReadFile(ctx, "/tmp/zeros")
	require.NoError(t, err)
	defer r.Close()
	cancel()
	_, err = io.Copy(io.Discard, r)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "ok", vmtest.Shell(t, vm, "rm /tmp/zeros; echo ok"))
}

func TestConnectToAPortWhereNothingListens(t *testing.T) {
	vm := vmtest.Shared(t)
	_, err := vm.Connect(t.Context(), 9)
	require.ErrorIs(t, err, core.ErrRefused)
	require.ErrorContains(t, err, vm.ID())
}

func TestConnectionsHalfCloseBothWays(t *testing.T) {
	vm := vmtest.Shared(t)
	p, err := vm.Exec(t.Context(), core.Exec{Args: []string{"nc", "-l", "-p", "7000", "-e", "sort"}})
	require.NoError(t, err)
	defer p.Kill()
	var conn io.ReadWriteCloser
	eventually(t, func() bool {
		c, err := vm.Connect(t.Context(), 7000)
		conn = c
		return err == nil
	}, "nc does not listen")
	defer conn.Close()
	_, err = io.WriteString(conn, "b\na\n")
	require.NoError(t, err)
	require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "a\nb\n", string(got), "sort prints when its input has ended")
}
