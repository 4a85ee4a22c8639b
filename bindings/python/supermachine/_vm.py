"""Images, VMs, programs, pools and stores."""

from __future__ import annotations

import os
import socket
import warnings
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Type, TypeVar, Union

from ._native import call, quick
from .errors import SupermachineError

Args = Union[str, Sequence[Union[str, bytes, "os.PathLike[str]"]]]
Env = Union[Mapping[str, str], Sequence[str]]
Progress = Callable[[Dict[str, Any]], None]
GuestPath = Union[str, PurePath]
_H = TypeVar("_H", bound="_Handle")


def as_args(args: Args) -> List[Any]:
    """Checks a program's arguments."""
    if isinstance(args, (str, bytes)):
        raise TypeError("args is a list of the program and its arguments; for a shell command use ['sh', '-c', command]")
    return [a if isinstance(a, (str, bytes)) else os.fspath(a) for a in args]


def as_env(env: Optional[Env]) -> Optional[List[str]]:
    """Returns NAME=value for each variable."""
    if env is None:
        return None
    return [f"{k}={v}" for k, v in env.items()] if isinstance(env, Mapping) else list(env)


def as_path(path: "Union[None, str, os.PathLike[str]]") -> Optional[str]:
    """Returns a path as a string."""
    return None if path is None else os.fspath(path)


def as_ms(seconds: Optional[float]) -> Optional[int]:
    """Whole milliseconds, at least one of a time that is not zero."""
    if seconds is None:
        return None
    if seconds < 0:
        raise ValueError(f"a time of {seconds} seconds is not possible")
    return max(int(seconds * 1000), 1) if seconds else 0


class Owned:
    """An object of the library's, which is closed once."""

    _kind = ""
    _closed = True

    def __init__(self, handle: int) -> None:
        self._handle = handle  # kept when it is closed: the library then says so, where 0 would stand for the user's own store
        self._pid = os.getpid()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def _take(self) -> bool:
        """Whoever gets True closes the object. In a forked child nobody does: it is the parent's."""
        if self._closed:
            return False
        self._closed = True
        return self._pid == os.getpid()


class _Handle(Owned):
    """An object that is closed by close, the end of a with block, or as a last resort the garbage collector."""

    def close(self) -> None:
        """Gives the object up. Closing twice is allowed."""
        if self._take():
            call(self._kind + "_close", self._handle)

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        text = repr(self)
        if self._take():
            warnings.warn(f"unclosed {text}", ResourceWarning, source=self)
            try:
                quick(self._kind + "_close", self._handle)
            except SupermachineError:
                pass

    def __repr__(self) -> str:
        return f"<supermachine.{type(self).__name__}{' (closed)' if self.closed else ''}>"


@dataclass(frozen=True)
class Exit:
    """How a program ended."""

    code: int
    """Exit status, 0 to 255; 128 + signal if a signal ended the program."""
    signal: int
    """The signal that ended the program; 0 if it exited."""
    timed_out: bool
    """Its timeout passed and it was killed."""
    truncated: bool
    """A background child still held the output when the program exited; what it wrote later is lost."""
    duration: float
    """Seconds from the request to the end."""
    user: float
    """Seconds of CPU time in user mode."""
    system: float
    """Seconds of CPU time in the guest's kernel."""
    max_rss: int
    """Most memory resident at once, in bytes."""


@dataclass(frozen=True)
class Result(Exit):
    """What a program wrote, and how it ended."""

    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as UTF-8; what is none is replaced."""
        return self.stdout.decode(errors="replace")


class ExitError(Exception):
    """Raised by run with check=True when the program does not exit with 0. result has all of it."""

    def __init__(self, args: List[Any], result: Result) -> None:
        how = f"was ended by signal {result.signal}" if result.signal else f"exited with {result.code}"
        last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        super().__init__(f"{args[0]!r} {how}" + "".join(f": {line}" for line in last))
        self.result = result


def as_exit(r: Dict[str, Any]) -> Dict[str, Any]:
    """Returns the fields of an Exit."""
    return dict(
        code=r["code"], signal=r["signal"], timed_out=r["timed_out"], truncated=r["truncated"],
        duration=r["duration_us"] / 1e6, user=r["user_us"] / 1e6, system=r["system_us"] / 1e6, max_rss=r["max_rss"],
    )  # fmt: skip


def as_socket(fd: int) -> socket.socket:
    """Returns a socket that owns a file descriptor of the library's."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)


