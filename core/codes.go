package core

import (
	"maps"
	"slices"
)

// Code is the kind of an error: the same names and numbers in every language. A Code is itself an error, so
// errors.Is(err, core.ErrImageNotFound) asks for it.
type Code int

// The codes; what each means is in the table below. Numbers never change.
const (
	ErrInternal Code = 1 + iota
	ErrInvalidArgument
	ErrCanceled
	ErrTimeout
	ErrNoVirtualization
	ErrAssets
	ErrImageNotFound
	ErrUnauthorized
	ErrUnreachable
	ErrCorrupt
	ErrInvalidImage
	ErrPlatform
	ErrLimit
	ErrDiskFull
	ErrBoot
	ErrVMEnded
	ErrCommandNotFound
	ErrNotExecutable
	ErrNotFound
	ErrRefused
	ErrAgent
	ErrPermission
	ErrIO
	ErrNotReady
	ErrIncompatible
	ErrInUse
	ErrNoMemory
	ErrExhausted
	ErrClosed
	ErrInvalidHandle
	ErrForked
	ErrExists
	ErrNotEmpty
	ErrUnsafe
)

// codes is the table that every language's constants, classes and documents are made from.
var codes = map[Code]struct{ name, description string }{
	ErrInternal:         {"internal", "a bug of ours; please report it"},
	ErrInvalidArgument:  {"invalid_argument", "a value is out of range or malformed"},
	ErrCanceled:         {"canceled", "the caller canceled"},
	ErrTimeout:          {"timeout", "a deadline passed"},
	ErrNoVirtualization: {"no_virtualization", "no /dev/kvm, no permission, or no hardware support"},
	ErrAssets:           {"assets", "the guest's kernel or initramfs is missing or corrupt"},
	ErrImageNotFound:    {"image_not_found", "the registry, file or store has no such image"},
	ErrUnauthorized:     {"unauthorized", "the registry refused the credentials"},
	ErrUnreachable:      {"unreachable", "the registry is down, refuses or answers too slowly"},
	ErrCorrupt:          {"corrupt", "bytes do not match their digest, or are truncated"},
	ErrInvalidImage:     {"invalid_image", "the image breaks the format's rules"},
	ErrPlatform:         {"platform", "the image has no variant for the wanted platform"},
	ErrLimit:            {"limit", "a limit on size, entries or depth is exceeded"},
	ErrDiskFull:         {"disk_full", "no space left on the host"},
	ErrBoot:             {"boot", "the guest did not come up"},
	ErrVMEnded:          {"vm_ended", "the VM has stopped, or stopped meanwhile"},
	ErrCommandNotFound:  {"command_not_found", "the guest has no such program"},
	ErrNotExecutable:    {"not_executable", "the program exists and cannot be executed"},
	ErrNotFound:         {"not_found", "no such file, directory, user, snapshot or VM"},
	ErrRefused:          {"refused", "nothing listens on the guest's port"},
	ErrAgent:            {"agent", "the agent in the guest broke the protocol"},
	ErrPermission:       {"permission", "the guest's kernel refuses the operation"},
	ErrIO:               {"io", "the host's operating system refused an operation"},
	ErrNotReady:         {"not_ready", "the workload did not become ready"},
	ErrIncompatible:     {"incompatible", "a snapshot of another version, architecture or CPU"},
	ErrInUse:            {"in_use", "something else needs the object"},
	ErrNoMemory:         {"no_memory", "the host has no memory left for the VM"},
	ErrExhausted:        {"exhausted", "the pool has no VM to give"},
	ErrClosed:           {"closed", "the pool or the image is closed"},
	ErrInvalidHandle:    {"invalid_handle", "closed, of another kind, or none at all"},
	ErrForked:           {"forked", "the process was forked after the library was loaded"},
	ErrExists:           {"exists", "a file, directory or link exists already"},
	ErrNotEmpty:         {"not_empty", "the directory is not empty"},
	ErrUnsafe:           {"unsafe", "a copy from the guest would have reached out of its place, or has a device"},
}

// Codes returns all codes, in the order of the numbers.
func Codes() []Code { return slices.Sorted(maps.Keys(codes)) }

// Error returns the code's name, such as "image_not_found".
func (c Code) Error() string { return codes[c].name }

// Description says when there is such an error, in a few words.
func (c Code) Description() string { return codes[c].description }
