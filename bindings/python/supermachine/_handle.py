"""Objects of the library's, which are closed once."""

from __future__ import annotations

import os
import socket
import warnings
from types import TracebackType
from typing import Optional, Type, TypeVar

from ._native import call, quick
from .errors import SupermachineError

_H = TypeVar("_H", bound="Handle")


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


class Handle(Owned):
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


def as_socket(fd: int) -> socket.socket:
    """Returns a socket that owns a file descriptor of the library's."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)
