package api

import (
	"context"
	"fmt"
	"io/fs"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/supermachine/supermachine/core"
)

// guestText is a name or a path of the guest: a string, or bytes if it is not UTF-8.
type guestText string

// EncodeMsgpack implements msgpack.CustomEncoder.
func (t guestText) EncodeMsgpack(e *msgpack.Encoder) error {
	if utf8.ValidString(string(t)) {
		return e.EncodeString(string(t))
	}
	return e.EncodeBytes([]byte(t))
}

type fileInfo struct {
	Path    guestText `msgpack:"path" doc:"As it was asked for, or below the directory that is listed. Check it before you use it as a path on the host: it is the guest's."`
	Type    string    `msgpack:"type" doc:"file, directory, symlink, fifo, socket, block or char."`
	Size    int64     `msgpack:"size" doc:"Bytes of a file, or of a link's target."`
	Mode    uint32    `msgpack:"mode" doc:"Permission bits with set-user-ID, set-group-ID and sticky: 07777."`
	UID     uint32    `msgpack:"uid" doc:"The owner's number."`
	GID     uint32    `msgpack:"gid" doc:"The group's number."`
	MtimeMS int64     `msgpack:"mtime_ms" doc:"When its contents last changed, in milliseconds since 1970."`
	Target  guestText `msgpack:"target" doc:"Of a symbolic link; else empty."`
	Links   uint64    `msgpack:"links" doc:"How many names it has."`
	Error   string    `msgpack:"error" doc:"Why it could not be examined, or a directory not be read to its end; else empty."`
}

// unixBits are the bits beyond permissions as Linux has them.
var unixBits = []struct {
	mode fs.FileMode
	bit  uint32
}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}}

func fileInfoOf(i core.FileInfo) fileInfo {
	r := fileInfo{
		Path: guestText(i.Path), Type: typeOf(i.Mode), Size: i.Size, Mode: uint32(i.Mode.Perm()), UID: i.UID, GID: i.GID, MtimeMS: i.ModTime.UnixMilli(),
		Target: guestText(i.Target), Links: i.Links,
	}
	for _, b := range unixBits {
		if i.Mode&b.mode != 0 {
			r.Mode |= b.bit
		}
	}
	if i.Err != nil {
		r.Error = i.Err.Error()
	}
	return r
}

func typeOf(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symlink"
	case fs.ModeNamedPipe:
		return "fifo"
	case fs.ModeSocket:
		return "socket"
	case fs.ModeDevice:
		return "block"
	}
	return "char"
}

// modeOf returns permission bits with all of Linux's others.
func modeOf(op, path string, mode uint32) (fs.FileMode, error) {
	if mode > 0o7777 {
		return 0, &core.Error{Code: core.ErrInvalidArgument, Op: op, Object: path, Err: fmt.Errorf("mode %#o is out of range, 0 to 07777 are possible", mode)}
	}
	m := fs.FileMode(mode & 0o777)
	for _, b := range unixBits {
		if mode&b.bit != 0 {
			m |= b.mode
		}
	}
	return m, nil
}

// records are what a guest tells one after the other, taken in batches.
type records[T, R any] struct {
	cancel context.CancelFunc
	queue  chan T
	err    error // once queue is closed
	result func(T) R
}

// maxBatch is how many records one call returns at most, and how many wait for it.
const maxBatch = 1024

