package core

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"syscall"

	"github.com/supermachine/supermachine/core/agent"
)

// FileInfo describes a file of a VM, by what the guest says: names are bytes that must be checked before they are used as paths on the host.
type FileInfo = agent.FileInfo

// FileEvent is a change that VM.Watch tells.
type FileEvent = agent.Event

// What a FileEvent tells; see package agent.
const (
	FileCreated    = agent.EventCreated
	FileModified   = agent.EventModified
	FileRemoved    = agent.EventRemoved
	FileRenamed    = agent.EventRenamed
	FileAttributes = agent.EventAttributes
	FileOverflow   = agent.EventOverflow
)

// Options of ReadFile, WriteFile, Walk and Pack, and of what copies trees.
type (
	ReadOption     = agent.ReadOption
	WriteOption    = agent.WriteOption
	WalkOption     = agent.WalkOption
	UnpackOptions  = agent.UnpackOptions
	CopyOutOptions = agent.CopyOutOptions
)

// Range has ReadFile read at most length bytes from offset on; a negative length means to the end. Past the end there is nothing to read.
func Range(offset, length int64) ReadOption { return agent.Range(offset, length) }

// Append has WriteFile add to the end of the file, which is made if there is none. It is not atomic.
func Append() WriteOption { return agent.Append() }

// At has WriteFile write over the contents of an existing file from offset on; its mode and owner stay. It is not atomic.
func At(offset int64) WriteOption { return agent.At(offset) }

// Owner has WriteFile give the file to NAME|UID[:GROUP|GID] of the image's accounts instead of root.
func Owner(user string) WriteOption { return agent.Owner(user) }

// Depth has Walk go that deep; 1 is the directory's own entries.
func Depth(n int) WalkOption { return agent.Depth(n) }

// OneFileSystem has Walk and Pack leave out what is mounted below the directory.
func OneFileSystem() WalkOption { return agent.OneFileSystem() }

// Records is a stream of what a VM tells. One goroutine at a time calls Next; Close may be called at any time, and must be called.
type Records[T any] struct {
	*agent.Records[T]
	vm *VM
	op string
}

