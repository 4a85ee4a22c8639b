package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/tree"
	"github.com/supermachine/supermachine/core/agent/wire"
)

func TestPackAndUnpack(t *testing.T) {
	g, c := filesGuest(t)
	ctx := testContext(t)
	require.NoError(t, c.Mkdir(ctx, "/tmp/src/sub", 0o750, true, "app"))
	big := strings.Repeat("0123456789abcdef", 1<<16)
	put(t, c, "/tmp/src/sub/big", big, agent.Owner("app"))
	require.NoError(t, c.Chmod(ctx, "/tmp/src/sub/big", 0o755|os.ModeSetuid, false))
	require.NoError(t, c.Symlink(ctx, "/etc/passwd", "/tmp/src/link"))
	require.NoError(t, os.Link(g.root+"/tmp/src/sub/big", g.root+"/tmp/src/hard"))
	require.NoError(t, unix.Mkfifo(g.root+"/tmp/src/fifo", 0o600))
	for _, dst := range []string{"/tmp/kept", "/tmp/plain"} {
		require.NoError(t, c.Mkdir(ctx, dst, 0o755, false, ""))
	}
	pack := func() io.ReadCloser {
		r, err := c.Pack(ctx, "/tmp/src")
		require.NoError(t, err)
		return r
	}
	requireKind(t, wire.KindInvalid, "fifo", c.Unpack(ctx, "/tmp/plain", pack(), agent.UnpackOptions{}))
	require.NoError(t, c.Unpack(ctx, "/tmp/kept", pack(), agent.UnpackOptions{Owners: true, Setuid: true, Special: true}))
	require.NoError(t, c.Unpack(ctx, "/tmp/plain", pack(), agent.UnpackOptions{Owner: "7:8", SkipSpecial: true}))
	require.Equal(t, big, string(read(t, c, "/tmp/kept/hard")))
	require.Equal(t, [2]uint32{1000, 100}, owners(t, g.root+"/tmp/kept/sub/big"))
	require.Equal(t, [2]uint32{0, 0}, owners(t, g.root+"/tmp/kept"), "the directory itself stays")
	require.Equal(t, [2]uint32{7, 8}, owners(t, g.root+"/tmp/plain/sub/big"))
	require.FileExists(t, g.root+"/tmp/kept/fifo")
	require.NoFileExists(t, g.root+"/tmp/plain/fifo")
	for name, mode := range map[string]os.FileMode{"kept": os.ModeSetuid | 0o755, "plain": 0o755} {
		info, err := os.Stat(g.root + "/tmp/" + name + "/sub/big")
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
		require.EqualValues(t, 2, info.Sys().(*syscall.Stat_t).Nlink)
	}

	_, err := c.Pack(ctx, "/nope/x")
	requireKind(t, wire.KindNotFound, "/nope", err)
	_, err = c.Pack(ctx, "/tmp/nope")
	requireKind(t, wire.KindNotFound, "/tmp/nope", err)
	requireKind(t, wire.KindNotFound, "/nope", c.Unpack(ctx, "/nope", pack(), agent.UnpackOptions{}))
	requireKind(t, wire.KindInvalid, "/etc/passwd", c.Unpack(ctx, "/etc/passwd", pack(), agent.UnpackOptions{}))
	requireKind(t, wire.KindNotFound, "nobody", c.Unpack(ctx, "/tmp/plain", pack(), agent.UnpackOptions{Owner: "nobody"}))
	requireKind(t, wire.KindInvalid, "/tmp/plain", c.Unpack(ctx, "/tmp/plain", strings.NewReader(strings.Repeat("no archive", 100)), agent.UnpackOptions{}))
	requireKind(t, wire.KindNoSpace, "/small", c.Unpack(ctx, "/small", pack(), agent.UnpackOptions{SkipSpecial: true}))
	broken := errors.New("broken")
	require.ErrorIs(t, c.Unpack(ctx, "/tmp/plain", failing{broken}, agent.UnpackOptions{}), broken)

	var evil bytes.Buffer
	w := tar.NewWriter(&evil)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/etc"}))
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "l/passwd"}))
	require.NoError(t, w.Close())
	before := read(t, c, "/etc/passwd")
	requireKind(t, wire.KindInvalid, "/tmp/plain/l/passwd", c.Unpack(ctx, "/tmp/plain", &evil, agent.UnpackOptions{}))
	require.Equal(t, before, read(t, c, "/etc/passwd"))
}

