package core

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"

	"github.com/supermachine/supermachine/core/admission"
	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/tree"
	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/core/hostdir"
	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/instances"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/oci"
	"github.com/supermachine/supermachine/core/pool"
	"github.com/supermachine/supermachine/snapshot"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// Error is what every function of this package returns when it fails: what was done to which object, and why it failed.
type Error struct {
	Code   Code
	Op     string // what was attempted, such as "start VM from"; empty if Err says it
	Object string // what it was attempted on, such as the image's reference; may be empty
	Err    error  // the cause
}

func (e *Error) Error() string {
	what := strings.TrimSpace(e.Op + " " + e.Object)
	switch {
	case e.Err == nil:
		return what
	case what == "":
		return e.Err.Error()
	}
	return what + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the error's Code.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code)
	return ok && c == e.Code
}

// wrap gives err the operation and the object; a nil err stays nil. An Error among its causes keeps its code.
func wrap(op, object string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Code: CodeOf(err), Op: op, Object: object, Err: err}
}

// CodeOf returns the code of any error of this package or of the packages below it, ErrInternal if there is none.
func CodeOf(err error) Code {
	var own *Error
	if errors.As(err, &own) {
		return own.Code
	}
	var guest *agent.Error
	if errors.As(err, &guest) {
		if code, ok := guestKinds[guest.Kind]; ok {
			return code
		}
		return ErrAgent
	}
	for _, m := range codeTable {
		if errors.Is(err, m.is) {
			return m.code
		}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return ErrIO
	}
	return ErrInternal
}

// codeTable maps the errors of the packages below to codes; the first match wins.
var codeTable = []struct {
	is   error
	code Code
}{
	{context.Canceled, ErrCanceled},
	{context.DeadlineExceeded, ErrTimeout},
	{hypervisor.ErrUnavailable, ErrNoVirtualization},
	{machine.ErrKernel, ErrAssets},
	{machine.ErrEnded, ErrVMEnded},
	{oci.ErrInvalidReference, ErrInvalidArgument},
	{oci.ErrNotFound, ErrImageNotFound},
	{oci.ErrNotPulled, ErrImageNotFound},
	{oci.ErrUnauthorized, ErrUnauthorized},
	{oci.ErrUnreachable, ErrUnreachable},
	{oci.ErrRateLimited, ErrUnreachable},
	{oci.ErrDigestMismatch, ErrCorrupt},
	{oci.ErrPlatform, ErrPlatform},
	{oci.ErrInvalidImage, ErrInvalidImage},
	{oci.ErrLimit, ErrLimit},
	{oci.ErrDiskFull, ErrDiskFull},
	{oci.ErrStore, ErrIO},
	{agent.ErrOutputTooLarge, ErrLimit},
	{agent.ErrDetached, ErrCanceled},
	{wire.ErrProtocol, ErrAgent},
	{agent.ErrClosed, ErrAgent},
	{wire.ErrTooLarge, ErrInvalidArgument},
	{tree.ErrUnsafe, ErrUnsafe},
	{tree.ErrSpecial, ErrUnsafe},
	{tree.ErrArchive, ErrAgent},
	{tree.ErrTooDeep, ErrLimit},
	{tree.ErrLimit, ErrLimit},
	{instances.ErrNotFound, ErrNotFound},
	{instances.ErrAmbiguous, ErrInvalidArgument},
	{instances.ErrNameTaken, ErrInvalidArgument},
	{syscall.ENOSPC, ErrDiskFull},
	{syscall.EADDRINUSE, ErrInUse},
	{snapshot.ErrNotFound, ErrNotFound},
	{snapshot.ErrCorrupt, ErrCorrupt},
	{snapshot.ErrVersion, ErrIncompatible},
	{snapshot.ErrArch, ErrIncompatible},
	{snapshot.ErrInUse, ErrInUse},
	{snapshot.ErrExists, ErrInvalidArgument},
	{snapshot.ErrInvalid, ErrInvalidArgument},
	{hypervisor.ErrIncompatible, ErrIncompatible},
	{memory.ErrInvalid, ErrCorrupt},
	{admission.ErrNoMemory, ErrNoMemory},
	{pool.ErrExhausted, ErrExhausted},
	{pool.ErrClosed, ErrClosed},
	{pool.ErrConfig, ErrInvalidArgument},
	{os.ErrClosed, ErrClosed},
	{hostdir.ErrNotDirectory, ErrInvalidArgument},
	{hostdir.ErrOptions, ErrInvalidArgument},
	{hostdir.ErrUnsupported, ErrIncompatible},
}

// guestKinds maps what the agent reports to codes.
var guestKinds = map[string]Code{
	wire.KindCommandNotFound: ErrCommandNotFound, wire.KindNotExecutable: ErrNotExecutable, wire.KindNotFound: ErrNotFound,
	wire.KindInvalid: ErrInvalidArgument, wire.KindPermission: ErrPermission, wire.KindRefused: ErrRefused, wire.KindInUse: ErrInUse,
	wire.KindNoSpace: ErrDiskFull, wire.KindUnavailable: ErrVMEnded, wire.KindIO: ErrIO,
	wire.KindExists: ErrExists, wire.KindNotEmpty: ErrNotEmpty, wire.KindLimit: ErrLimit,
}
