"""What callers give, as the library takes it."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

Args = Union[str, Sequence[Union[str, bytes, "os.PathLike[str]"]]]
Env = Union[Mapping[str, str], Sequence[str]]
Limit = Union[int, str]
Limits = Union[Mapping[str, Union[Limit, Tuple[Limit, Limit]]], Sequence[str]]
GuestPath = Union[str, bytes, PurePath]
HostPath = Union[str, bytes, "os.PathLike[str]"]
Data = Union[bytes, bytearray, memoryview, str]
Progress = Callable[[Dict[str, Any]], None]
Command = Union[Args, Mapping[str, Any]]
Files = Union[Mapping[Any, Data], Sequence[Mapping[str, Any]]]


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


def as_limits(limits: Optional[Limits]) -> Optional[List[str]]:
    """Returns NAME=SOFT[:HARD] for each limit."""
    if limits is None:
        return None
    if isinstance(limits, Mapping):
        return [f"{k}={':'.join(map(_limit, v)) if isinstance(v, tuple) else _limit(v)}" for k, v in limits.items()]
    return as_list("limits", limits)


def _limit(n: Limit) -> str:
    return "unlimited" if n == -1 else str(n)  # as resource.RLIM_INFINITY is


def as_list(name: str, values: Optional[Sequence[str]]) -> Optional[List[str]]:
    """Checks a list of strings."""
    if isinstance(values, (str, bytes)):
        raise TypeError(f"{name} is a list of strings")
    return None if values is None else list(values)


def as_path(path: "Union[None, str, bytes, os.PathLike[str]]") -> Union[None, str, bytes]:
    """Returns a path as a string, or as the bytes it was given in."""
    return None if path is None else os.fspath(path)


def as_ms(seconds: Optional[float]) -> Optional[int]:
    """Whole milliseconds, at least one of a time that is not zero."""
    if seconds is None:
        return None
    if seconds < 0:
        raise ValueError(f"a time of {seconds} seconds is not possible")
    return max(int(seconds * 1000), 1) if seconds else 0


def as_data(data: Data) -> bytes:
    """Returns what a file shall hold; text becomes UTF-8."""
    return data.encode() if isinstance(data, str) else bytes(data)


def as_length(length: Optional[int]) -> Optional[int]:
    """Checks how much of a file is wanted. The library takes 0 for all of it."""
    if length is not None and length < 1:
        raise ValueError(f"a length of {length} bytes is not possible")
    return length


def as_commands(commands: Sequence[Command]) -> List[Dict[str, Any]]:
    """Returns the programs of a chain."""
    if isinstance(commands, (str, bytes, Mapping)):
        raise TypeError("commands is a list of programs, each a list of arguments or a dict with args and more")
    return [_command(**c) if isinstance(c, Mapping) else {"args": as_args(c)} for c in commands]


def _command(
    *, args: Args, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None, timeout: Optional[float] = None,
    limits: Optional[Limits] = None,
) -> Dict[str, Any]:  # fmt: skip
    return dict(args=as_args(args), env=as_env(env), workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout), limits=as_limits(limits))


def as_files(files: Optional[Files]) -> Optional[List[Dict[str, Any]]]:
    """Returns the files of a chain."""
    if files is None:
        return None
    if isinstance(files, Mapping):
        return [_file(path=path, data=data) for path, data in files.items()]
    return [_file(**f) for f in files]


def _file(*, path: GuestPath, data: Data = b"", mode: Optional[int] = None, owner: Optional[str] = None) -> Dict[str, Any]:
    return dict(path=as_path(path), data=as_data(data), mode=mode, owner=owner)