func TestPackingIsGivenUp(t *testing.T) {
	g, c := filesGuest(t)
	put(t, c, "/tmp/big", strings.Repeat("x", 8<<20))
	r, err := c.Pack(testContext(t), "/tmp")
	require.NoError(t, err)
	_, err = io.ReadFull(r, make([]byte, 1000))
	require.NoError(t, err)
	require.NoError(t, r.Close())
	eventually(t, func() bool { return requestsUnderWay(g) == 0 }, "pack goes on")

	ctx, cancel := context.WithCancel(testContext(t))
	src, w := io.Pipe()
	ended := make(chan error)
	go func() { ended <- c.Unpack(ctx, "/tmp", src, agent.UnpackOptions{}) }()
	_, err = w.Write(make([]byte, 100))
	require.NoError(t, err)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	w.Close()
	eventually(t, func() bool { return requestsUnderWay(g) == 0 }, "unpack goes on")
}

// describeTree lists types, modes, targets and contents below a directory of this machine.
func describeTree(t *testing.T, dir string) (all []string) {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, tree.Walk(f, tree.WalkOptions{}, func(e *tree.Entry) error {
		line := fmt.Sprintf("%q %o %d", e.Path, e.Stat.Mode, e.Stat.Mtim.Nano())
		switch e.Stat.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(dir + "/" + e.Path)
			require.NoError(t, err)
			line += fmt.Sprintf(" %d %x", len(b), b[:min(len(b), 16)])
		case unix.S_IFLNK:
			target, _ := tree.Readlink(e.Dir, e.Name)
			line += " " + target
		}
		all = append(all, line)
		return nil
	}))
	sort.Strings(all)
	return all
}

func TestCopyInAndOut(t *testing.T) {
	g, c := filesGuest(t)
	ctx := testContext(t)
	base := t.TempDir()
	src := base + "/src"
	require.NoError(t, os.MkdirAll(src+"/sub/empty", 0o755))
	require.NoError(t, os.WriteFile(src+"/sub/f\xffle", bytes.Repeat([]byte("data"), 1<<18), 0o640))
	require.NoError(t, os.Symlink("sub/none", src+"/link"))
	require.NoError(t, os.Link(src+"/sub/f\xffle", src+"/hard"))
	require.NoError(t, os.Chmod(src+"/sub/empty", 0o500))
	want := describeTree(t, src)

	require.NoError(t, c.CopyIn(ctx, src, "/tmp/copy", agent.UnpackOptions{}))
	require.Equal(t, want, describeTree(t, g.root+"/tmp/copy"), "a new name")
	require.NoError(t, c.CopyIn(ctx, src, "/tmp/copy", agent.UnpackOptions{Owner: "app"}))
	require.Equal(t, want, describeTree(t, g.root+"/tmp/copy/src"), "into a directory")
	require.Equal(t, [2]uint32{1000, 100}, owners(t, g.root+"/tmp/copy/src/link"))
	require.NoError(t, os.RemoveAll(g.root+"/tmp/copy/src"))
	require.NoError(t, os.Remove(g.root+"/tmp/copy/hard"))
	require.NoError(t, c.CopyIn(ctx, src+"/.", "/tmp/copy", agent.UnpackOptions{}))
	info, err := os.Lstat(src)
	require.NoError(t, err)
	require.NoError(t, os.Chtimes(g.root+"/tmp/copy", time.Time{}, info.ModTime()))
	require.Equal(t, want, describeTree(t, g.root+"/tmp/copy"), "contents over what is there")

	require.NoError(t, c.CopyIn(ctx, src+"/sub/f\xffle", "/tmp/one", agent.UnpackOptions{}))
	require.Len(t, read(t, c, "/tmp/one"), 1<<20)
	require.NoError(t, c.CopyIn(ctx, src+"/link", "/tmp", agent.UnpackOptions{}))
	target, err := os.Readlink(g.root + "/tmp/link")
	require.NoError(t, err)
	require.Equal(t, "sub/none", target)

	out := base + "/out"
	require.NoError(t, c.CopyOut(ctx, "/tmp/copy", out, agent.CopyOutOptions{}))
	require.Equal(t, want, describeTree(t, out))
	require.NoError(t, c.CopyOut(ctx, "/tmp/copy", out, agent.CopyOutOptions{}))
	require.Equal(t, want, describeTree(t, out+"/copy"))
	require.NoError(t, os.RemoveAll(out+"/copy"))
	require.NoError(t, c.CopyOut(ctx, "/tmp/copy/.", out, agent.CopyOutOptions{Owners: true}))
	require.Equal(t, want, describeTree(t, out))
	require.NoError(t, c.CopyOut(ctx, "/tmp/one", base+"/one", agent.CopyOutOptions{}))
	require.NoError(t, c.CopyOut(ctx, "/tmp/one", base+"/one", agent.CopyOutOptions{}), "over itself")
	require.FileExists(t, base+"/one")

	put(t, c, "/tmp/su", "x")
	require.NoError(t, c.Chmod(ctx, "/tmp/su", 0o755|os.ModeSetuid, false))
	require.NoError(t, c.Chown(ctx, "/tmp/su", "app", false, false))
	require.NoError(t, c.Chmod(ctx, "/tmp/su", 0o755|os.ModeSetuid, false))
	for _, o := range []agent.CopyOutOptions{{}, {Setuid: true, Owners: true}} {
		require.NoError(t, c.CopyOut(ctx, "/tmp/su", base, o))
		info, err := os.Stat(base + "/su")
		require.NoError(t, err)
		require.Equal(t, o.Setuid, info.Mode()&os.ModeSetuid != 0)
		require.Equal(t, o.Owners, owners(t, base+"/su") == [2]uint32{1000, 0})
	}
}

