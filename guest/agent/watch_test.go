package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
)

type watching struct {
	*agent.Records[agent.Event]
	t *testing.T
}

func watchPath(t *testing.T, c *agent.Client, path string, recursive bool) watching {
	r, err := c.Watch(testContext(t), path, recursive)
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	return watching{r, t}
}

// until reads events until the wanted ones have come, in any order and among others.
func (w watching) until(want ...string) {
	w.t.Helper()
	var seen []string
	missing := map[string]bool{}
	for _, s := range want {
		missing[s] = true
	}
	for len(missing) > 0 {
		e, err := w.Next()
		require.NoError(w.t, err, "after %q, waiting for %v", seen, missing)
		s := e.Op + " " + e.Path
		if e.From != "" {
			s += " from " + e.From
		}
		if e.Dir {
			s += "/"
		}
		seen = append(seen, s)
		delete(missing, s)
	}
}

// next requires the very next event.
func (w watching) next(op, path string) {
	w.t.Helper()
	e, err := w.Next()
	require.NoError(w.t, err)
	require.Equal(w.t, op+" "+path, e.Op+" "+e.Path)
}

func TestWatchADirectory(t *testing.T) {
	g, c := filesGuest(t)
	dir := g.root + "/tmp/w"
	require.NoError(t, os.MkdirAll(dir+"/sub", 0o755))
	require.NoError(t, os.WriteFile(dir+"/old", nil, 0o600))
	w := watchPath(t, c, "/tmp/w", false)
	require.NoError(t, os.WriteFile(dir+"/sub/unseen", []byte("x"), 0o600))
	require.NoError(t, os.Truncate(dir+"/old", 5))
	w.next(wire.EventModified, "old")
	require.NoError(t, os.Mkdir(dir+"/n\xffw", 0o755))
	w.next(wire.EventCreated, "n\xffw")
	require.NoError(t, os.Chmod(dir+"/old", 0o644))
	w.next(wire.EventAttributes, "old")
	require.NoError(t, os.Rename(dir+"/old", dir+"/new"))
	w.until("renamed new from old")
	require.NoError(t, os.Rename(dir+"/new", g.root+"/tmp/elsewhere"))
	w.next(wire.EventRemoved, "new")
	require.NoError(t, os.Rename(g.root+"/tmp/elsewhere", dir+"/back"))
	w.next(wire.EventCreated, "back")
	require.NoError(t, os.Remove(dir+"/back"))
	w.next(wire.EventRemoved, "back")
	require.NoError(t, os.RemoveAll(dir))
	w.until("removed sub/", "removed ./")
	_, err := w.Next()
	require.Equal(t, io.EOF, err)
	_, err = w.Next()
	require.Equal(t, io.EOF, err)
}

func TestWatchAFile(t *testing.T) {
	g, c := filesGuest(t)
	put(t, c, "/tmp/file", "x")
	require.NoError(t, os.Symlink("file", g.root+"/tmp/link"))
	w := watchPath(t, c, "/tmp/link", true)
	put(t, c, "/tmp/file", "y", agent.Append())
	w.next(wire.EventModified, ".")
	require.NoError(t, os.Chmod(g.root+"/tmp/file", 0o600))
	w.next(wire.EventAttributes, ".")
	f, err := os.Open(g.root + "/tmp/file") // it stays open
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Remove(g.root+"/tmp/file"))
	w.next(wire.EventRemoved, ".")
	_, err = w.Next()
	require.Equal(t, io.EOF, err)

	put(t, c, "/tmp/file", "x")
	w = watchPath(t, c, "/tmp/file", false)
	require.NoError(t, c.Rename(testContext(t), "/tmp/file", "/tmp/moved", false))
	w.next(wire.EventRemoved, ".")
	_, err = w.Next()
	require.Equal(t, io.EOF, err)

	for path, kind := range map[string]string{"/nope": wire.KindNotFound, "rel": wire.KindInvalid} {
		_, err := c.Watch(testContext(t), path, false)
		requireKind(t, kind, path, err)
	}
}

func TestWatchATree(t *testing.T) {
	g, c := filesGuest(t)
	dir := g.root + "/tmp/w"
	require.NoError(t, os.MkdirAll(dir+"/a/b", 0o755))
	require.NoError(t, os.MkdirAll(g.root+"/tmp/outside/in", 0o755))
	require.NoError(t, os.Symlink("/tmp/outside", dir+"/link"))
	w := watchPath(t, c, "/tmp/w", true)
	require.NoError(t, os.WriteFile(g.root+"/tmp/outside/unseen", nil, 0o600))
	require.NoError(t, os.WriteFile(dir+"/a/b/file", nil, 0o600))
	w.next(wire.EventCreated, "a/b/file")

	// New directories are watched, and what is in them from the beginning is told.
	require.NoError(t, os.MkdirAll(dir+"/new/x/y", 0o755))
	require.NoError(t, os.WriteFile(dir+"/new/x/y/file", nil, 0o600))
	w.until("created new/", "created new/x/", "created new/x/y/", "created new/x/y/file")
	require.NoError(t, os.WriteFile(dir+"/new/x/y/later", nil, 0o600))
	w.until("created new/x/y/later")

	// A directory takes its watches along.
	require.NoError(t, os.Rename(dir+"/new/x", dir+"/a/z"))
	w.until("renamed a/z from new/x/")
	require.NoError(t, os.WriteFile(dir+"/a/z/y/moved", nil, 0o600))
	w.until("created a/z/y/moved")

	// What is moved away is not watched any more; what comes is.
	require.NoError(t, os.Rename(dir+"/a/z", g.root+"/tmp/away"))
	w.until("removed a/z/")
	require.NoError(t, os.WriteFile(g.root+"/tmp/away/y/unseen", nil, 0o600))
	require.NoError(t, os.Rename(g.root+"/tmp/outside", dir+"/came"))
	w.until("created came/", "created came/in/", "created came/unseen")
	require.NoError(t, os.WriteFile(dir+"/came/in/file", nil, 0o600))
	w.until("created came/in/file")

	// The same name again and again.
	for i := range 100 {
		require.NoError(t, os.RemoveAll(dir+"/again"))
		require.NoError(t, os.Mkdir(dir+"/again", 0o755))
		name := fmt.Sprintf("again/%d", i)
		require.NoError(t, os.WriteFile(dir+"/"+name, nil, 0o600))
		w.until("created " + name)
	}
	require.NoError(t, os.RemoveAll(dir))
	w.until("removed a/b/", "removed came/in/", "removed ./")
	_, err := w.Next()
	require.Equal(t, io.EOF, err)
}

