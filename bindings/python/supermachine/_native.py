"""The shared library: finding it, calling it, and waiting for it so that Ctrl-C works."""

from __future__ import annotations

import ctypes
import os
import platform
import select
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import msgpack  # type: ignore[import]

from .errors import error_for

ABI = 1
"""The version of the ABI that this package was written for."""

_LIBRARY = "libsupermachine.so.1"
_ENV = "SUPERMACHINE_LIBRARY"


class _Bytes(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class _Async(ctypes.Structure):
    _fields_ = [("queue", ctypes.c_uint64), ("tag", ctypes.c_uint64), ("call", ctypes.POINTER(ctypes.c_uint64))]


class _Completion(ctypes.Structure):
    _fields_ = [
        ("tag", ctypes.c_uint64),
        ("call", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
        ("code", ctypes.c_int32),
        ("payload", _Bytes),
    ]


RESULT, EVENT = 1, 2


def _candidates() -> List[str]:
    given = os.environ.get(_ENV)
    if given:
        return [given]
    return [str(Path(__file__).parent / "lib" / _LIBRARY), _LIBRARY]


def _load() -> ctypes.CDLL:
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "AMD64"):
        raise ImportError(f"supermachine does not run on {sys.platform} {platform.machine()} yet; it needs Linux on x86-64")
    if platform.libc_ver()[0] != "glibc":
        # Loading a library of Go's would crash, so it is not tried (golang/go#54805).
        raise ImportError("supermachine needs glibc 2.34 or newer; it cannot be loaded with musl, such as on Alpine Linux")
    problems = []
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
        except OSError as e:
            problems.append(str(e))
            continue
        version = library.sm_abi_version()
        if version < ABI:
            raise ImportError(f"{name} has version {version} of the ABI, and this package needs {ABI}; install packages of one version")
        return library
    raise ImportError("; ".join(problems) + f"; install the package again, or set {_ENV} to the library's path")


_library = _load()
_library.sm_bytes_free.restype = None
_library.sm_bytes_free.argtypes = [ctypes.POINTER(_Bytes)]
_library.sm_queue_open.argtypes = [ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_int)]
_library.sm_queue_next.argtypes = [ctypes.c_uint64, ctypes.POINTER(_Completion)]
_library.sm_queue_close.argtypes = [ctypes.c_uint64]
_library.sm_call_cancel.argtypes = [ctypes.c_uint64]
_library.sm_call_abandon.argtypes = [ctypes.c_uint64]

_functions: Dict[str, Any] = {}


def _function(name: str) -> Any:
    f = _functions.get(name)
    if f is None:
        f = getattr(_library, "sm_" + name)
        f.argtypes = [ctypes.POINTER(_Async), ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(_Bytes)]
        f.restype = ctypes.c_int32
        _functions[name] = f
    return f


def _take(b: _Bytes) -> Any:
    """Returns what msgpack bytes say, and frees them."""
    if not b.data:
        return {}
    try:
        raw = ctypes.string_at(b.data, b.len)
    finally:
        _library.sm_bytes_free(ctypes.byref(b))
    return msgpack.unpackb(raw, raw=False, unicode_errors="replace")  # paths in messages are the guest's


def _pack(options: Dict[str, Any]) -> bytes:
    given = {k: v for k, v in options.items() if v is not None}
    return bytes(msgpack.packb(given, use_bin_type=True, unicode_errors="surrogateescape")) if given else b""


def quick(name: str, handle: int = 0, /, **options: Any) -> Dict[str, Any]:
    """Makes a call that ends within microseconds."""
    request = _pack(options)
    result = _Bytes()
    code = _function(name)(None, handle, request, len(request), ctypes.byref(result))
    value: Dict[str, Any] = _take(result)
    if code != 0:
        raise error_for(code, value)
    return value


class Queue:
    """A completion queue. Closing it cancels its calls, and releases what they still make."""

    def __init__(self) -> None:
        handle, fd = ctypes.c_uint64(), ctypes.c_int()
        code = _library.sm_queue_open(ctypes.byref(handle), ctypes.byref(fd))
        if code != 0:
            raise error_for(code, {"message": "open a queue"})
        self.handle, self.fd = handle.value, fd.value
        self._tag = 0
        self.pid = os.getpid()

    def start(self, name: str, handle: int, options: Dict[str, Any]) -> Tuple[int, int]:
        """Begins a call and returns its tag and its own handle."""
        self._tag += 1
        call = ctypes.c_uint64()
        how = _Async(self.handle, self._tag, ctypes.pointer(call))
        request = _pack(options)
        error = _Bytes()
        code = _function(name)(ctypes.byref(how), handle, request, len(request), ctypes.byref(error))
        if code != 0:
            raise error_for(code, _take(error))
        return self._tag, call.value

    def next(self) -> Optional[Tuple[int, int, int, Any]]:
        """Takes an item: tag, kind, code and value. None if there is none."""
        c = _Completion()
        code = _library.sm_queue_next(self.handle, ctypes.byref(c))
        if code != 0:
            raise error_for(code, {"message": "take from a queue"})
        if c.kind == 0:
            return None
        return c.tag, c.kind, c.code, _take(c.payload)

    def cancel(self, call: int) -> None:
        """Has a call end soon."""
        _library.sm_call_cancel(call)

    def abandon(self, call: int) -> None:
        """Cancels a call and has released what it makes; nothing of it comes out of the queue any more."""
        _library.sm_call_abandon(call)

    def close(self) -> None:
        if self.handle and self.pid == os.getpid():
            _library.sm_queue_close(self.handle)
        self.handle = 0

    def __del__(self) -> None:
        self.close()


class _Local(threading.local):
    queue: Optional[Queue] = None


_local = _Local()


def call(name: str, handle: int = 0, on_event: Optional[Callable[[Dict[str, Any]], None]] = None, /, **options: Any) -> Dict[str, Any]:
    """Makes a call and waits for its end. Signal handlers run meanwhile; an exception from one, such as KeyboardInterrupt, cancels the call."""
    queue, _local.queue = _local.queue, None  # a call from on_event or a signal handler takes another
    if queue is None or queue.pid != os.getpid():
        queue = Queue()
    try:
        code, value = _wait(queue, name, handle, on_event, options)
    finally:
        if _local.queue is None:
            _local.queue = queue
        else:
            queue.close()
    if code != 0:
        raise error_for(code, value)
    return value


def _wait(queue: Queue, name: str, handle: int, on_event: Optional[Callable[[Dict[str, Any]], None]], options: Dict[str, Any]) -> Tuple[int, Dict[str, Any]]:
    poll = select.poll()
    poll.register(queue.fd, select.POLLIN)
    tag, number = queue.start(name, handle, options)
    try:
        while True:
            item = queue.next()
            if item is None:
                poll.poll()
                continue
            got, kind, code, value = item
            if got != tag:
                continue  # of a call that was abandoned
            if kind == RESULT:
                return code, value
            if on_event is not None:
                on_event(value)
    except BaseException:
        queue.abandon(number)
        raise


def events(name: str, /, **options: Any) -> Iterator[Dict[str, Any]]:
    """Makes a call and gives its events, until it or the loop over them ends."""
    queue = Queue()
    try:
        queue.start(name, 0, options)
        poll = select.poll()
        poll.register(queue.fd, select.POLLIN)
        while True:
            item = queue.next()
            if item is None:
                poll.poll()
                continue
            _, kind, code, value = item
            if kind == EVENT:
                yield value
            elif code != 0:
                raise error_for(code, value)
            else:
                return
    finally:
        queue.close()
