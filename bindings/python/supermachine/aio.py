"""The same for asyncio: what waits is a coroutine, and nothing takes a thread.

>>> import asyncio
>>> from supermachine import aio
>>> asyncio.run(aio.run("busybox", ["echo", "hi"])).stdout
b'hi\\n'

A coroutine that is canceled cancels its call, and what that still makes is released.
"""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from types import TracebackType
from typing import Any, AsyncIterator, Dict, List, Optional, Sequence, Tuple, Type, TypeVar, Union

from ._native import EVENT, Queue, quick
from ._vm import Args, Env, Exit, ExitError, GuestPath, Owned, Progress, Result, as_args, as_env, as_exit, as_ms, as_path, as_socket
from .errors import SupermachineError, error_for

_H = TypeVar("_H", bound="_Handle")
Stream = Tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pending:
    def __init__(self, future: "asyncio.Future[Tuple[int, Dict[str, Any]]]", progress: Optional[Progress]) -> None:
        self.future, self.progress = future, progress


class _Dispatcher:
    """Hands what comes out of one event loop's queue to the coroutines that wait for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.queue = Queue()
        self.pending: Dict[int, _Pending] = {}
        loop.add_reader(self.queue.fd, self.drain)

    def drain(self) -> None:
        while (item := self.queue.next()) is not None:
            tag, kind, code, value = item
            p = self.pending.get(tag)
            if p is None:
                continue
            if kind == EVENT:
                if p.progress is not None:
                    p.progress(value)
            elif not p.future.done():
                p.future.set_result((code, value))


_dispatchers: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Dispatcher]" = weakref.WeakKeyDictionary()


async def call(name: str, handle: int = 0, progress: Optional[Progress] = None, /, **options: Any) -> Dict[str, Any]:
    """Makes a call and awaits its end."""
    loop = asyncio.get_running_loop()
    dispatcher = _dispatchers.get(loop)
    if dispatcher is None or dispatcher.queue.pid != os.getpid():
        dispatcher = _dispatchers[loop] = _Dispatcher(loop)
    future: "asyncio.Future[Tuple[int, Dict[str, Any]]]" = loop.create_future()
    tag, number = dispatcher.queue.start(name, handle, options)
    dispatcher.pending[tag] = _Pending(future, progress)
    try:
        code, value = await asyncio.shield(future)
    except BaseException:
        if not future.done():
            dispatcher.queue.abandon(number)
        elif not future.cancelled() and future.result()[0] == 0:
            release(future.result()[1])
        raise
    finally:
        del dispatcher.pending[tag]
    if code != 0:
        raise error_for(code, value)
    return value


def release(value: Dict[str, Any]) -> None:
    """Releases what a result holds that came together with a cancellation."""
    for key in ("stdin", "stdout", "stderr", "fd"):
        if isinstance(value.get(key), int) and value[key] >= 0:
            os.close(value[key])
    for kind in ("vm", "image", "exec", "forward", "file"):
        if isinstance(value.get(kind), int):
            _close_later(kind, value[kind])
    for vm in value.get("vms", []):
        _close_later("vm", vm)


def _close_later(kind: str, handle: int) -> None:
    queue = Queue()
    try:
        queue.start(kind + "_close", handle, {})
    finally:
        queue.close()


class _Handle(Owned):
    """An object that is closed by aclose, the end of an async with block, or as a last resort the garbage collector."""

    async def aclose(self) -> None:
        """Gives the object up. Closing twice is allowed."""
        if self._take():
            await asyncio.shield(call(self._kind + "_close", self._handle))

    async def __aenter__(self: _H) -> _H:
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        await self.aclose()

    def __del__(self) -> None:
        text = repr(self)
        if self._take():
            warnings.warn(f"unclosed {text}", ResourceWarning, source=self)
            try:
                _close_later(self._kind, self._handle)
            except SupermachineError:
                pass

    def __repr__(self) -> str:
        return f"<supermachine.aio.{type(self).__name__}{' (closed)' if self.closed else ''}>"


async def _open(fd: int) -> Optional[Stream]:
    if fd < 0:
        return None
    return await asyncio.open_connection(sock=as_socket(fd), limit=1 << 20)


class Process(_Handle):
    """A program that runs in a VM. Async iteration gives the lines that it writes to stdout."""

    _kind = "exec"

    def __init__(self, handle: int, pid: int, stdin: Optional[Stream], stdout: Optional[Stream], stderr: Optional[Stream]) -> None:
        super().__init__(handle)
        self.pid = pid
        """Process ID in the guest."""
        self.stdin = stdin[1] if stdin else None
        """Write to it, await drain(), and close it to end the input; None if it was not asked for."""
        self.stdout = stdout[0] if stdout else None
        """Read from it until its end; None if it was not asked for."""
        self.stderr = stderr[0] if stderr else None
        """Read from it until its end; None if it was not asked for."""
        self._writers = [s[1] for s in (stdin, stdout, stderr) if s]

    async def wait(self) -> Exit:
        """Awaits the program's end. What it wrote can still be read."""
        return Exit(**as_exit(await call("exec_wait", self._handle)))

    def signal(self, name: str) -> None:
        """Sends a signal, such as "TERM", to the program's process group."""
        quick("exec_signal", self._handle, signal=name)

    def kill(self) -> None:
        """Ends the program, and its background children, at once."""
        self.signal("KILL")

    def resize(self, rows: int, cols: int) -> None:
        """Changes the size of the program's terminal."""
        quick("exec_resize", self._handle, rows=rows, cols=cols)

    async def aclose(self) -> None:
        """Kills the program if it still runs, and closes its streams."""
        for w in self._writers:
            w.close()
        await super().aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.stdout is None:
            raise ValueError("stdout was not asked for")
        async for line in self.stdout:
            yield line