class Process(_Handle):
    """A program that runs in a VM. Iterating over it gives the lines that it writes to stdout."""

    _kind = "exec"

    def __init__(self, started: Dict[str, Any]) -> None:
        super().__init__(started["exec"])
        self.pid: int = started["pid"]
        """Process ID in the guest."""
        self.stdin = self._stream(started["stdin"], "wb")
        """A binary file to write to, closed to end the input; None if it was not asked for."""
        self.stdout = self._stream(started["stdout"], "rb")
        """A binary file to read from; None if it was not asked for."""
        self.stderr = self._stream(started["stderr"], "rb")
        """A binary file to read from; None if it was not asked for."""

    @staticmethod
    def _stream(fd: int, mode: Any) -> Optional[BinaryIO]:
        if fd < 0:
            return None
        with as_socket(fd) as s:  # the file keeps the descriptor open
            f: BinaryIO = s.makefile(mode)
            return f

    def wait(self) -> Exit:
        """Waits for the program's end. What it wrote can still be read."""
        return Exit(**as_exit(call("exec_wait", self._handle)))

    def signal(self, name: str) -> None:
        """Sends a signal, such as "TERM", to the program's process group."""
        quick("exec_signal", self._handle, signal=name)

    def kill(self) -> None:
        """Ends the program, and its background children, at once."""
        self.signal("KILL")

    def resize(self, rows: int, cols: int) -> None:
        """Changes the size of the program's terminal."""
        quick("exec_resize", self._handle, rows=rows, cols=cols)

    def close(self) -> None:
        """Kills the program if it still runs, and closes its streams."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass  # what was buffered has nobody to read it
        super().close()

    def __iter__(self) -> Iterator[bytes]:
        if self.stdout is None:
            raise ValueError("stdout was not asked for")
        return iter(self.stdout)


class Forward(_Handle):
    """A listener on the host whose connections go to a port of the guest."""

    _kind = "forward"

    def __init__(self, made: Dict[str, Any]) -> None:
        super().__init__(made["forward"])
        self.address: str = made["address"]
        """Where it listens: HOST:PORT or a path."""


class GuestFile(_Handle):
    """A file of the guest, read or written as a stream of any size."""

    _kind = "file"

    def __init__(self, opened: Dict[str, Any], mode: Any) -> None:
        super().__init__(opened["file"])
        with as_socket(opened["fd"]) as s:
            self.stream: BinaryIO = s.makefile(mode)
            """The binary file to read from or write to."""

    def commit(self) -> None:
        """Ends the stream and waits until all of it was read, or is in the file. A written file appears under its name only now."""
        self.stream.close()
        call("file_wait", self._handle)

    def close(self) -> None:
        """Gives the transfer up. A file that was not committed stays as it was."""
        if self._take():
            call("file_close", self._handle)
        try:
            self.stream.close()
        except OSError:
            pass

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        try:
            if kind is None and self.stream.writable():
                self.commit()
        finally:
            self.close()


class VM(_Handle):
    """A running microVM. Use it in a with block, or close it."""

    _kind = "vm"

    def __init__(self, started: Dict[str, Any]) -> None:
        super().__init__(started["vm"])
        self.id: str = started["id"]
        """Random identifier, 12 hexadecimal digits."""
        self.name: str = started["name"]
        """Name, which is also the guest's host name."""
        self.restore_id: str = started["restore_id"]
        """The random identifier that the guest was given when it was restored; empty for one that was booted."""

    @classmethod
    def boot(
        cls, ref: str, *, name: Optional[str] = None, memory_mib: Optional[int] = None, vcpus: Optional[int] = None, scratch_mib: Optional[int] = None,
        timeout: Optional[float] = None, pull: Optional[str] = None, platform: Optional[str] = None, insecure: Optional[Sequence[str]] = None,
        store: "Optional[Store]" = None, progress: Optional[Progress] = None,
    ) -> "VM":  # fmt: skip
        """Pulls an OCI image if need be and boots it, without a snapshot. The image's command is not started."""
        return cls(call(
            "vm_boot", _of(store), progress, ref=ref, name=name, memory_mib=memory_mib, vcpus=vcpus, scratch_mib=scratch_mib, timeout_ms=as_ms(timeout),
            pull=pull, platform=platform, insecure=insecure,
        ))  # fmt: skip

    def run(
        self, args: Args, *, input: Optional[bytes] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
        timeout: Optional[float] = None, check: bool = False,
    ) -> Result:  # fmt: skip
        """Runs a program to its end and collects what it writes, up to 64 MiB of each stream.

        input: what it reads. env: over the image's environment. timeout: seconds, after which it is killed and the result says timed_out.
        check: raise an ExitError unless it exits with 0.
        """
        argv = as_args(args)
        r = call(
            "vm_run", self._handle, args=argv, stdin=input, env=as_env(env), workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout)
        )
        result = Result(**as_exit(r), stdout=r["stdout"] or b"", stderr=r["stderr"] or b"")
        if check and result.code != 0:
            raise ExitError(argv, result)
        return result

    def exec(
        self, args: Args, *, stdin: bool = False, stdout: bool = True, stderr: bool = False, tty: bool = False, rows: Optional[int] = None,
        cols: Optional[int] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None, timeout: Optional[float] = None,
    ) -> Process:  # fmt: skip
        """Starts a program and returns once it runs. stdin, stdout, stderr: which streams are wanted. tty: run it on a terminal."""
        return Process(call(
            "vm_exec", self._handle, args=as_args(args), stdin=stdin, stdout=stdout, stderr=stderr, tty=tty, rows=rows, cols=cols, env=as_env(env),
            workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout),
        ))  # fmt: skip

    def start_workload(self, args: Args, *, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None) -> None:
        """Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped."""
        call("vm_start_workload", self._handle, args=as_args(args), env=as_env(env), workdir=as_path(workdir), user=user)

    def logs(self) -> Process:
        """Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing ends the following alone."""
        return Process(call("vm_follow", self._handle))

    def console(self) -> str:
        """Returns the last that the guest's kernel and init wrote to the console."""
        return str(quick("vm_console", self._handle)["text"])

    def connect(self, port: Optional[int] = None) -> socket.socket:
        """Opens a connected socket to a TCP port of the guest; default: the workload's."""
        return as_socket(call("vm_connect", self._handle, port=port)["fd"])

    def forward(self, port: Optional[int] = None, address: Optional[str] = None) -> Forward:
        """Listens on the host, at HOST:PORT or a Unix socket's path, and connects what arrives to the guest's port. Default: 127.0.0.1 and a free port."""
        return Forward(call("vm_forward", self._handle, port=port, address=address))

    def read_file(self, path: GuestPath) -> bytes:
        """Reads a file of the guest, of up to 64 MiB."""
        return bytes(call("vm_read_file", self._handle, path=as_path(path))["data"] or b"")

    def write_file(self, path: GuestPath, data: Union[bytes, str], mode: Optional[int] = None) -> None:
        """Creates or replaces a file of the guest, all or nothing. mode: permission bits, default 0o644."""
        call("vm_write_file", self._handle, path=as_path(path), data=data.encode() if isinstance(data, str) else data, mode=mode)

    def open_file(self, path: GuestPath) -> GuestFile:
        """Reads a file of the guest, of any size, as a stream."""
        return GuestFile(call("vm_open_file", self._handle, path=as_path(path)), "rb")

    def create_file(self, path: GuestPath, mode: Optional[int] = None) -> GuestFile:
        """Creates or replaces a file of the guest with what is written to a stream. It appears when it is committed, as a with block does at its end."""
        return GuestFile(call("vm_create_file", self._handle, path=as_path(path), mode=mode), "wb")

    def upload(self, source: Union[str, Path], path: GuestPath) -> None:
        """Copies a file of the host into the guest."""
        with open(source, "rb") as f, self.create_file(path, os.fstat(f.fileno()).st_mode & 0o777) as to:
            while block := f.read(1 << 20):
                to.stream.write(block)

    def pause(self) -> None:
        """Stops the guest's processors and devices."""
        call("vm_pause", self._handle)

    def resume(self) -> None:
        """Continues a paused VM."""
        call("vm_resume", self._handle)

    def snapshot(self, name: Optional[str] = None, *, base: "Optional[Image]" = None, lean: bool = False, store: "Optional[Store]" = None) -> "Image":
        """Saves the running VM as an image that others can be started from. base: store only what differs from it."""
        return Image(call("vm_snapshot", self._handle, name=name, base=None if base is None else base._handle, lean=lean, store=None if store is None else store._handle))

    def fork(self, n: int = 1, *, names: Optional[Sequence[str]] = None) -> "List[VM]":
        """Makes n VMs that go on from this instant, while this one goes on too."""
        r = call("vm_fork", self._handle, n=n, names=None if names is None else list(names))
        return [VM({"vm": v, "id": i, "name": m, "restore_id": s}) for v, i, m, s in zip(r["vms"], r["ids"], r["names"], r["restore_ids"])]

    def info(self) -> Dict[str, Any]:
        """Describes the VM; the keys are those of sm_vm_info."""
        return quick("vm_info", self._handle)

    def memory(self) -> Dict[str, Any]:
        """Says what memory the VM takes; the keys are those of sm_vm_memory."""
        return call("vm_memory", self._handle)

    def set_balloon(self, bytes: int) -> None:
        """Asks the guest to give up so many bytes of its memory; 0 returns all of it."""
        quick("vm_set_balloon", self._handle, bytes=bytes)

    def wait(self) -> str:
        """Waits until the VM has ended and tells why, such as "powered off"."""
        return str(call("vm_wait", self._handle)["reason"])

    def stop(self, grace: Optional[float] = None) -> str:
        """Asks the guest to shut down, and stops it by force if it does not within grace seconds (default 10). Tells how it ended."""
        return str(call("vm_stop", self._handle, grace_ms=as_ms(grace))["reason"])

    def kill(self) -> None:
        """Ends the VM at once."""
        quick("vm_kill", self._handle)

    def discard(self) -> None:
        """Like close, but a VM that was acquired from a pool is thrown away."""
        if self._take():
            call("vm_discard", self._handle)


