package pool

import (
	"errors"
	"fmt"
	"time"
)

// What errors.Is finds in the errors of this package, besides the errors of contexts, which come as they are.
var (
	ErrConfig    = errors.New("pool: invalid configuration")
	ErrClosed    = errors.New("pool: closed")
	ErrExhausted = errors.New("pool: exhausted")             // an *ExhaustedError tells more
	ErrStart     = errors.New("pool: cannot start instance") // a *StartError tells more
)

// ExhaustedError is what Acquire returns when AcquireTimeout has passed: the state of the pool at that moment.
type ExhaustedError struct {
	Max, InUse, Starting int
	Waiting              int           // callers that still wait, this one not counted
	Timeout              time.Duration // what has passed
}

func (e *ExhaustedError) Error() string {
	return fmt.Sprintf("pool: no instance became free within %v: %d of at most %d are in use, %d are starting, %d more callers wait; "+
		"release instances earlier or raise Max or AcquireTimeout", e.Timeout, e.InUse, e.Max, e.Starting, e.Waiting)
}

// Is reports whether target is ErrExhausted.
func (e *ExhaustedError) Is(target error) bool { return target == ErrExhausted }

// StartError is what Acquire returns when it would need a new instance and none can be started.
type StartError struct {
	Err      error         // why the last start failed
	Failures int           // failures in a row, starts at the same time counted as one
	Retry    time.Duration // when the pool tries again, counted from the moment of the error
}

func (e *StartError) Error() string {
	return fmt.Sprintf("%v: %v (failures in a row: %d; next attempt in %v)", ErrStart, e.Err, e.Failures, e.Retry.Round(time.Millisecond))
}

// Unwrap returns why the last start failed.
func (e *StartError) Unwrap() error { return e.Err }

// Is reports whether target is ErrStart.
func (e *StartError) Is(target error) bool { return target == ErrStart }
