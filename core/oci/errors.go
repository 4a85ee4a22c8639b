package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/supermachine/supermachine/core/oci/erofs"
)

// The kinds of failure. Every error of a Store except a context's own matches
// exactly one of them with errors.Is, and is an *Error for errors.As.
var (
	// ErrInvalidReference means that the reference cannot be parsed.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrNotFound means that the source has no such image, tag or blob.
	ErrNotFound = errors.New("image not found")
	// ErrNotPulled means that the store does not have the image and was told not to pull it.
	ErrNotPulled = errors.New("image is not in the store")
	// ErrUnauthorized means that the registry wants other credentials.
	ErrUnauthorized = errors.New("access denied by the registry")
	// ErrUnreachable means that the registry is down, too slow or failing.
	ErrUnreachable = errors.New("registry cannot be used")
	// ErrRateLimited means that the registry refuses further requests for now.
	ErrRateLimited = errors.New("rate limit of the registry reached")
	// ErrDigestMismatch means that the bytes of a blob are not what its digest or size says.
	ErrDigestMismatch = errors.New("content does not match its digest")
	// ErrPlatform means that the image exists, but not for the platform; see [PlatformError].
	ErrPlatform = errors.New("image is not available for this platform")
	// ErrInvalidImage means that the image breaks the rules of its format.
	ErrInvalidImage = errors.New("invalid image")
	// ErrLimit means that the image is larger than [Limits] or the file system format allow.
	ErrLimit = errors.New("image exceeds a limit")
	// ErrDiskFull means that the file system of the store has no room left.
	ErrDiskFull = errors.New("no space left for the image store")
	// ErrStore means that the store's files cannot be used for another reason, such as permissions.
	ErrStore = errors.New("image store cannot be used")
)

// Error says what was being done with which object, and why it failed.
type Error struct {
	Op     string // what was being done: "pull", "fetch", "apply layer", …
	Ref    string // the reference, if the operation had one
	Digest string // the manifest, config or layer concerned, if one was
	Path   string // the entry of the layer concerned, if one was
	Kind   error  // one of this package's Err values
	Err    error  // the cause, may be nil
	Hint   string // what the user can do about it, may be empty

	transient  bool          // trying again may help
	retryAfter time.Duration // how long the registry asked to wait before that
}

// Error describes the failure in one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	for _, s := range []string{e.Ref, e.Digest} {
		if s != "" {
			b.WriteString(" " + s)
		}
	}
	if e.Path != "" {
		fmt.Fprintf(&b, ": entry %.300q", e.Path)
	}
	fmt.Fprintf(&b, ": %v", e.Kind)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

// Unwrap returns the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// PlatformError is the cause of an ErrPlatform.
type PlatformError struct {
	Want      string   // as in "linux/amd64"
	Available []string // what the image has, sorted
}

// Error names the platform that was wanted and those there are.
func (e *PlatformError) Error() string {
	if len(e.Available) == 0 {
		return "wanted " + e.Want + ", the image names no platform"
	}
	return "wanted " + e.Want + ", available: " + strings.Join(e.Available, ", ")
}

// invalid is an ErrInvalidImage about an entry or the whole layer, to be completed by the callers.
func invalid(path, format string, args ...any) *Error {
	return &Error{Kind: ErrInvalidImage, Path: path, Err: fmt.Errorf(format, args...)}
}

// overLimit is an ErrLimit about an entry or the whole image, to be completed by the callers.
func overLimit(path, format string, args ...any) *Error {
	return &Error{Kind: ErrLimit, Path: path, Err: fmt.Errorf(format, args...)}
}

// withContext fills in what the place that found an error did not know. An
// error that is none of ours yet came from the store's file system.
func withContext(err error, op, ref, digest string) error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		if isContextError(err) {
			return fmt.Errorf("%s %s: %w", op, ref, err)
		}
		e = storeError(err)
	}
	full := *e
	if full.Op == "" {
		full.Op = op
	}
	if full.Ref == "" {
		full.Ref = ref
	}
	if full.Digest == "" {
		full.Digest = digest
	}
	return &full
}

// storeError classifies an error of the store's file system.
func storeError(err error) *Error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return &Error{Kind: ErrDiskFull, Err: err, Hint: "free some space or put the store elsewhere"}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return &Error{Kind: ErrStore, Err: err, Hint: "check the permissions of the store's directory"}
	case errors.Is(err, erofs.ErrTooLarge):
		return &Error{Kind: ErrLimit, Err: err}
	}
	return &Error{Kind: ErrStore, Err: err}
}