async def _process(started: Dict[str, Any]) -> Process:
    stdin, stdout, stderr = [await _open(started[k]) for k in ("stdin", "stdout", "stderr")]
    return Process(started["exec"], started["pid"], stdin, stdout, stderr)


class Forward(_Handle):
    """A listener on the host whose connections go to a port of the guest."""

    _kind = "forward"

    def __init__(self, made: Dict[str, Any]) -> None:
        super().__init__(made["forward"])
        self.address: str = made["address"]
        """Where it listens: HOST:PORT or a path."""


class VM(_Handle):
    """A running microVM. Use it in an async with block, or close it."""

    _kind = "vm"

    def __init__(self, started: Dict[str, Any]) -> None:
        super().__init__(started["vm"])
        self.id: str = started["id"]
        """Random identifier, 12 hexadecimal digits."""
        self.name: str = started["name"]
        """Name, which is also the guest's host name."""
        self.restore_id: str = started["restore_id"]
        """The random identifier that the guest was given when it was restored; empty for one that was booted."""

    async def run(
        self, args: Args, *, input: Optional[bytes] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
        timeout: Optional[float] = None, check: bool = False,
    ) -> Result:  # fmt: skip
        """Runs a program to its end and collects what it writes, as supermachine.VM.run does. It is killed if the coroutine is canceled."""
        argv = as_args(args)
        r = await call(
            "vm_run", self._handle, args=argv, stdin=input, env=as_env(env), workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout)
        )
        result = Result(**as_exit(r), stdout=r["stdout"] or b"", stderr=r["stderr"] or b"")
        if check and result.code != 0:
            raise ExitError(argv, result)
        return result

    async def exec(
        self, args: Args, *, stdin: bool = False, stdout: bool = True, stderr: bool = False, tty: bool = False, rows: Optional[int] = None,
        cols: Optional[int] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None, timeout: Optional[float] = None,
    ) -> Process:  # fmt: skip
        """Starts a program and returns once it runs. stdin, stdout, stderr: which streams are wanted. tty: run it on a terminal."""
        return await _process(await call(
            "vm_exec", self._handle, args=as_args(args), stdin=stdin, stdout=stdout, stderr=stderr, tty=tty, rows=rows, cols=cols, env=as_env(env),
            workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout),
        ))  # fmt: skip

    async def start_workload(self, args: Args, *, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None) -> None:
        """Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped."""
        await call("vm_start_workload", self._handle, args=as_args(args), env=as_env(env), workdir=as_path(workdir), user=user)

    async def logs(self) -> Process:
        """Attaches to the workload's output, from what the guest has kept on. Closing ends the following alone."""
        return await _process(await call("vm_follow", self._handle))

    def console(self) -> str:
        """Returns the last that the guest's kernel and init wrote to the console."""
        return str(quick("vm_console", self._handle)["text"])

    async def connect(self, port: Optional[int] = None) -> Stream:
        """Opens a stream to a TCP port of the guest; default: the workload's."""
        return await asyncio.open_connection(sock=as_socket((await call("vm_connect", self._handle, port=port))["fd"]))

    async def forward(self, port: Optional[int] = None, address: Optional[str] = None) -> Forward:
        """Listens on the host, at HOST:PORT or a Unix socket's path, and connects what arrives to the guest's port."""
        return Forward(await call("vm_forward", self._handle, port=port, address=address))

    async def read_file(self, path: GuestPath) -> bytes:
        """Reads a file of the guest, of up to 64 MiB."""
        return bytes((await call("vm_read_file", self._handle, path=as_path(path)))["data"] or b"")

    async def write_file(self, path: GuestPath, data: Union[bytes, str], mode: Optional[int] = None) -> None:
        """Creates or replaces a file of the guest, all or nothing. mode: permission bits, default 0o644."""
        await call("vm_write_file", self._handle, path=as_path(path), data=data.encode() if isinstance(data, str) else data, mode=mode)

    async def pause(self) -> None:
        """Stops the guest's processors and devices."""
        await call("vm_pause", self._handle)

    async def resume(self) -> None:
        """Continues a paused VM."""
        await call("vm_resume", self._handle)

    async def snapshot(self, name: Optional[str] = None, *, base: "Optional[Image]" = None, lean: bool = False) -> "Image":
        """Saves the running VM in the user's own store, as an image that others can be started from. base: store only what differs from it."""
        return Image(await call("vm_snapshot", self._handle, name=name, base=None if base is None else base._handle, lean=lean))

    async def fork(self, n: int = 1, *, names: Optional[Sequence[str]] = None) -> "List[VM]":
        """Makes n VMs that go on from this instant, while this one goes on too."""
        r = await call("vm_fork", self._handle, n=n, names=None if names is None else list(names))
        return [VM({"vm": v, "id": i, "name": m, "restore_id": s}) for v, i, m, s in zip(r["vms"], r["ids"], r["names"], r["restore_ids"])]

    def info(self) -> Dict[str, Any]:
        """Describes the VM; the keys are those of sm_vm_info."""
        return quick("vm_info", self._handle)

    async def memory(self) -> Dict[str, Any]:
        """Says what memory the VM takes; the keys are those of sm_vm_memory."""
        return await call("vm_memory", self._handle)

    async def wait(self) -> str:
        """Awaits the VM's end and tells why, such as "powered off"."""
        return str((await call("vm_wait", self._handle))["reason"])

    async def stop(self, grace: Optional[float] = None) -> str:
        """Asks the guest to shut down, and stops it by force if it does not within grace seconds (default 10). Tells how it ended."""
        return str((await call("vm_stop", self._handle, grace_ms=as_ms(grace)))["reason"])

    def kill(self) -> None:
        """Ends the VM at once."""
        quick("vm_kill", self._handle)

    async def discard(self) -> None:
        """Like aclose, but a VM that was acquired from a pool is thrown away."""
        if self._take():
            await asyncio.shield(call("vm_discard", self._handle))


