"""What the library gives: how programs ended, and what files of guests are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Union


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
    stdout_bytes: int
    """How much it wrote, what was dropped included."""
    stderr_bytes: int
    """How much it wrote to stderr."""
    stdout_truncated: bool
    """stdout is the beginning only: max_output was exceeded."""
    stderr_truncated: bool
    """stderr is the beginning only."""

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


def as_result(r: Dict[str, Any]) -> Result:
    """Returns what a program wrote."""
    return Result(
        **as_exit(r), stdout=r["stdout"] or b"", stderr=r["stderr"] or b"", stdout_bytes=r["stdout_bytes"], stderr_bytes=r["stderr_bytes"],
        stdout_truncated=r["stdout_truncated"], stderr_truncated=r["stderr_truncated"],
    )  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """What the programs of a chain wrote, and how far it came."""

    outputs: List[Result]
    """Of the programs that were run, in order."""
    failed: Optional[int]
    """Which was the first to fail, counted from 0; None if none did."""
    error: str
    """Why a program could not be run; empty if all were."""


def as_chain(r: Dict[str, Any]) -> Chain:
    """Returns how a chain went."""
    return Chain([as_result(o) for o in r["outputs"]], None if r["failed"] < 0 else r["failed"], r["error"])


@dataclass(frozen=True)
class Spawned:
    """A program that runs by itself."""

    id: int
    """Its number in the guest, for VM.attach; copies of the VM have it too."""
    pid: int
    """Its process ID in the guest."""


@dataclass(frozen=True)
class Program:
    """A program of a VM."""

    id: int
    """Its number in the guest, for VM.attach."""
    pid: int
    """Its process ID in the guest."""
    args: List[Union[str, bytes]]
    """The program and its arguments, at most 4096 bytes of them; bytes where they are not UTF-8."""
    uid: int
    """The user's number."""
    started: float
    """When it was started, by the guest's clock, in seconds since 1970."""
    workload: bool
    """It is the workload."""
    detached: bool
    """It runs by itself: VM.attach attaches to it."""
    tty: bool
    """It runs on a terminal."""
    ended: bool
    """It has ended, and nobody has got its exit status yet."""


def as_program(r: Dict[str, Any]) -> Program:
    """Returns a program of a list."""
    return Program(
        id=r["id"], pid=r["pid"], args=r["args"], uid=r["uid"], started=r["started_ms"] / 1000, workload=r["workload"], detached=r["detached"],
        tty=r["tty"], ended=r["ended"],
    )  # fmt: skip


@dataclass(frozen=True)
class FileInfo:
    """What a file of a guest is. All of it is what the guest says."""

    path: Union[str, bytes]
    """As it was asked for, or below the directory that is listed; bytes if it is not UTF-8. Check it before you use it as a path on the host."""
    type: str
    """file, directory, symlink, fifo, socket, block or char."""
    size: int
    """Bytes of a file, or of a link's target."""
    mode: int
    """Permission bits with set-user-ID, set-group-ID and sticky: 0o7777."""
    uid: int
    """The owner's number."""
    gid: int
    """The group's number."""
    mtime: float
    """When its contents last changed, in seconds since 1970."""
    target: Union[str, bytes]
    """Of a symbolic link; else empty."""
    links: int
    """How many names it has."""
    error: str
    """Why it could not be examined, or a directory not be read to its end; else empty."""

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.type == "file"

    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.type == "directory"

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return self.type == "symlink"


def as_info(r: Dict[str, Any]) -> FileInfo:
    """Returns what a file is."""
    return FileInfo(
        path=r["path"], type=r["type"], size=r["size"], mode=r["mode"], uid=r["uid"], gid=r["gid"], mtime=r["mtime_ms"] / 1000, target=r["target"],
        links=r["links"], error=r["error"],
    )  # fmt: skip


@dataclass(frozen=True)
class FileEvent:
    """What happened to a file that is watched."""

    op: str
    """created, modified, removed, renamed, attributes, or overflow: events were lost."""
    path: Union[str, bytes]
    """Below the directory that is watched; . is what is watched itself. bytes if it is not UTF-8."""
    from_: Union[str, bytes]
    """Of renamed: the old path."""
    dir: bool
    """It is a directory's."""


def as_event(r: Dict[str, Any]) -> FileEvent:
    """Returns what happened to a file."""
    return FileEvent(op=r["op"], path=r["path"], from_=r["from"], dir=r["dir"])