// Next returns the next record; io.EOF after the last. It blocks until there is one.
func (r *Records[T]) Next() (T, error) {
	v, err := r.Records.Next()
	if err != nil && err != io.EOF {
		err = r.vm.wrapEnded(r.op, err)
	}
	return v, err
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

func records[T any](vm *VM, op string, r *agent.Records[T], err error) (*Records[T], error) {
	if err != nil {
		return nil, vm.wrapEnded(op, err)
	}
	return &Records[T]{r, vm, op}, nil
}

// ReadFile opens a file of the guest for reading, from its beginning unless Range says otherwise. The caller closes it.
func (vm *VM) ReadFile(ctx context.Context, path string, options ...ReadOption) (io.ReadCloser, error) {
	r, err := vm.agent.ReadFile(ctx, path, options...)
	return r, vm.wrapEnded("read "+path+" in VM", err)
}

// WriteFile creates or replaces a file of the guest with what r yields. The file appears under its name only when all of it is
// written; a failure leaves the old one. Append and At write into a file instead.
func (vm *VM) WriteFile(ctx context.Context, path string, r io.Reader, mode os.FileMode, options ...WriteOption) error {
	return vm.wrapEnded("write "+path+" in VM", vm.agent.WriteFile(ctx, path, r, uint32(mode.Perm()), options...))
}

// Stat describes a file of the guest; a symbolic link means what it points to. Errors: ErrNotFound.
func (vm *VM) Stat(ctx context.Context, path string) (FileInfo, error) {
	info, err := vm.agent.Stat(ctx, path, true)
	return info, vm.wrapEnded("stat "+path+" in VM", err)
}

// Lstat describes a file of the guest; a symbolic link means itself, with its target. Errors: ErrNotFound.
func (vm *VM) Lstat(ctx context.Context, path string) (FileInfo, error) {
	info, err := vm.agent.Stat(ctx, path, false)
	return info, vm.wrapEnded("stat "+path+" in VM", err)
}

// List tells what is in a directory of the guest, in no order, however many entries it has. Errors: ErrNotFound, ErrInvalidArgument (no directory).
func (vm *VM) List(ctx context.Context, path string) (*Records[FileInfo], error) {
	r, err := vm.agent.List(ctx, path)
	return records(vm, "list "+path+" in VM", r, err)
}

// Walk tells what is below a directory of the guest, as agent.Client.Walk says. A directory that cannot be read is told by FileInfo.Err, and the walk goes on.
func (vm *VM) Walk(ctx context.Context, path string, options ...WalkOption) (*Records[FileInfo], error) {
	r, err := vm.agent.Walk(ctx, path, options...)
	return records(vm, "walk "+path+" in VM", r, err)
}

// Watch tells changes of a file or directory of the guest, as agent.Client.Watch says. It returns once changes are seen. Errors: ErrNotFound, ErrLimit.
func (vm *VM) Watch(ctx context.Context, path string, recursive bool) (*Records[FileEvent], error) {
	r, err := vm.agent.Watch(ctx, path, recursive)
	return records(vm, "watch "+path+" in VM", r, err)
}

// Mkdir makes a directory for owner (NAME|UID[:GROUP|GID], empty: root). parents makes those that it is in, too, and takes one that exists.
// Errors: ErrExists, ErrNotFound.
func (vm *VM) Mkdir(ctx context.Context, path string, mode os.FileMode, parents bool, owner string) error {
	return vm.wrapEnded("mkdir "+path+" in VM", vm.agent.Mkdir(ctx, path, mode, parents, owner))
}

// Remove removes a file, a link or an empty directory, and recursively a directory with all that is in it; links are not followed. Errors: ErrNotFound,
// ErrNotEmpty.
func (vm *VM) Remove(ctx context.Context, path string, recursive bool) error {
	return vm.wrapEnded("remove "+path+" in VM", vm.agent.Remove(ctx, path, recursive))
}

// Rename gives a file or directory another name and replaces what has it, as rename(2) does; with noReplace that is ErrExists. Another file system, and
// a directory of the image where the guest's overlay cannot move it, are ErrInvalidArgument. Errors: ErrNotFound, ErrNotEmpty.
func (vm *VM) Rename(ctx context.Context, from, to string, noReplace bool) error {
	return vm.wrapEnded("rename "+from+" to "+to+" in VM", vm.agent.Rename(ctx, from, to, noReplace))
}

// Chmod sets permission bits, set-user-ID, set-group-ID and sticky included. Recursively, links below path are left alone. Errors: ErrNotFound.
func (vm *VM) Chmod(ctx context.Context, path string, mode os.FileMode, recursive bool) error {
	return vm.wrapEnded("chmod "+path+" in VM", vm.agent.Chmod(ctx, path, mode, recursive))
}

// Chown sets the owner, NAME|UID[:GROUP|GID] or :GROUP|GID; what is not given stays. A symbolic link means its target unless noFollow is set; recursively, links below path get the
// owner themselves. Errors: ErrNotFound (path, user or group).
func (vm *VM) Chown(ctx context.Context, path, owner string, recursive, noFollow bool) error {
	return vm.wrapEnded("chown "+path+" in VM", vm.agent.Chown(ctx, path, owner, recursive, noFollow))
}

// Symlink makes path a symbolic link to target. Errors: ErrExists, ErrNotFound.
func (vm *VM) Symlink(ctx context.Context, target, path string) error {
	return vm.wrapEnded("symlink "+path+" in VM", vm.agent.Symlink(ctx, target, path))
}

// Pack returns a file or a tree of the guest as a tar archive (PAX), as agent.Client.Pack says: unpack it as one that is hostile. The caller closes it.
func (vm *VM) Pack(ctx context.Context, path string, options ...WalkOption) (io.ReadCloser, error) {
	r, err := vm.agent.Pack(ctx, path, options...)
	return r, vm.wrapEnded("pack "+path+" in VM", err)
}

// Unpack unpacks a tar archive into an existing directory of the guest, and never outside of it. Existing files are replaced. Errors: ErrNotFound,
// ErrInvalidArgument (no directory, a malformed archive, one that leads out, or with devices that UnpackOptions do not allow), ErrDiskFull.
func (vm *VM) Unpack(ctx context.Context, path string, r io.Reader, o UnpackOptions) error {
	return vm.wrapEnded("unpack into "+path+" in VM", vm.agent.Unpack(ctx, path, r, o))
}

// CopyIn copies a file or a tree of the host into the guest, as cp -a does: into guestPath if that is a directory, else under that name. A hostPath that
// ends in "/." means what is in the directory. An error leaves a part of the copy.
func (vm *VM) CopyIn(ctx context.Context, hostPath, guestPath string, o UnpackOptions) error {
	return vm.wrapCopy("copy "+hostPath+" to "+guestPath+" in VM", vm.agent.CopyIn(ctx, hostPath, guestPath, o))
}

// CopyOut copies a file or a tree of the guest to the host, by the same rule. Whatever is in the guest, nothing outside of the copy is written:
// what would be, and devices and FIFOs unless they are to be left out, is ErrUnsafe. Symbolic links are copied as they are; following them later is another
// matter. Files belong to the caller and have no set-user-ID or set-group-ID bits unless asked for. An error leaves a part of the copy.
func (vm *VM) CopyOut(ctx context.Context, guestPath, hostPath string, o CopyOutOptions) error {
	return vm.wrapCopy("copy "+guestPath+" to "+hostPath+" from VM", vm.agent.CopyOut(ctx, guestPath, hostPath, o))
}

// wrapCopy tells more of the host's own errors apart than other operations have.
func (vm *VM) wrapCopy(op string, err error) error {
	var e *Error
	err = vm.wrapEnded(op, err)
	if !errors.As(err, &e) || e.Code != ErrIO || errors.As(err, new(*agent.Error)) {
		return err
	}
	for _, m := range []struct {
		is   error
		code Code
	}{
		{os.ErrNotExist, ErrNotFound}, {syscall.ENOTDIR, ErrNotFound}, {syscall.EEXIST, ErrExists}, {syscall.ENOTEMPTY, ErrNotEmpty},
		{os.ErrPermission, ErrPermission}, {syscall.EISDIR, ErrExists}, {syscall.EINVAL, ErrInvalidArgument},
	} {
		if errors.Is(err, m.is) {
			e.Code = m.code
			break
		}
	}
	return err
}