// startRecords reads what the guest tells until its end or until the handle, or the VM's, is closed.
func startRecords[T, R any](ctx context.Context, m *vm, open func(context.Context) (*core.Records[T], error), result func(T) R) (*records[T, R], error) {
	life, cancel := context.WithCancel(m.use.context())
	stop := context.AfterFunc(ctx, cancel)
	from, err := open(life)
	if err == nil && !stop() {
		from.Close()
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	r := &records[T, R]{cancel: cancel, queue: make(chan T, maxBatch), result: result}
	go func() {
		defer close(r.queue)
		for v, err := range from.All() {
			if err != nil {
				r.err = err
				return
			}
			select {
			case r.queue <- v:
			case <-life.Done():
				r.err = life.Err()
				return
			}
		}
	}()
	return r, nil
}

func (r *records[T, R]) closeHandle(context.Context) error {
	r.cancel()
	return nil
}

// next waits for a record and returns it with those that are there already; none at the end.
func (r *records[T, R]) next(ctx context.Context) ([]R, error) {
	batch := []R{}
	for {
		var v T
		var more bool
		if len(batch) == 0 {
			select {
			case v, more = <-r.queue:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		} else {
			select {
			case v, more = <-r.queue:
			default:
				return batch, nil
			}
		}
		switch {
		case !more && len(batch) == 0:
			return batch, r.err
		case !more:
			return batch, nil // the next call tells of the end
		}
		if batch = append(batch, r.result(v)); len(batch) == maxBatch {
			return batch, nil
		}
	}
}

type entries = records[core.FileInfo, fileInfo]

type entriesResult struct {
	Entries uint64 `msgpack:"entries" holds:"handle" doc:"For entries_next."`
}

type entriesBatch struct {
	Entries []fileInfo `msgpack:"entries" doc:"The next of them, up to 1024, with the keys of vm_stat; none at the end."`
}

type fileEvent struct {
	Op   string    `msgpack:"op" doc:"created, modified, removed, renamed, attributes, or overflow: events were lost."`
	Path guestText `msgpack:"path" doc:"Below the directory that is watched; . is what is watched itself."`
	From guestText `msgpack:"from" doc:"Of renamed: the old path."`
	Dir  bool      `msgpack:"dir" doc:"It is a directory's."`
}

type watch = records[core.FileEvent, fileEvent]

type watchResult struct {
	Watch uint64 `msgpack:"watch" holds:"handle" doc:"For watch_next."`
}

type eventsBatch struct {
	Events []fileEvent `msgpack:"events" doc:"What has happened since the last call, up to 1024 events; none once what was watched is gone."`
}

type unpackOptions struct {
	Owners      bool   `msgpack:"owners" doc:"Keep owners, by number."`
	Owner       string `msgpack:"owner" doc:"Else files belong to NAME|UID[:GROUP|GID] of the image's accounts; default: root."`
	Setuid      bool   `msgpack:"setuid" doc:"Keep set-user-ID and set-group-ID bits."`
	Special     bool   `msgpack:"special" doc:"Make devices and FIFOs; else they are an error."`
	SkipSpecial bool   `msgpack:"skip_special" doc:"Leave devices and FIFOs out."`
}

func (o unpackOptions) core() core.UnpackOptions {
	return core.UnpackOptions{Owners: o.Owners, Owner: o.Owner, Setuid: o.Setuid, Special: o.Special, SkipSpecial: o.SkipSpecial}
}

type copyOptions struct {
	Source string `msgpack:"source" doc:"What to copy; required. With /. at its end it means what is in the directory."`
	Target string `msgpack:"target" doc:"Where to: into it if it is a directory, else under that name; required."`
}

func walkOptions(oneFileSystem bool) (all []core.WalkOption) {
	if oneFileSystem {
		all = append(all, core.OneFileSystem())
	}
	return all
}

func init() {
	define("vm_stat", KindVM, 0, "Describes a file of the guest.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			NoFollow bool `msgpack:"no_follow" doc:"A symbolic link means itself, and not what it points to."`
		}) (fileInfo, error) {
			stat := m.Stat
			if o.NoFollow {
				stat = m.Lstat
			}
			info, err := stat(ctx, o.Path)
			return fileInfoOf(info), err
		})
	define("vm_list", KindVM, 0, "Lists a directory of the guest, or all that is below it, however much that is.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			Depth         int  `msgpack:"depth" doc:"How deep to go: 1, the default, is the directory's own entries; -1 is everything. Links are not followed."`
			OneFileSystem bool `msgpack:"one_file_system" doc:"Leave out what is mounted below."`
		}) (entriesResult, error) {
			r, err := startRecords(ctx, m, func(life context.Context) (*core.Records[core.FileInfo], error) {
				options := walkOptions(o.OneFileSystem)
				switch {
				case o.Depth == 0 || o.Depth == 1:
					return m.List(life, o.Path)
				case o.Depth > 0:
					options = append(options, core.Depth(o.Depth))
				}
				return m.Walk(life, o.Path, options...)
			}, fileInfoOf)
			if err != nil {
				return entriesResult{}, err
			}
			return entriesResult{e.lib.handles.put(KindEntries, r)}, nil
		})
	define("entries_next", KindEntries, 0, "Returns the next entries of a list.",
		func(ctx context.Context, e *env, r *entries, _ *None) (entriesBatch, error) {
			batch, err := r.next(ctx)
			return entriesBatch{batch}, err
		})
	defineClose("entries_close", KindEntries, "Ends a list.")
	define("vm_watch", KindVM, 0, "Watches a file or a directory of the guest. It returns once changes are seen.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			Recursive bool `msgpack:"recursive" doc:"And everything below a directory, also what is made later."`
		}) (watchResult, error) {
			r, err := startRecords(ctx, m, func(life context.Context) (*core.Records[core.FileEvent], error) {
				return m.Watch(life, o.Path, o.Recursive)
			}, func(ev core.FileEvent) fileEvent {
				return fileEvent{ev.Op, guestText(ev.Path), guestText(ev.From), ev.Dir}
			})
			if err != nil {
				return watchResult{}, err
			}
			return watchResult{e.lib.handles.put(KindWatch, r)}, nil
		})
	define("watch_next", KindWatch, 0, "Waits for changes and returns them.",
		func(ctx context.Context, e *env, r *watch, _ *None) (eventsBatch, error) {
			batch, err := r.next(ctx)
			return eventsBatch{batch}, err
		})
	defineClose("watch_close", KindWatch, "Ends a watch.")
	define("vm_mkdir", KindVM, 0, "Makes a directory in the guest.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			Mode    uint32 `msgpack:"mode" doc:"Permission bits, up to 07777; default 0755."`
			Parents bool   `msgpack:"parents" doc:"And the directories that it is in, with mode 0755; one that exists is no error."`
			Owner   string `msgpack:"owner" doc:"NAME|UID[:GROUP|GID] of the image's accounts, of all that are made; default: root."`
		}) (None, error) {
			bits := o.Mode
			if bits == 0 {
				bits = 0o755
			}
			mode, err := modeOf("mkdir", o.Path, bits)
			if err != nil {
				return None{}, err
			}
			return None{}, m.Mkdir(ctx, o.Path, mode, o.Parents, o.Owner)
		})
	define("vm_remove", KindVM, 0, "Removes a file, a link or an empty directory of the guest.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			Recursive bool `msgpack:"recursive" doc:"And everything in a directory. Links are not followed."`
		}) (None, error) {
			return None{}, m.Remove(ctx, o.Path, o.Recursive)
		})
	define("vm_rename", KindVM, 0, "Gives a file or a directory of the guest another name.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			To        string `msgpack:"to" doc:"The new path, in the same file system; required. What has it is replaced."`
			NoReplace bool   `msgpack:"no_replace" doc:"Replace nothing: what has the new name is an error."`
		}) (None, error) {
			return None{}, m.Rename(ctx, o.Path, o.To, o.NoReplace)
		})
	define("vm_chmod", KindVM, 0, "Sets the permissions of a file of the guest.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			Mode      uint32 `msgpack:"mode" doc:"Permission bits, up to 07777; required."`
			Recursive bool   `msgpack:"recursive" doc:"And of everything below. Links are left alone."`
		}) (None, error) {
			mode, err := modeOf("chmod", o.Path, o.Mode)
			if err != nil {
				return None{}, err
			}
			return None{}, m.Chmod(ctx, o.Path, mode, o.Recursive)
		})
	define("vm_chown", KindVM, 0, "Sets the owner of a file of the guest.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			Owner     string `msgpack:"owner" doc:"NAME|UID[:GROUP|GID] of the image's accounts, or :GROUP alone, where what is not given stays; required."`
			Recursive bool   `msgpack:"recursive" doc:"And of everything below; links get the owner themselves."`
			NoFollow  bool   `msgpack:"no_follow" doc:"A symbolic link means itself, and not what it points to."`
		}) (None, error) {
			return None{}, m.Chown(ctx, o.Path, o.Owner, o.Recursive, o.NoFollow)
		})
	define("vm_symlink", KindVM, 0, "Makes a symbolic link in the guest.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			Target string `msgpack:"target" doc:"What it points to; required."`
		}) (None, error) {
			return None{}, m.Symlink(ctx, o.Target, o.Path)
		})
	define("vm_pack", KindVM, 0, "Reads a file or a tree of the guest as a tar archive, a stream. After its end file_wait tells whether all of it was read. Unpack it as an archive "+
		"that may be hostile.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			OneFileSystem bool `msgpack:"one_file_system" doc:"Leave out what is mounted below."`
		}) (transferResult, error) {
			return startTransfer(ctx, e, m, func(life context.Context, t *transfer) (func() error, error) {
				r, err := m.Pack(life, o.Path, walkOptions(o.OneFileSystem)...)
				return t.from(r), err
			})
		})
	define("vm_unpack", KindVM, 0, "Unpacks a tar archive that is written to a stream into a directory of the guest, and never outside of it. Shut the stream's writing side down or close "+
		"it, then call file_wait, which tells how it went.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			pathOption
			unpackOptions
		}) (transferResult, error) {
			return startTransfer(ctx, e, m, func(life context.Context, t *transfer) (func() error, error) {
				return func() error { return m.Unpack(life, o.Path, whole{t.conn, life, t.wanted}, o.core()) }, nil
			})
		})
	define("vm_copy_in", KindVM, 0, "Copies a file or a tree of the host into the guest, as cp -a does. An error leaves a part of the copy.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			copyOptions
			unpackOptions
		}) (None, error) {
			return None{}, m.CopyIn(ctx, o.Source, o.Target, o.core())
		})
	define("vm_copy_out", KindVM, 0, "Copies a file or a tree of the guest to the host. Whatever is in the guest, nothing outside of the copy is written. An error leaves a part of the copy.",
		func(ctx context.Context, e *env, m *vm, o *struct {
			copyOptions
			Owners        bool  `msgpack:"owners" doc:"Keep owners, by number, which takes root; else files belong to the caller."`
			Setuid        bool  `msgpack:"setuid" doc:"Keep set-user-ID and set-group-ID bits."`
			SkipSpecial   bool  `msgpack:"skip_special" doc:"Leave devices and FIFOs out; else they are an error."`
			OneFileSystem bool  `msgpack:"one_file_system" doc:"Leave out what is mounted in the tree."`
			MaxBytes      int64 `msgpack:"max_bytes" doc:"More than that in all files together is an error; default: no limit."`
			MaxEntries    int64 `msgpack:"max_entries" doc:"More files and directories than that are an error; default: no limit."`
		}) (None, error) {
			return None{}, m.CopyOut(ctx, o.Source, o.Target, core.CopyOutOptions{
				Owners: o.Owners, Setuid: o.Setuid, SkipSpecial: o.SkipSpecial, OneFileSystem: o.OneFileSystem, MaxBytes: o.MaxBytes, MaxEntries: o.MaxEntries,
			})
		})
}
