"""Calls of the library from asyncio, and the objects that they make."""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from types import TracebackType
from typing import Any, Dict, List, Optional, Tuple, Type, TypeVar

from ._handle import Owned, as_socket
from ._native import EVENT, Queue
from ._options import Progress
from .errors import SupermachineError, error_for

_H = TypeVar("_H", bound="Handle")
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
    for kind in ("vm", "image", "exec", "forward", "file", "entries", "watch"):
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


class Handle(Owned):
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


async def open_streams(made: Dict[str, Any], *keys: str) -> List[Optional[Stream]]:
    """Returns the streams of a result. If that is canceled, all that the result holds is released."""
    left, streams = dict(made), []
    try:
        for key in keys:
            fd = left.pop(key)
            streams.append(None if fd < 0 else await asyncio.open_connection(sock=as_socket(fd), limit=1 << 20))
    except BaseException:
        for s in streams:
            if s is not None:
                s[1].close()
        release(left)
        raise
    return streams


async def open_stream(made: Dict[str, Any]) -> Stream:
    """Returns the one stream of a result."""
    (stream,) = await open_streams(made, "fd")
    assert stream is not None
    return stream
