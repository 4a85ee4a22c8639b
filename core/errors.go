package core

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/supermachine/supermachine/core/admission"
	"github.com/supermachine/supermachine/core/agent"
	"github.com/supermachine/supermachine/core/agent/wire"
	"github.com/supermachine/supermachine/core/hypervisor"
	"github.com/supermachine/supermachine/core/instances"
	"github.com/supermachine/supermachine/core/machine"
	"github.com/supermachine/supermachine/core/oci"
	"github.com/supermachine/supermachine/core/pool"
	"github.com/supermachine/supermachine/snapshot"
	"github.com/supermachine/supermachine/snapshot/memory"
)

// Code is the kind of an error: the same names and numbers in every language. A Code is itself an error, so
// errors.Is(err, core.ErrImageNotFound) asks for it.
type Code int

// The table of error codes. Numbers never change.
const (
	ErrInternal         Code = 1 + iota // a bug of ours; please report it
	ErrInvalidArgument                  // a value is out of range or malformed
	ErrCanceled                         // the caller canceled
	ErrTimeout                          // a deadline passed
	ErrNoVirtualization                 // no /dev/kvm, no permission, or no hardware support
	ErrAssets                           // the guest's kernel or initramfs is missing or corrupt
	ErrImageNotFound                    // the registry, file or store has no such image
	ErrUnauthorized                     // the registry refused the credentials
	ErrUnreachable                      // the registry is down, refuses or answers too slowly
	ErrCorrupt                          // bytes do not match their digest, or are truncated
	ErrInvalidImage                     // the image breaks the format's rules
	ErrPlatform                         // the image has no variant for the wanted platform
	ErrLimit                            // an image exceeds a limit on size, entries or depth
	ErrDiskFull                         // no space left on the host
	ErrBoot                             // the guest did not come up
	ErrVMEnded                          // the VM has stopped, or stopped meanwhile
	ErrCommandNotFound                  // the guest has no such program
	ErrNotExecutable                    // the program exists and cannot be executed
	ErrNotFound                         // no such file, directory, user or VM
	ErrRefused                          // nothing listens on the guest's port
	ErrAgent                            // the agent in the guest broke the protocol
	ErrPermission                       // the guest's kernel refuses the operation
	ErrIO                               // the host's operating system refused an operation
	ErrNotReady                         // the workload did not become ready
	ErrIncompatible                     // a snapshot of another version, architecture or CPU
	ErrInUse                            // something else needs the object
	ErrNoMemory                         // the host has no memory left for the VM
	ErrExhausted                        // the pool has no VM to give
	ErrClosed                           // the pool or the snapshot is closed
	ErrInvalidHandle                    // in the C library: closed, of another kind, or none at all
	ErrForked                           // in the C library: the process was forked after it was loaded
)

var codeNames = map[Code]string{
	ErrInternal: "internal", ErrInvalidArgument: "invalid_argument", ErrCanceled: "canceled", ErrTimeout: "timeout",
	ErrNoVirtualization: "no_virtualization", ErrAssets: "assets", ErrImageNotFound: "image_not_found",
	ErrUnauthorized: "unauthorized", ErrUnreachable: "unreachable", ErrCorrupt: "corrupt", ErrInvalidImage: "invalid_image",
	ErrPlatform: "platform", ErrLimit: "limit", ErrDiskFull: "disk_full", ErrBoot: "boot", ErrVMEnded: "vm_ended",
	ErrCommandNotFound: "command_not_found", ErrNotExecutable: "not_executable", ErrNotFound: "not_found",
	ErrRefused: "refused", ErrAgent: "agent", ErrPermission: "permission", ErrIO: "io",
	ErrNotReady: "not_ready", ErrIncompatible: "incompatible", ErrInUse: "in_use", ErrNoMemory: "no_memory",
	ErrExhausted: "exhausted", ErrClosed: "closed", ErrInvalidHandle: "invalid_handle", ErrForked: "forked",
}

// Codes returns the table, in the order of the numbers.
func Codes() []Code {
	return slices.Sorted(maps.Keys(codeNames))
}

// Error returns the code's name, such as "image_not_found".
func (c Code) Error() string { return codeNames[c] }

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
	{wire.ErrProtocol, ErrAgent},
	{agent.ErrClosed, ErrAgent},
	{wire.ErrTooLarge, ErrInvalidArgument},
	{instances.ErrNotFound, ErrNotFound},
	{instances.ErrAmbiguous, ErrInvalidArgument},
	{instances.ErrNameTaken, ErrInvalidArgument},
	{syscall.ENOSPC, ErrDiskFull},
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
}

// guestKinds maps what the agent reports to codes.
var guestKinds = map[string]Code{
	wire.KindCommandNotFound: ErrCommandNotFound, wire.KindNotExecutable: ErrNotExecutable, wire.KindNotFound: ErrNotFound,
	wire.KindInvalid: ErrInvalidArgument, wire.KindPermission: ErrPermission, wire.KindRefused: ErrRefused,
	wire.KindNoSpace: ErrDiskFull, wire.KindUnavailable: ErrVMEnded, wire.KindIO: ErrIO,
}
