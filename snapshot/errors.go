package snapshot

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of failure. An error that matches none of them with errors.Is, such as syscall.ENOSPC, is of the operating system or
// of a context.
var (
	// ErrNotFound means that the store has no such snapshot.
	ErrNotFound = errors.New("snapshot not found")
	// ErrExists means that a snapshot with this id is in the store already.
	ErrExists = errors.New("snapshot exists already")
	// ErrCorrupt means that a file of the snapshot is missing, truncated, changed or breaks the rules of the format.
	ErrCorrupt = errors.New("snapshot is corrupt")
	// ErrVersion means that the snapshot has a version of the format that this program does not know.
	ErrVersion = errors.New("unknown version of the snapshot format")
	// ErrArch means that the snapshot was made on another architecture.
	ErrArch = errors.New("snapshot is of another architecture")
	// ErrInUse means that other snapshots have this one as their base.
	ErrInUse = errors.New("snapshot is the base of others")
	// ErrInvalid means that an argument is malformed or out of range.
	ErrInvalid = errors.New("invalid argument")
)

// Error says which snapshot and which of its files a failure concerns. Every function of this package returns one, except
// that a context's error comes as it is.
type Error struct {
	ID     string // of the snapshot; empty if the failure concerns the whole store, or files that CopyExtents got
	File   string // name inside the snapshot, such as "memory.img"; may be empty
	Offset int64  // where in File, bytes; -1 if the failure is not about a place
	Reason string // what is wrong; may be empty if Err says it
	Err    error  // one of this package's Err values, or the operating system's error
}

// Error describes the failure in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("snapshot")
	if e.ID != "" {
		fmt.Fprintf(&b, " %.100q", e.ID)
	} else if e.File == "" {
		b.WriteString(" store")
	}
	if e.File != "" {
		b.WriteString(": " + e.File)
		if e.Offset >= 0 {
			fmt.Fprintf(&b, " at offset %d", e.Offset)
		}
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap returns the kind or the cause.
func (e *Error) Unwrap() error { return e.Err }

func corrupt(id, file, format string, args ...any) error {
	return &Error{ID: id, File: file, Offset: -1, Reason: fmt.Sprintf(format, args...), Err: ErrCorrupt}
}

func invalid(id, format string, args ...any) error {
	return &Error{ID: id, Offset: -1, Reason: fmt.Sprintf(format, args...), Err: ErrInvalid}
}

// fail gives an error of the operating system its snapshot; one that has it already stays as it is, and so do nil and what
// ended a context.
func fail(id, file string, err error) error {
	var own *Error
	if err == nil || errors.As(err, &own) || isContext(err) {
		return err
	}
	return &Error{ID: id, File: file, Offset: -1, Err: err}
}
