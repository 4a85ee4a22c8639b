package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/supermachine/supermachine/core/agent/tree"
	"github.com/supermachine/supermachine/core/agent/wire"
)

const (
	maxWatches = 1 << 15               // directories under one watch
	moveDelay  = 20 * time.Millisecond // how long the second half of a rename is waited for

	watchMask = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
)

var errWatchEnded = errors.New("what was watched is gone")

// watcher turns the events of one inotify descriptor into records. The kernel's queue bounds what waits for a client that does not read: it
// overflows, and the client is told.
type watcher struct {
	st        *stream
	path      string
	recursive bool
	dir       bool // it is a directory
	inotify   *os.File
	fd        int // inotify's
	out       *wire.RecordWriter
	root      *watched
	byWD      map[int]*watched
	from      *move
}

// watched is a directory, or the file, that has a watch.
type watched struct {
	parent   *watched
	name     string
	wd       int
	children map[string]*watched
}

// move is the first half of a rename.
type move struct {
	cookie uint32
	dir    *watched
	name   string
	isDir  bool
}

// watch sends events until the client gives up or what is watched is gone.
func (st *stream) watch(req *wire.Watch) error {
	name, err := cleanPath("watch", req.Path)
	if err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "watch", Path: req.Path, Err: err}
	}
	w := &watcher{
		st: st, path: name, recursive: req.Recursive, inotify: os.NewFile(uintptr(fd), "inotify"), fd: fd,
		out: wire.NewRecordWriter(st.out), byWD: map[int]*watched{},
	}
	defer w.inotify.Close()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-st.gone:
		case <-st.c.s.down:
		case <-ended:
		}
		w.inotify.SetReadDeadline(time.Unix(1, 0))
	}()
	if err := w.begin(); err != nil {
		return under("watch", req.Path, err)
	}
	st.reply(wire.Reply{})
	err = w.run()
	w.out.Flush()
	if err == errWatchEnded {
		return nil
	}
	return under("watch", req.Path, err)
}

func (w *watcher) begin() error {
	err := w.st.inside(func() error {
		wd, err := unix.InotifyAddWatch(w.fd, w.path, watchMask)
		if err != nil {
			return err
		}
		w.root = &watched{wd: wd}
		w.byWD[wd] = w.root
		info, err := os.Stat(w.path)
		w.dir = err == nil && info.IsDir()
		return err
	})
	if err == unix.ENOSPC {
		return errTooManyWatches
	}
	if err != nil || !w.dir || !w.recursive {
		return err
	}
	return w.scan(w.root, false)
}

var errTooManyWatches = &wire.Error{Kind: wire.KindLimit, Message: fmt.Sprintf("more than %d directories, or than the guest's kernel watches", maxWatches)}

// rel returns a path below the watched directory.
func (n *watched) rel(name string) string {
	for ; n.parent != nil; n = n.parent {
		name = n.name + "/" + name
	}
	return strings.TrimSuffix(name, "/")
}

func (n *watched) depth() (d int) {
	for ; n.parent != nil; n = n.parent {
		d++
	}
	return d
}

// abs returns a directory's path. It is not cleaned: the watched path may have .. after a link.
func (w *watcher) abs(n *watched) string { return w.path + "/" + n.rel("") }

func (w *watcher) emit(op, p, from string, dir bool) error {
	return w.out.Write(wire.Event{Op: op, Path: p, From: from, Dir: dir})
}

// kernelFS are file systems that tell no changes, and have no end of directories (statfs(2)). Only who names one watches it.
var kernelFS = map[int64]bool{unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.DEBUGFS_MAGIC: true}

