package vsock

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrDeviceReset is why connections end when the guest resets the device, as it does when it boots again. It matches
// syscall.ECONNRESET (errors.Is).
var ErrDeviceReset error = &resetError{"the guest reset its vsock device"}

// resetError is a connection that ended for another reason than its peer's wish.
type resetError struct{ reason string }

func (e *resetError) Error() string        { return e.reason }
func (e *resetError) Is(target error) bool { return target == syscall.ECONNRESET }

// ProtocolError is why a connection was reset whose peer broke the rules of vsock. It matches syscall.ECONNRESET (errors.Is).
type ProtocolError struct {
	Reason string
}

func (e *ProtocolError) Error() string { return "peer broke the vsock protocol: " + e.Reason }

// Is reports whether target is syscall.ECONNRESET.
func (e *ProtocolError) Is(target error) bool { return target == syscall.ECONNRESET }

func violation(format string, args ...any) error {
	return &ProtocolError{Reason: fmt.Sprintf(format, args...)}
}

// deviceError is why connections end when the guest's driver broke the device.
type deviceError struct{ cause error }

func (e *deviceError) Error() string        { return "vsock device failed: " + e.cause.Error() }
func (e *deviceError) Is(target error) bool { return target == syscall.ECONNRESET }
func (e *deviceError) Unwrap() error        { return e.cause }

// errBusy is returned by SaveState for a connection that cannot be saved now.
var errBusy = errors.New("a write is in progress")