func TestCopiesThatFail(t *testing.T) {
	_, c := filesGuest(t)
	ctx := testContext(t)
	base := t.TempDir()
	require.NoError(t, os.WriteFile(base+"/file", []byte("x"), 0o600))
	require.NoError(t, os.Mkdir(base+"/dir", 0o755))

	require.ErrorIs(t, c.CopyIn(ctx, base+"/nope", "/tmp", agent.UnpackOptions{}), os.ErrNotExist)
	require.ErrorIs(t, c.CopyIn(ctx, base+"/..", "/tmp", agent.UnpackOptions{}), unix.EINVAL)
	requireKind(t, wire.KindNotFound, "/no/where", c.CopyIn(ctx, base+"/file", "/no/where", agent.UnpackOptions{}))
	requireKind(t, wire.KindExists, "/etc/passwd", c.CopyIn(ctx, base+"/dir", "/etc/passwd", agent.UnpackOptions{}))
	require.NoError(t, os.WriteFile(base+"/dir/big", make([]byte, 1<<20), 0o600))
	requireKind(t, wire.KindNoSpace, "/small/dir/big", c.CopyIn(ctx, base+"/dir", "/small", agent.UnpackOptions{}))

	requireKind(t, wire.KindNotFound, "/nope", c.CopyOut(ctx, "/nope", base, agent.CopyOutOptions{}))
	require.ErrorIs(t, c.CopyOut(ctx, "/etc", base+"/no/where", agent.CopyOutOptions{}), os.ErrNotExist)
	require.ErrorIs(t, c.CopyOut(ctx, "/etc", base+"/file", agent.CopyOutOptions{}), unix.EEXIST)
	require.ErrorIs(t, c.CopyOut(ctx, "/dev", base+"/dev", agent.CopyOutOptions{}), tree.ErrSpecial)
	require.NoError(t, c.CopyOut(ctx, "/dev/.", base+"/dev", agent.CopyOutOptions{SkipSpecial: true, OneFileSystem: true}))
	require.NoFileExists(t, base+"/dev/null")
	require.ErrorIs(t, c.CopyOut(ctx, "/etc", base, agent.CopyOutOptions{MaxBytes: 10}), tree.ErrLimit)
	require.ErrorIs(t, c.CopyOut(ctx, "/etc", base, agent.CopyOutOptions{MaxEntries: 2}), tree.ErrLimit)

	// What the guest is called cannot lead a second copy out of the first.
	require.NoError(t, c.Symlink(ctx, base+"/dir", "/tmp/trap"))
	require.NoError(t, os.Mkdir(base+"/copies", 0o755))
	require.NoError(t, c.CopyOut(ctx, "/tmp/trap", base+"/copies", agent.CopyOutOptions{}))
	require.NoError(t, c.Remove(ctx, "/tmp/trap", false))
	require.NoError(t, c.Mkdir(ctx, "/tmp/trap", 0o755, false, ""))
	put(t, c, "/tmp/trap/evil", "x")
	require.ErrorIs(t, c.CopyOut(ctx, "/tmp/trap", base+"/copies", agent.CopyOutOptions{}), unix.EEXIST)
	require.NoFileExists(t, base+"/dir/evil")

	put(t, c, "/tmp/big", strings.Repeat("x", 8<<20))
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, c.CopyOut(canceled, "/tmp/big", base, agent.CopyOutOptions{}), context.Canceled)
	require.ErrorIs(t, c.CopyIn(canceled, base+"/file", "/tmp", agent.UnpackOptions{}), context.Canceled)
}
