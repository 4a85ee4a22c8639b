package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"

	"github.com/supermachine/supermachine/core/agent/wire"
)

// FileInfo describes a file in the guest, by what the guest says.
type FileInfo struct {
	Name    string      // last part of Path. It is bytes: check it before it is used as a path on the host
	Path    string      // of List and Walk: below their directory, with slashes; of Stat as given
	Size    int64       // bytes of a regular file or of a link's target
	Mode    fs.FileMode // type and permission bits
	UID     uint32
	GID     uint32
	ModTime time.Time
	Target  string // of a symbolic link
	Dev     uint64 // with Ino, the file's identity in the guest
	Ino     uint64
	Links   uint64 // how many names the file has
	// Err is set where List or Walk could not examine a file, or could not read a directory to its end, which is then told a second time; they go on
	// with the next.
	Err error
}

// Event is a change of a file that is watched.
type Event struct {
	Op   string // one of the constants below
	Path string // below the watched directory, with slashes; "." is the watched file or directory itself
	From string // of EventRenamed: the old path
	Dir  bool   // a directory's
}

// What an Event tells.
const (
	EventCreated    = wire.EventCreated    // made, or moved here from elsewhere; it may come twice for what is in a new directory
	EventModified   = wire.EventModified   // contents
	EventRemoved    = wire.EventRemoved    // or moved elsewhere; of "." it is the last
	EventRenamed    = wire.EventRenamed    // within what is watched; what had the name is replaced
	EventAttributes = wire.EventAttributes // mode, owner, times or number of names
	EventOverflow   = wire.EventOverflow   // events were lost, or a new directory could not be watched: look yourself
)

var eventOps = map[string]bool{
	EventCreated: true, EventModified: true, EventRemoved: true, EventRenamed: true, EventAttributes: true, EventOverflow: true,
}

// Records is a stream of what the guest tells. One goroutine at a time calls Next; Close may be called at any time, and must be called. While nobody
// calls Next the guest waits, after 256 KiB.
type Records[T any] struct {
	r    *fileReader
	dec  *wire.RecordReader
	next func(*wire.RecordReader) (T, error)
	err  error
}

func newRecords[W, T any](r *fileReader, convert func(*W) (T, error)) *Records[T] {
	return &Records[T]{r: r, dec: wire.NewRecordReader(r), next: func(dec *wire.RecordReader) (T, error) {
		var w W
		if err := dec.Read(&w); err != nil {
			var none T
			return none, err
		}
		return convert(&w)
	}}
}

// Next returns the next record; io.EOF after the last. Every other error is the last, too.
func (r *Records[T]) Next() (T, error) {
	var none T
	if r.err != nil {
		return none, r.err
	}
	v, err := r.next(r.dec)
	if err == nil {
		return v, nil
	}
	r.err = err
	r.r.stop()
	r.r.s.abandon(err) // does nothing after the end
	return none, err
}

// All returns what Next returns, until the end; an error is the last of it. It closes the stream.
func (r *Records[T]) All() iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		defer r.Close()
		for {
			v, err := r.Next()
			if err == io.EOF || !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// Close ends the stream, also a Next that waits.
func (r *Records[T]) Close() error { return r.r.Close() }

// fileMode translates Linux's st_mode.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m & 0o170000 {
	case 0o040000:
		mode |= fs.ModeDir
	case 0o120000:
		mode |= fs.ModeSymlink
	case 0o010000:
		mode |= fs.ModeNamedPipe
	case 0o140000:
		mode |= fs.ModeSocket
	case 0o020000:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case 0o060000:
		mode |= fs.ModeDevice
	case 0o100000:
	default:
		mode |= fs.ModeIrregular
	}
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

// linuxMode translates the bits that can be set.
func linuxMode(mode fs.FileMode) uint32 {
	m := uint32(mode.Perm())
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&flag != 0 {
			m |= bit
		}
	}
	return m
}

func toFileInfo(w *wire.FileInfo) (FileInfo, error) {
	info := FileInfo{
		Name: w.Path[strings.LastIndexByte(w.Path, '/')+1:], Path: w.Path, Size: w.Size, Mode: fileMode(w.Mode), UID: w.UID, GID: w.GID,
		ModTime: time.Unix(0, w.ModTime), Target: w.Target, Dev: w.Dev, Ino: w.Ino, Links: w.Links,
	}
	if w.Size < 0 || w.Path == "" {
		return info, fmt.Errorf("%w: a file of %d bytes with a name of %d", wire.ErrProtocol, w.Size, len(w.Path))
	}
	if info.Name == "" { // the root
		info.Name = w.Path
	}
	if w.Error != nil {
		w.Error.Message = printable(w.Error.Message)
		info.Err = w.Error
	}
	return info, nil
}

func toEvent(w *wire.Event) (Event, error) {
	if !eventOps[w.Op] {
		return Event{}, fmt.Errorf("%w: an event %q", wire.ErrProtocol, w.Op)
	}
	return Event(*w), nil
}

