# frozen_string_literal: true

# Made by "make abi" from the table of error codes.

require_relative "error"

module Supermachine
  # internal: a bug of ours; please report it.
  class InternalError < Error; end

  # invalid_argument: a value is out of range or malformed.
  class InvalidArgumentError < Error; end

  # canceled: the caller canceled.
  class CanceledError < Error; end

  # timeout: a deadline passed.
  class TimeoutError < Error; end

  # no_virtualization: no /dev/kvm, no permission, or no hardware support.
  class NoVirtualizationError < Error; end

  # assets: the guest's kernel or initramfs is missing or corrupt.
  class AssetsError < Error; end

  # image_not_found: the registry, file or store has no such image.
  class ImageNotFoundError < Error; end

  # unauthorized: the registry refused the credentials.
  class UnauthorizedError < Error; end

  # unreachable: the registry is down, refuses or answers too slowly.
  class UnreachableError < Error; end

  # corrupt: bytes do not match their digest, or are truncated.
  class CorruptError < Error; end

  # invalid_image: the image breaks the format's rules.
  class InvalidImageError < Error; end

  # platform: the image has no variant for the wanted platform.
  class PlatformError < Error; end

  # limit: a limit on size, entries or depth is exceeded.
  class LimitError < Error; end

  # disk_full: no space left on the host.
  class DiskFullError < Error; end

  # boot: the guest did not come up.
  class BootError < Error; end

  # vm_ended: the VM has stopped, or stopped meanwhile.
  class VMEndedError < Error; end

  # command_not_found: the guest has no such program.
  class CommandNotFoundError < Error; end

  # not_executable: the program exists and cannot be executed.
  class NotExecutableError < Error; end

  # not_found: no such file, directory, user, snapshot or VM.
  class NotFoundError < Error; end

  # refused: nothing listens on the guest's port.
  class RefusedError < Error; end

  # agent: the agent in the guest broke the protocol.
  class AgentError < Error; end

  # permission: the guest's kernel refuses the operation.
  class PermissionError < Error; end

  # io: the host's operating system refused an operation.
  class IOError < Error; end

  # not_ready: the workload did not become ready.
  class NotReadyError < Error; end

  # incompatible: a snapshot of another version, architecture or CPU.
  class IncompatibleError < Error; end

  # in_use: something else needs the object.
  class InUseError < Error; end

  # no_memory: the host has no memory left for the VM.
  class NoMemoryError < Error; end

  # exhausted: the pool has no VM to give.
  class ExhaustedError < Error; end

  # closed: the pool or the image is closed.
  class ClosedError < Error; end

  # invalid_handle: closed, of another kind, or none at all.
  class InvalidHandleError < Error; end

  # forked: the process was forked after the library was loaded.
  class ForkedError < Error; end

  # exists: a file, directory or link exists already.
  class ExistsError < Error; end

  # not_empty: the directory is not empty.
  class NotEmptyError < Error; end

  # unsafe: a copy from the guest would have reached out of its place, or has a device.
  class UnsafeError < Error; end

  # The class for each code.
  ERRORS = {
    1 => InternalError,
    2 => InvalidArgumentError,
    3 => CanceledError,
    4 => TimeoutError,
    5 => NoVirtualizationError,
    6 => AssetsError,
    7 => ImageNotFoundError,
    8 => UnauthorizedError,
    9 => UnreachableError,
    10 => CorruptError,
    11 => InvalidImageError,
    12 => PlatformError,
    13 => LimitError,
    14 => DiskFullError,
    15 => BootError,
    16 => VMEndedError,
    17 => CommandNotFoundError,
    18 => NotExecutableError,
    19 => NotFoundError,
    20 => RefusedError,
    21 => AgentError,
    22 => PermissionError,
    23 => IOError,
    24 => NotReadyError,
    25 => IncompatibleError,
    26 => InUseError,
    27 => NoMemoryError,
    28 => ExhaustedError,
    29 => ClosedError,
    30 => InvalidHandleError,
    31 => ForkedError,
    32 => ExistsError,
    33 => NotEmptyError,
    34 => UnsafeError,
  }.freeze
end