// add watches a directory in n. It returns nil if there is no such directory, or it is watched by another name.
func (w *watcher) add(n *watched, name string) (*watched, error) {
	if len(w.byWD) >= maxWatches || n.depth() >= tree.MaxDepth {
		return nil, errTooManyWatches
	}
	if c := n.children[name]; c != nil {
		return c, nil
	}
	wd := -1
	err := w.st.inside(func() (err error) {
		p := w.abs(n) + "/" + name
		var s unix.Statfs_t
		if err := unix.Statfs(p, &s); err != nil || kernelFS[int64(s.Type)] {
			return err
		}
		wd, err = unix.InotifyAddWatch(w.fd, p, watchMask|unix.IN_ONLYDIR|unix.IN_DONT_FOLLOW)
		return err
	})
	switch {
	case err == unix.ENOSPC || err == unix.ENAMETOOLONG:
		return nil, errTooManyWatches
	case err == errCanceled:
		return nil, err
	case err != nil || wd < 0 || w.byWD[wd] != nil:
		return nil, nil
	}
	c := &watched{parent: n, name: name, wd: wd}
	if n.children == nil {
		n.children = map[string]*watched{}
	}
	n.children[name] = c
	w.byWD[wd] = c
	return c, nil
}

// drop ends the watches of a directory and all below it.
func (w *watcher) drop(n *watched) {
	if n == nil {
		return
	}
	for _, c := range n.children {
		w.drop(c)
	}
	if w.byWD[n.wd] == n {
		delete(w.byWD, n.wd)
		unix.InotifyRmWatch(w.fd, uint32(n.wd)) // it may be gone by itself
	}
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
}

// scan watches the directories below n, and with report tells what it finds as created.
func (w *watcher) scan(n *watched, report bool) error {
	todo := []*watched{n}
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		var dir *os.File
		err := w.st.inside(func() (err error) {
			flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
			if n != w.root {
				flags |= unix.O_NOFOLLOW
			}
			fd, err := unix.Open(w.abs(n), flags, 0)
			if err == nil {
				dir = os.NewFile(uintptr(fd), n.name)
			}
			return err
		})
		if err == errCanceled {
			return err
		}
		if err != nil {
			continue // gone, or not for us to read
		}
		todo, err = w.scanDir(n, dir, todo, report)
		dir.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) scanDir(n *watched, dir *os.File, todo []*watched, report bool) ([]*watched, error) {
	err := tree.Walk(dir, tree.WalkOptions{Depth: 1}, func(e *tree.Entry) error {
		if err := w.st.stopped(); err != nil {
			return err
		}
		if report {
			if err := w.emit(wire.EventCreated, n.rel(e.Name), "", e.IsDir()); err != nil {
				return err
			}
		}
		if !e.IsDir() {
			return nil
		}
		c, err := w.add(n, e.Name)
		if c != nil {
			todo = append(todo, c)
		}
		return err
	})
	if n := (unix.Errno)(0); errors.As(err, &n) {
		err = nil // the directory can't be read on
	}
	return todo, err
}

func (w *watcher) stopped() error {
	select {
	case <-w.st.c.s.down:
		return &wire.Error{Kind: wire.KindUnavailable, Message: "watch " + w.path + ": the guest is shutting down"}
	default:
		return w.st.stopped()
	}
}

// run reads events and sends them.
func (w *watcher) run() error {
	buf := make([]byte, 64<<10)
	for {
		deadline := time.Time{}
		if w.from != nil {
			deadline = time.Now().Add(moveDelay)
		}
		w.inotify.SetReadDeadline(deadline)
		if err := w.stopped(); err != nil { // after setting what the end sets too
			return err
		}
		n, err := w.inotify.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = w.movedAway()
		}
		if err == nil {
			err = w.events(buf[:n])
		}
		if err == nil {
			err = w.out.Flush()
		}
		if err != nil {
			return err
		}
	}
}