// Stat describes a file; follow means what a symbolic link at the end of path points to.
func (c *Client) Stat(ctx context.Context, path string, follow bool) (FileInfo, error) {
	s, err := c.open(ctx, wire.Request{Files: &wire.Files{Stat: &wire.Stat{Path: path, Follow: follow}}})
	if err != nil {
		return FileInfo{}, err
	}
	r, err := s.started(ctx)
	if err != nil {
		return FileInfo{}, err
	}
	if r.File == nil {
		s.abandon(io.ErrClosedPipe)
		return FileInfo{}, fmt.Errorf("%w: no file in the answer", wire.ErrProtocol)
	}
	info, err := toFileInfo(r.File)
	if err == nil {
		_, err = s.finish(ctx)
	}
	info.Path = path
	return info, err
}

// WalkOption changes what Walk and Pack do.
type WalkOption func(*walkOptions)

type walkOptions struct {
	depth int
	oneFS bool
}

// Depth limits how deep Walk goes: 1 is the directory's own entries.
func Depth(n int) WalkOption { return func(o *walkOptions) { o.depth = n } }

// OneFileSystem leaves out what is mounted below the directory; what it is mounted on is there.
func OneFileSystem() WalkOption { return func(o *walkOptions) { o.oneFS = true } }

func walkOptionsOf(options []WalkOption) (o walkOptions) {
	for _, f := range options {
		f(&o)
	}
	return o
}

// List tells what is in a directory, in no order. It is Walk with Depth(1).
func (c *Client) List(ctx context.Context, path string) (*Records[FileInfo], error) {
	return c.Walk(ctx, path, Depth(1))
}

// Walk tells what is below a directory: directories before what is in them, in no order else. Symbolic links are not followed, but for path itself. What
// vanishes meanwhile is left out. Directories more than 256 below one another are an error of their FileInfo.
func (c *Client) Walk(ctx context.Context, path string, options ...WalkOption) (*Records[FileInfo], error) {
	o := walkOptionsOf(options)
	_, r, err := c.receive(ctx, wire.Request{Files: &wire.Files{Walk: &wire.Walk{Path: path, Depth: o.depth, OneFS: o.oneFS}}})
	if err != nil {
		return nil, err
	}
	return newRecords(r, toFileInfo), nil
}

// Watch tells changes of a file, or of what is in a directory; recursive, also of what is in directories below it, new ones included. It returns once the
// guest watches. The end (io.EOF) comes when the file or directory itself is removed or moved.
func (c *Client) Watch(ctx context.Context, path string, recursive bool) (*Records[Event], error) {
	_, r, err := c.receive(ctx, wire.Request{Files: &wire.Files{Watch: &wire.Watch{Path: path, Recursive: recursive}}})
	if err != nil {
		return nil, err
	}
	return newRecords(r, toEvent), nil
}

func (c *Client) files(ctx context.Context, req wire.Files) error {
	return c.call(ctx, wire.Request{Files: &req})
}

// Mkdir makes a directory that belongs to owner (NAME|UID[:GROUP|GID], empty: root). parents makes the directories that it is in, too, with mode 0755, and
// takes a directory that exists.
func (c *Client) Mkdir(ctx context.Context, path string, mode fs.FileMode, parents bool, owner string) error {
	return c.files(ctx, wire.Files{Mkdir: &wire.Mkdir{Path: path, Mode: linuxMode(mode), Parents: parents, Owner: owner}})
}

// Remove removes a file, a symbolic link, an empty directory, or, recursively, a directory with all that is in it. Recursively it ends at the first
// failure, with a part removed.
func (c *Client) Remove(ctx context.Context, path string, recursive bool) error {
	return c.files(ctx, wire.Files{Remove: &wire.Remove{Path: path, Recursive: recursive}})
}

// Rename gives a file or directory another name and replaces what has it, as rename(2) does; with noReplace that is an error.
func (c *Client) Rename(ctx context.Context, from, to string, noReplace bool) error {
	return c.files(ctx, wire.Files{Rename: &wire.Rename{From: from, To: to, NoReplace: noReplace}})
}

// Chmod sets the permission bits, set-user-ID, set-group-ID and sticky included. A symbolic link means its target; those below path are left alone.
func (c *Client) Chmod(ctx context.Context, path string, mode fs.FileMode, recursive bool) error {
	return c.files(ctx, wire.Files{Chmod: &wire.Chmod{Path: path, Mode: linuxMode(mode), Recursive: recursive}})
}

// Chown sets the owner: NAME|UID[:GROUP|GID]; without a group it is the user's, and ":GROUP" leaves the user. A symbolic link means its target unless
// noFollow is set; those below path get the owner themselves.
func (c *Client) Chown(ctx context.Context, path, owner string, recursive, noFollow bool) error {
	return c.files(ctx, wire.Files{Chown: &wire.Chown{Path: path, Owner: owner, Recursive: recursive, NoFollow: noFollow}})
}

// Symlink makes path a symbolic link to target, which need not exist.
func (c *Client) Symlink(ctx context.Context, target, path string) error {
	return c.files(ctx, wire.Files{Symlink: &wire.Symlink{Target: target, Path: path}})
}

// canceled prefers ctx's error to what followed from it.
func canceled(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return ctx.Err()
	}
	return err
}