func TestWatchEverything(t *testing.T) {
	g, c := filesGuest(t)
	w := watchPath(t, c, "/", true)
	require.NoError(t, os.WriteFile(g.root+"/tmp/file", nil, 0o600))
	w.next(wire.EventCreated, "tmp/file")
	require.NoError(t, c.Mkdir(testContext(t), "/dev/new", 0o755, false, "")) // of another file system
	w.next(wire.EventCreated, "dev/new")
}

func TestWatchesOverflow(t *testing.T) {
	g, c := filesGuest(t)
	require.NoError(t, c.Mkdir(testContext(t), "/dev/w", 0o755, false, ""))
	for _, name := range []string{"/dev/w/a", "/dev/w/b"} {
		put(t, c, name, "")
	}
	w := watchPath(t, c, "/dev/w", true)
	// Nobody reads: the stream's window and the kernel's queue fill.
	limit, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	require.NoError(t, err)
	queue := 0
	_, err = fmt.Sscan(string(limit), &queue)
	require.NoError(t, err)
	g.server.threads.do(func() {
		for i := range queue + 20_000 { // the same event twice in a row would be one
			err = errors.Join(err, os.Chmod("/dev/w/"+string(rune('a'+i%2)), 0o600))
		}
		err = errors.Join(err, os.Mkdir("/dev/w/lost", 0o755))
	})
	require.NoError(t, err)
	w.until("overflow ./")
	// Directories whose events were lost are watched nevertheless.
	require.NoError(t, c.Mkdir(testContext(t), "/dev/w/lost/found", 0o755, false, ""))
	w.until("created lost/found/")
}

func TestWatchingEnds(t *testing.T) {
	g, c := filesGuest(t)
	ctx, cancel := context.WithCancel(testContext(t))
	r, err := c.Watch(ctx, "/tmp", true)
	require.NoError(t, err)
	ended := make(chan error)
	go func() { _, err := r.Next(); ended <- err }()
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.NoError(t, r.Close())
	r, err = c.Watch(testContext(t), "/tmp", false)
	require.NoError(t, err)
	go func() { _, err := r.Next(); ended <- err }()
	require.NoError(t, r.Close())
	require.Error(t, <-ended)
	eventually(t, func() bool { return requestsUnderWay(g) == 0 }, "watches go on")

	// With the connection, too.
	other := g.client(t)
	r, err = other.Watch(testContext(t), "/tmp", true)
	require.NoError(t, err)
	other.Close()
	_, err = r.Next()
	require.ErrorIs(t, err, agent.ErrClosed)
}

func TestWatchesDoNotDelayTheEnd(t *testing.T) {
	g, c := filesGuest(t)
	w := watchPath(t, c, "/tmp", true)
	require.NoError(t, g.client(t).Shutdown(testContext(t), 0))
	_, err := w.Next()
	requireKind(t, wire.KindUnavailable, "/tmp", err) // and not the end of the connection
	<-g.off
}

// A file system that never answers holds up nobody but who asks for it.
func TestFileSystemsThatHang(t *testing.T) {
	g, c := filesGuest(t)
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no FUSE here: ", err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	require.NoError(t, c.Mkdir(ctx, "/tmp/hung", 0o755, false, ""))
	g.server.threads.do(func() {
		err = unix.Mount("fuse", "/tmp/hung", "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", dev.Fd()))
	})
	require.NoError(t, err)
	t.Cleanup(func() { dev.Close() }) // ends what hangs
	const more = 10
	ended := make(chan error)
	for range maxFileOps + more {
		go func() { _, err := c.Stat(ctx, "/tmp/hung", false); ended <- err }()
	}
	eventually(t, func() bool { return len(g.server.threads.files) == maxFileOps }, "places that are taken")
	// Programs still find a thread.
	_, err = c.Exec(testContext(t), agent.ExecRequest{Args: []string{"/bin/nope"}})
	requireKind(t, wire.KindCommandNotFound, "/bin/nope", err)
	cancel()
	for range maxFileOps + more {
		require.ErrorIs(t, <-ended, context.Canceled)
	}
	dev.Close()
	_, err = c.Stat(testContext(t), "/tmp", false)
	require.NoError(t, err)
	eventually(t, func() bool { return requestsUnderWay(g) == 0 }, "requests that hung")
}