// events handles what was read (struct inotify_event, inotify(7)).
func (w *watcher) events(b []byte) error {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int(int32(binary.NativeEndian.Uint32(b)))
		mask, cookie := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[8:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if end > len(b) {
			break
		}
		name := unix.ByteSliceToString(b[unix.SizeofInotifyEvent:end])
		b = b[end:]
		err := w.event(wd, mask, cookie, name)
		if errors.Is(err, errTooManyWatches) {
			err = w.emit(wire.EventOverflow, ".", "", true)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) event(wd int, mask, cookie uint32, name string) error {
	n := w.byWD[wd]
	if w.from != nil && (mask&unix.IN_MOVED_TO == 0 || cookie != w.from.cookie || n == nil) {
		if err := w.movedAway(); err != nil {
			return err
		}
	}
	switch {
	case mask&unix.IN_Q_OVERFLOW != 0:
		if err := w.emit(wire.EventOverflow, ".", "", true); err != nil || !w.recursive {
			return err
		}
		return w.scan(w.root, false)
	case n == nil:
		return nil // not watched any more
	case mask&unix.IN_IGNORED != 0:
		w.drop(n)
		if n == w.root {
			return errWatchEnded
		}
		return nil
	case name == "":
		return w.self(n, mask)
	}
	return w.named(n, mask, cookie, name, mask&unix.IN_ISDIR != 0)
}

// self handles what happens to the watched file or directory itself. What is below it is told by the directory that it is in.
func (w *watcher) self(n *watched, mask uint32) error {
	if n != w.root {
		return nil
	}
	gone := mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0
	if mask&unix.IN_ATTRIB != 0 { // also the first sign of the end of a file that is still open somewhere
		w.st.inside(func() error {
			_, err := os.Stat(w.path)
			gone = errors.Is(err, os.ErrNotExist)
			return nil
		})
	}
	switch {
	case gone:
		if err := w.emit(wire.EventRemoved, ".", "", w.dir); err != nil {
			return err
		}
		return errWatchEnded
	case mask&unix.IN_MODIFY != 0:
		return w.emit(wire.EventModified, ".", "", w.dir)
	}
	return w.emit(wire.EventAttributes, ".", "", w.dir)
}

func (w *watcher) named(n *watched, mask, cookie uint32, name string, dir bool) error {
	switch {
	case mask&unix.IN_MODIFY != 0:
		return w.emit(wire.EventModified, n.rel(name), "", dir)
	case mask&unix.IN_ATTRIB != 0:
		return w.emit(wire.EventAttributes, n.rel(name), "", dir)
	case mask&unix.IN_DELETE != 0:
		w.drop(n.children[name])
		return w.emit(wire.EventRemoved, n.rel(name), "", dir)
	case mask&unix.IN_MOVED_FROM != 0:
		w.from = &move{cookie, n, name, dir}
		return nil
	case mask&unix.IN_MOVED_TO != 0 && w.from != nil:
		return w.renamed(n, name)
	}
	if err := w.emit(wire.EventCreated, n.rel(name), "", dir); err != nil {
		return err
	}
	return w.appeared(n, name, dir)
}

// appeared watches a new directory and tells what is in it already.
func (w *watcher) appeared(n *watched, name string, dir bool) error {
	if !dir || !w.recursive {
		return nil
	}
	c, err := w.add(n, name)
	if c == nil {
		return err
	}
	return w.scan(c, true)
}

// renamed puts both halves of a rename together.
func (w *watcher) renamed(n *watched, name string) error {
	from := w.from
	w.from = nil
	if err := w.emit(wire.EventRenamed, n.rel(name), from.dir.rel(from.name), from.isDir); err != nil {
		return err
	}
	c := from.dir.children[from.name]
	w.drop(n.children[name])
	if c == nil {
		return w.appeared(n, name, from.isDir)
	}
	delete(from.dir.children, from.name)
	c.parent, c.name = n, name
	if n.children == nil {
		n.children = map[string]*watched{}
	}
	n.children[name] = c
	return nil
}

// movedAway tells that what was moved has not come to another place under the watch.
func (w *watcher) movedAway() error {
	from := w.from
	if w.from = nil; from == nil {
		return nil
	}
	w.drop(from.dir.children[from.name])
	return w.emit(wire.EventRemoved, from.dir.rel(from.name), "", from.isDir)
}