class Image(_Handle):
    """What VMs start from: a workload that was brought to readiness and frozen."""

    _kind = "image"

    def __init__(self, made: Dict[str, Any]) -> None:
        super().__init__(made["image"])
        self.id: str = made["id"]
        """The snapshot's identifier."""

    @classmethod
    async def from_oci(
        cls, ref: str, *, name: Optional[str] = None, entrypoint: Optional[Sequence[str]] = None, cmd: Optional[Sequence[str]] = None, env: Optional[Env] = None,
        user: Optional[str] = None, workdir: Optional[GuestPath] = None, boot_only: bool = False, memory_mib: Optional[int] = None, vcpus: Optional[int] = None,
        scratch_mib: Optional[int] = None, guest_port: Optional[int] = None, ready: Union[None, str, Sequence[str]] = None,
        warmup: Optional[Sequence[Sequence[str]]] = None, timeout: Optional[float] = None, pull: Optional[str] = None, platform: Optional[str] = None,
        insecure: Optional[Sequence[str]] = None, progress: Optional[Progress] = None,
    ) -> "Image":  # fmt: skip
        """Pulls an OCI image and boots it once, as supermachine.Image.from_oci does."""
        command = None if ready is None or isinstance(ready, str) else list(ready)
        return cls(await call(
            "image_from_oci", 0, progress, ref=ref, name=name, entrypoint=entrypoint, cmd=cmd, env=as_env(env), user=user, workdir=as_path(workdir),
            boot_only=boot_only, memory_mib=memory_mib, vcpus=vcpus, scratch_mib=scratch_mib, guest_port=guest_port,
            ready=ready if isinstance(ready, str) else None, ready_command=command, warmup=warmup, timeout_ms=as_ms(timeout), pull=pull, platform=platform,
            insecure=insecure,
        ))  # fmt: skip

    @classmethod
    async def from_snapshot(cls, name: str, *, verify: Optional[str] = None) -> "Image":
        """Opens a snapshot of the user's own store by its ID, the beginning of it, or its name."""
        return cls(await call("image_from_snapshot", 0, name=name, verify=verify))

    async def start(self, name: Optional[str] = None, *, timeout: Optional[float] = None) -> VM:
        """Starts a VM, with entropy, clock and host name of its own."""
        return VM(await call("vm_start", self._handle, name=name, timeout_ms=as_ms(timeout)))

    async def acquire(self) -> VM:
        """Takes a VM from the image's own pool, which keeps one ready. Closing it gives it back."""
        return VM(await call("image_acquire", self._handle))

    def pool(
        self, *, min: Optional[int] = None, max: Optional[int] = None, idle_timeout: Optional[float] = None, acquire_timeout: Optional[float] = None,
        replace: bool = False,
    ) -> "Pool":  # fmt: skip
        """Makes a pool of VMs, as supermachine.Image.pool does."""
        return Pool(quick(
            "pool_new", self._handle, min=min, max=max, idle_timeout_ms=as_ms(idle_timeout), acquire_timeout_ms=as_ms(acquire_timeout), replace=replace
        )["pool"])  # fmt: skip

    def info(self) -> Dict[str, Any]:
        """Describes the image; the keys are those of sm_image_info."""
        return quick("image_info", self._handle)


class Pool(_Handle):
    """Keeps VMs of one image ready. The image must stay open as long."""

    _kind = "pool"

    async def acquire(self) -> VM:
        """Takes a VM; awaits one if none is ready. Closing it gives it back, and the next user gets a clean one."""
        return VM(await call("pool_acquire", self._handle))

    def stats(self) -> Dict[str, int]:
        """Says what the pool has and has done; the keys are those of sm_pool_stats."""
        return quick("pool_stats", self._handle)


async def run(
    ref: str, args: Args, *, input: Optional[bytes] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
    timeout: Optional[float] = None, check: bool = False, memory_mib: Optional[int] = None, vcpus: Optional[int] = None, pull: Optional[str] = None,
    progress: Optional[Progress] = None,
) -> Result:  # fmt: skip
    """Runs a program in a fresh microVM of an OCI image, as supermachine.run does."""
    argv, _ = as_args(args), as_ms(timeout)
    async with await Image.from_oci(ref, boot_only=True, memory_mib=memory_mib, vcpus=vcpus, pull=pull, progress=progress) as image:
        async with await image.start() as vm:
            return await vm.run(argv, input=input, env=env, workdir=workdir, user=user, timeout=timeout, check=check)
