"""Errors: one class for each code of the library, all of them SupermachineError."""

from __future__ import annotations

from typing import Any, Dict, Type


class SupermachineError(Exception):
    """What every function of this package raises when the library refuses or fails.

    code: the number, the same in every language. name: the code's name, such as "image_not_found". op, object: what was attempted, and on what.
    output, console: the last that a workload and its guest's console wrote, where a VM did not come up.
    """

    code: int = 0
    name: str = ""

    def __init__(self, message: str, code: int = 0, name: str = "", op: str = "", object: str = "", output: str = "", console: str = "") -> None:
        super().__init__(message)
        if code:
            self.code, self.name = code, name
        self.op, self.object, self.output, self.console = op, object, output, console


class InternalError(SupermachineError):
    """A bug of the library's; please report it."""

    code, name = 1, "internal"


class InvalidArgumentError(SupermachineError):
    """A value is out of range or malformed."""

    code, name = 2, "invalid_argument"


class CanceledError(SupermachineError):
    """The call was canceled, or its object closed meanwhile."""

    code, name = 3, "canceled"


class TimedOutError(SupermachineError):
    """A deadline passed."""

    code, name = 4, "timeout"


class NoVirtualizationError(SupermachineError):
    """There is no /dev/kvm, no permission, or no hardware support."""

    code, name = 5, "no_virtualization"


class AssetsError(SupermachineError):
    """The guest's kernel or initramfs is missing or corrupt."""

    code, name = 6, "assets"


class ImageNotFoundError(SupermachineError):
    """The registry, file or store has no such image."""

    code, name = 7, "image_not_found"


class UnauthorizedError(SupermachineError):
    """The registry refused the credentials."""

    code, name = 8, "unauthorized"


class UnreachableError(SupermachineError):
    """The registry is down, refuses or answers too slowly."""

    code, name = 9, "unreachable"


class CorruptError(SupermachineError):
    """Bytes do not match their digest, or are truncated."""

    code, name = 10, "corrupt"


class InvalidImageError(SupermachineError):
    """The image breaks the format's rules."""

    code, name = 11, "invalid_image"


class PlatformError(SupermachineError):
    """The image has no variant for the wanted platform."""

    code, name = 12, "platform"


class LimitError(SupermachineError):
    """A limit on size, entries or depth is exceeded."""

    code, name = 13, "limit"


class DiskFullError(SupermachineError):
    """No space is left on the host."""

    code, name = 14, "disk_full"


class BootError(SupermachineError):
    """The guest did not come up; console has the last that it wrote."""

    code, name = 15, "boot"


class VMEndedError(SupermachineError):
    """The VM has stopped, or stopped meanwhile."""

    code, name = 16, "vm_ended"


class CommandNotFoundError(SupermachineError):
    """The guest has no such program."""

    code, name = 17, "command_not_found"


class NotExecutableError(SupermachineError):
    """The program exists and cannot be executed."""

    code, name = 18, "not_executable"


class NotFoundError(SupermachineError):
    """There is no such file, directory, user, snapshot or VM."""

    code, name = 19, "not_found"


class RefusedError(SupermachineError):
    """Nothing listens on the guest's port."""

    code, name = 20, "refused"


class AgentError(SupermachineError):
    """The agent in the guest broke the protocol."""

    code, name = 21, "agent"


class GuestPermissionError(SupermachineError):
    """The guest's kernel refuses the operation."""

    code, name = 22, "permission"


class HostIOError(SupermachineError):
    """The host's operating system refused an operation."""

    code, name = 23, "io"


class NotReadyError(SupermachineError):
    """The workload did not become ready; output and console have the last that was written."""

    code, name = 24, "not_ready"


class IncompatibleError(SupermachineError):
    """The snapshot is of another version, architecture or CPU."""

    code, name = 25, "incompatible"


class InUseError(SupermachineError):
    """Something else needs the object."""

    code, name = 26, "in_use"


class NoMemoryError(SupermachineError):
    """The host has no memory left for the VM."""

    code, name = 27, "no_memory"


class ExhaustedError(SupermachineError):
    """The pool has no VM to give."""

    code, name = 28, "exhausted"


class ClosedError(SupermachineError):
    """The pool or the image is closed."""

    code, name = 29, "closed"


class InvalidHandleError(SupermachineError):
    """The object is closed, or was never one."""

    code, name = 30, "invalid_handle"


class ForkedError(SupermachineError):
    """This process was forked after the library was loaded."""

    code, name = 31, "forked"


class ExistsError(SupermachineError):
    """A file, directory or link exists already."""

    code, name = 32, "exists"


class NotEmptyError(SupermachineError):
    """The directory is not empty."""

    code, name = 33, "not_empty"


class UnsafeError(SupermachineError):
    """A copy from the guest would have reached out of its place, or has a device."""

    code, name = 34, "unsafe"


ERRORS: Dict[int, Type[SupermachineError]] = {c.code: c for c in SupermachineError.__subclasses__()}
"""The class for each code."""


def error_for(code: int, value: Dict[str, Any]) -> SupermachineError:
    """Returns the error that the library describes."""
    return ERRORS.get(code, SupermachineError)(
        value.get("message", f"error {code}"), code, value.get("name", ""), value.get("op", ""), value.get("object", ""), value.get("output", ""), value.get("console", "")
    )