class Image(_Handle):
    """What VMs start from: a workload that was brought to readiness and frozen."""

    _kind = "image"

    def __init__(self, made: Dict[str, Any]) -> None:
        super().__init__(made["image"])
        self.id: str = made["id"]
        """The snapshot's identifier."""

    @classmethod
    def from_oci(
        cls, ref: str, *, name: Optional[str] = None, entrypoint: Optional[Sequence[str]] = None, cmd: Optional[Sequence[str]] = None, env: Optional[Env] = None,
        user: Optional[str] = None, workdir: Optional[GuestPath] = None, boot_only: bool = False, memory_mib: Optional[int] = None, vcpus: Optional[int] = None,
        scratch_mib: Optional[int] = None, guest_port: Optional[int] = None, ready: Union[None, str, Sequence[str]] = None,
        warmup: Optional[Sequence[Sequence[str]]] = None, timeout: Optional[float] = None, pull: Optional[str] = None, platform: Optional[str] = None,
        insecure: Optional[Sequence[str]] = None, store: "Optional[Store]" = None, progress: Optional[Progress] = None,
    ) -> "Image":  # fmt: skip
        """Pulls an OCI image and boots it once, brings its workload to readiness and freezes it. If the store has that already, nothing is booted.

        boot_only: start no workload, the VMs only run programs. ready: "port[:N]", "settle[:DURATION]", "none", or a program's arguments that exits with 0.
        warmup: programs that run before the freeze. timeout: seconds. progress: is called with a dict for each step.
        """
        command = None if ready is None or isinstance(ready, str) else list(ready)
        return cls(call(
            "image_from_oci", _of(store), progress, ref=ref, name=name, entrypoint=entrypoint, cmd=cmd, env=as_env(env), user=user,
            workdir=as_path(workdir), boot_only=boot_only, memory_mib=memory_mib, vcpus=vcpus, scratch_mib=scratch_mib, guest_port=guest_port,
            ready=ready if isinstance(ready, str) else None, ready_command=command, warmup=warmup, timeout_ms=as_ms(timeout), pull=pull, platform=platform,
            insecure=insecure,
        ))  # fmt: skip

    @classmethod
    def from_snapshot(cls, name: str, *, verify: Optional[str] = None, store: "Optional[Store]" = None) -> "Image":
        """Opens a snapshot of the store by its ID, the beginning of it, or its name. verify: "once" (default), "always" or "never"."""
        return cls(call("image_from_snapshot", _of(store), name=name, verify=verify))

    def start(self, name: Optional[str] = None, *, timeout: Optional[float] = None) -> VM:
        """Starts a VM, with entropy, clock and host name of its own."""
        return VM(call("vm_start", self._handle, name=name, timeout_ms=as_ms(timeout)))

    def acquire(self) -> VM:
        """Takes a VM from the image's own pool, which keeps one ready. Closing it gives it back."""
        return VM(call("image_acquire", self._handle))

    def pool_stats(self) -> Dict[str, int]:
        """Says what the image's own pool has and has done; the keys are those of sm_pool_stats."""
        return quick("image_pool_stats", self._handle)

    def info(self) -> Dict[str, Any]:
        """Describes the image; the keys are those of sm_image_info."""
        return quick("image_info", self._handle)

    def pool(
        self, *, min: Optional[int] = None, max: Optional[int] = None, idle_timeout: Optional[float] = None, acquire_timeout: Optional[float] = None,
        replace: bool = False,
    ) -> "Pool":  # fmt: skip
        """Makes a pool of VMs: min kept ready, max at most, idle_timeout seconds until a surplus is closed, acquire_timeout seconds to wait for one."""
        return Pool(quick(
            "pool_new", self._handle, min=min, max=max, idle_timeout_ms=as_ms(idle_timeout), acquire_timeout_ms=as_ms(acquire_timeout), replace=replace
        )["pool"])  # fmt: skip


