package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

func read(t *testing.T, c *agent.Client, path string) []byte {
	t.Helper()
	r, err := c.ReadFile(testContext(t), path)
	require.NoError(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

func TestFilesGoInAndComeOut(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	for _, size := range []int{0, 1, wire.MaxData, 5 << 20} {
		content := make([]byte, size)
		rand.New(rand.NewSource(int64(size))).Read(content)
		require.NoError(t, c.WriteFile(testContext(t), "/tmp/file", bytes.NewReader(content), 0o640))
		require.True(t, bytes.Equal(content, read(t, c, "/tmp/file")))
	}
	info, err := os.Stat(filepath.Join(g.root, "tmp/file"))
	require.NoError(t, err)
	require.EqualValues(t, 0o640, info.Mode().Perm())
	require.Contains(t, string(read(t, c, "/proc/version")), "Linux", "a file that does not know its size")
}

func TestWriteFileGivesTheFileToItsOwner(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	require.NoError(t, c.WriteFile(testContext(t), "/tmp/file", strings.NewReader("x"), 0o600, agent.Owner("app:video")))
	info, err := os.Stat(filepath.Join(g.root, "tmp/file"))
	require.NoError(t, err)
	require.EqualValues(t, 1000, info.Sys().(*syscall.Stat_t).Uid)
	require.EqualValues(t, 44, info.Sys().(*syscall.Stat_t).Gid)
	err = c.WriteFile(testContext(t), "/tmp/file", strings.NewReader("y"), 0o600, agent.Owner("nobody"))
	var e *agent.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.KindNotFound, e.Kind)
	require.Equal(t, "x", string(read(t, c, "/tmp/file")))
}

func TestWriteFileFollowsLinks(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	run(t, c, "mkdir -p /tmp/a/b /tmp/real; ln -s /tmp/real /tmp/a/dir; ln -s ../other /tmp/real/link; ln -s dir/link /tmp/a/first; ln -s self /tmp/self")
	require.NoError(t, c.WriteFile(testContext(t), "/tmp/a/first", strings.NewReader("new"), 0o644))
	require.Equal(t, "new", string(run(t, c, "cat /tmp/other").Stdout), "dir/link is /tmp/real/../other")
	require.Equal(t, "dir/link\n", string(run(t, c, "readlink /tmp/a/first").Stdout))
	require.Error(t, c.WriteFile(testContext(t), "/tmp/self", strings.NewReader("x"), 0o644))
}

func TestFilesThatCannotBeReadOrWritten(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	run(t, c, "mkfifo /tmp/fifo; ln -s /tmp/fifo /tmp/tofifo; echo old >/small/old")
	for _, test := range []struct{ path, kind string }{
		{"/nope", wire.KindNotFound},
		{"/etc/passwd/x", wire.KindNotFound},
		{"/tmp", wire.KindInvalid},
		{"relative", wire.KindInvalid},
		{"/tmp/", wire.KindInvalid},
		{"/a\x00b", wire.KindInvalid},
		{"/tmp/fifo", wire.KindInvalid},
		{"/tmp/tofifo", wire.KindInvalid},
		{"/dev/zero", wire.KindInvalid},
	} {
		_, err := c.ReadFile(testContext(t), test.path)
		var e *agent.Error
		require.ErrorAs(t, err, &e, test.path)
		require.Equal(t, test.kind, e.Kind, test.path)
		if test.path == "/nope" {
			test.path = "/no/pe"
		}
		err = c.WriteFile(testContext(t), test.path, strings.NewReader("x"), 0o644)
		require.ErrorAs(t, err, &e, test.path)
		require.Equal(t, test.kind, e.Kind, test.path)
	}
	var e *agent.Error
	err := c.WriteFile(testContext(t), "/small/old", bytes.NewReader(make([]byte, 1<<20)), 0o644)
	require.ErrorAs(t, err, &e)
	require.Equal(t, wire.KindNoSpace, e.Kind)
	require.Contains(t, e.Message, "/small/old")
	require.Equal(t, "old\n", string(read(t, c, "/small/old")))
	require.Equal(t, "old\n", string(run(t, c, "ls -A /small").Stdout), "nothing is left behind")
}

func TestAnInterruptedWriteLeavesTheOldFile(t *testing.T) {
	g := newGuest(t)
	c := g.client(t)
	require.NoError(t, c.WriteFile(testContext(t), "/tmp/file", strings.NewReader("old"), 0o644))
	leftOver := func() bool { return string(run(t, c, "ls -A /tmp").Stdout) != "file\n" }

	broken := errors.New("broken")
	require.ErrorIs(t, c.WriteFile(testContext(t), "/tmp/file", io.MultiReader(strings.NewReader("new"), failing{broken}), 0o644), broken)
	eventually(t, func() bool { return !leftOver() }, "temporary file")

	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(testContext(t))
	failed := make(chan error)
	go func() { failed <- c.WriteFile(ctx, "/tmp/file", r, 0o644) }()
	_, err := w.Write([]byte("new"))
	require.NoError(t, err)
	cancel() // while the source blocks
	require.ErrorIs(t, <-failed, context.Canceled)
	w.Close()
	eventually(t, func() bool { return !leftOver() }, "temporary file")
	require.Equal(t, "old", string(read(t, c, "/tmp/file")))

	// An error of the guest comes although the source blocks.
	r, w = io.Pipe()
	defer w.Close()
	var e *agent.Error
	require.ErrorAs(t, c.WriteFile(testContext(t), "/tmp", r, 0o644), &e)
}

func TestReadingIsGivenUp(t *testing.T) {
	c := newGuest(t).client(t)
	require.NoError(t, c.WriteFile(testContext(t), "/tmp/big", bytes.NewReader(make([]byte, 4<<20)), 0o644))
	ctx, cancel := context.WithCancel(testContext(t))
	r, err := c.ReadFile(ctx, "/tmp/big")
	require.NoError(t, err)
	_, err = io.ReadFull(r, make([]byte, 10))
	require.NoError(t, err)
	cancel()
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, r.Close())

	r, err = c.ReadFile(testContext(t), "/tmp/big")
	require.NoError(t, err)
	require.NoError(t, r.Close(), "nothing was read")
	require.Len(t, read(t, c, "/tmp/big"), 4<<20)
}