class Pool(_Handle):
    """Keeps VMs of one image ready. The image must stay open as long."""

    _kind = "pool"

    def acquire(self) -> VM:
        """Takes a VM, in microseconds if one is ready. Closing it gives it back, and the next user gets a clean one."""
        return VM(call("pool_acquire", self._handle))

    def stats(self) -> Dict[str, int]:
        """Says what the pool has and has done; the keys are those of sm_pool_stats."""
        return quick("pool_stats", self._handle)


class Store(_Handle):
    """Where images and snapshots are kept. The functions that take none use the user's own."""

    _kind = "store"

    def __init__(self, dir: Union[None, str, Path] = None, *, assets: Union[None, str, Path] = None) -> None:
        super().__init__(quick("store_open", 0, dir=as_path(dir), assets=as_path(assets))["store"])

    def pull(
        self, ref: str, *, pull: Optional[str] = None, platform: Optional[str] = None, insecure: Optional[Sequence[str]] = None, progress: Optional[Progress] = None
    ) -> Dict[str, Any]:
        """Makes an OCI image available and describes it."""
        return call("store_pull", self._handle, progress, ref=ref, pull=pull, platform=platform, insecure=insecure)

    def images(self) -> List[Dict[str, Any]]:
        """Lists the OCI images in the store."""
        return list(call("store_images", self._handle)["images"])

    def remove_image(self, ref: str) -> None:
        """Forgets the reference of an OCI image."""
        call("store_remove_image", self._handle, ref=ref)

    def snapshots(self) -> List[Dict[str, Any]]:
        """Lists the snapshots in the store, newest first."""
        return list(call("store_snapshots", self._handle)["snapshots"])

    def inspect(self, name: str) -> Dict[str, Any]:
        """Describes one snapshot."""
        return call("store_inspect", self._handle, name=name)

    def remove(self, name: str) -> None:
        """Deletes a snapshot. VMs that were started from it go on."""
        call("store_remove", self._handle, name=name)

    def prune(self, *, older: Optional[float] = None, max_bytes: Optional[int] = None, unreferenced: bool = False, all: bool = False) -> List[Dict[str, Any]]:
        """Deletes the snapshots that may go, and describes them. older: not used for so many seconds."""
        return list(call("store_prune", self._handle, older_ms=as_ms(older), max_bytes=max_bytes, unreferenced=unreferenced, all=all)["snapshots"])

    def flatten(self, name: str) -> str:
        """Makes a snapshot that holds everything itself from one that holds differences, and returns its ID."""
        return str(call("store_flatten", self._handle, name=name)["id"])


def _of(store: Optional[Store]) -> int:
    return 0 if store is None else store._handle
