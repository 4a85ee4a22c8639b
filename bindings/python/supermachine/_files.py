"""Files of VMs."""

from __future__ import annotations

import os
import select
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Deque, Dict, Iterator, Optional, Type, Union

from ._handle import Handle, as_socket
from ._native import call
from ._options import Data, GuestPath, HostPath, as_data, as_length, as_path
from ._results import FileEvent, FileInfo, as_event, as_info


class GuestFile(Handle):
    """A file of the guest, or an archive of some, read or written as a stream of any size."""

    _kind = "file"

    def __init__(self, opened: Dict[str, Any], mode: Any) -> None:
        super().__init__(opened["file"])
        with as_socket(opened["fd"]) as s:
            self.stream: BinaryIO = s.makefile(mode)
            """The binary file to read from or write to."""

    def commit(self) -> None:
        """Ends the stream and waits until all of it was read, or is in the file. A written file appears under its name only now."""
        try:
            self.stream.close()
        except OSError:
            pass  # the transfer has ended, and says why
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
            elif isinstance(error, BrokenPipeError) and self._broke():
                call("file_wait", self._handle)  # says why
        finally:
            self.close()

    def _broke(self) -> bool:
        """Whether the transfer has ended, so that it was this stream that broke."""
        if self.stream.closed:
            return False
        poll = select.poll()
        poll.register(self.stream.fileno(), 0)  # for POLLHUP
        return bool(poll.poll(0))


class _Entries(Handle):
    _kind = "entries"

    def __iter__(self) -> Iterator[FileInfo]:
        while batch := call("entries_next", self._handle)["entries"]:
            yield from map(as_info, batch)


class Watch(Handle):
    """What happens to files of the guest, in a loop over it; the loop ends once what was watched is gone."""

    _kind = "watch"

    def __init__(self, started: Dict[str, Any]) -> None:
        super().__init__(started["watch"])
        self._events: Deque[FileEvent] = deque()

    def __iter__(self) -> "Watch":
        return self

    def __next__(self) -> FileEvent:
        if not self._events:
            self._events.extend(map(as_event, call("watch_next", self._handle)["events"]))
        if not self._events:
            raise StopIteration
        return self._events.popleft()


class Files(Handle):
    """The files of a VM."""

    def read_file(self, path: GuestPath, *, offset: Optional[int] = None, length: Optional[int] = None) -> bytes:
        """Reads a file of the guest, of up to 64 MiB. offset, length: where to begin, and how many bytes to read at most."""
        return bytes(call("vm_read_file", self._handle, path=as_path(path), offset=offset, length=as_length(length))["data"] or b"")

    def write_file(
        self, path: GuestPath, data: Data, mode: Optional[int] = None, *, owner: Optional[str] = None, append: bool = False, offset: Optional[int] = None
    ) -> None:
        """Creates or replaces a file of the guest, all or nothing.

        mode: permission bits, default 0o644. owner: NAME|UID[:GROUP|GID], default root. append: add to the end of the file. offset: write over the
        contents of an existing file from there on; its mode and owner stay. These two are not atomic.
        """
        call(
            "vm_write_file", self._handle, path=as_path(path), data=as_data(data), mode=mode, owner=owner, append=append, in_place=offset is not None,
            offset=offset,
        )  # fmt: skip

    def open_file(self, path: GuestPath, *, offset: Optional[int] = None, length: Optional[int] = None) -> GuestFile:
        """Reads a file of the guest, of any size, as a stream. offset, length: where to begin, and how many bytes to read at most."""
        return GuestFile(call("vm_open_file", self._handle, path=as_path(path), offset=offset, length=as_length(length)), "rb")

    def create_file(
        self, path: GuestPath, mode: Optional[int] = None, *, owner: Optional[str] = None, append: bool = False, offset: Optional[int] = None
    ) -> GuestFile:
        """Creates or replaces a file of the guest with what is written to a stream. It appears when it is committed, as a with block does at its end.

        The options are those of write_file.
        """
        return GuestFile(call(
            "vm_create_file", self._handle, path=as_path(path), mode=mode, owner=owner, append=append, in_place=offset is not None, offset=offset
        ), "wb")  # fmt: skip

    def upload(self, source: Union[str, Path], path: GuestPath) -> None:
        """Copies a file of the host into the guest."""
        with open(source, "rb") as f, self.create_file(path, os.fstat(f.fileno()).st_mode & 0o777) as to:
            while block := f.read(1 << 20):
                to.stream.write(block)

    def stat(self, path: GuestPath, *, follow: bool = True) -> FileInfo:
        """Says what a file of the guest is. follow: of a symbolic link, what it points to."""
        return as_info(call("vm_stat", self._handle, path=as_path(path), no_follow=not follow))

    def list(self, path: GuestPath) -> Iterator[FileInfo]:
        """Gives the entries of a directory of the guest, which is opened when the first is asked for."""
        return self.walk(path, depth=1)

    def walk(self, path: GuestPath, *, depth: int = -1, one_file_system: bool = False) -> Iterator[FileInfo]:
        """Gives all that is below a directory of the guest, however much that is; links are not followed.

        depth: how deep to go, where 1 is the directory's own entries and -1 everything. one_file_system: leave out what is mounted below.
        """
        with _Entries(call("vm_list", self._handle, path=as_path(path), depth=depth, one_file_system=one_file_system)["entries"]) as entries:
            yield from entries

    def watch(self, path: GuestPath, *, recursive: bool = False) -> Watch:
        """Watches a file or a directory of the guest; changes after that are seen. recursive: and everything below a directory, also what is made later."""
        return Watch(call("vm_watch", self._handle, path=as_path(path), recursive=recursive))

    def mkdir(self, path: GuestPath, mode: Optional[int] = None, *, parents: bool = False, owner: Optional[str] = None) -> None:
        """Makes a directory in the guest. mode: permission bits, default 0o755. parents: and those it is in; one that exists is no error."""
        call("vm_mkdir", self._handle, path=as_path(path), mode=mode, parents=parents, owner=owner)

    def remove(self, path: GuestPath, *, recursive: bool = False) -> None:
        """Removes a file, a link or an empty directory of the guest. recursive: and everything in a directory."""
        call("vm_remove", self._handle, path=as_path(path), recursive=recursive)

    def rename(self, path: GuestPath, to: GuestPath, *, replace: bool = True) -> None:
        """Gives a file or a directory of the guest another name in the same file system. replace: what has that name goes, else it is an ExistsError."""
        call("vm_rename", self._handle, path=as_path(path), to=as_path(to), no_replace=not replace)

    def chmod(self, path: GuestPath, mode: int, *, recursive: bool = False) -> None:
        """Sets the permissions of a file of the guest, up to 0o7777. recursive: and of everything below; links are left alone."""
        call("vm_chmod", self._handle, path=as_path(path), mode=mode, recursive=recursive)

    def chown(self, path: GuestPath, owner: str, *, recursive: bool = False, follow: bool = True) -> None:
        """Sets the owner of a file of the guest: NAME|UID[:GROUP|GID] of the image's accounts, or :GROUP alone.

        recursive: and of everything below, where links get it themselves. follow: of a symbolic link, what it points to.
        """
        call("vm_chown", self._handle, path=as_path(path), owner=owner, recursive=recursive, no_follow=not follow)

    def symlink(self, target: GuestPath, path: GuestPath) -> None:
        """Makes path a symbolic link in the guest, which points to target."""
        call("vm_symlink", self._handle, path=as_path(path), target=as_path(target))

    def pack(self, path: GuestPath, *, one_file_system: bool = False) -> GuestFile:
        """Reads a file or a tree of the guest as a tar archive, a stream. Unpack it as an archive that may be hostile.

        one_file_system: leave out what is mounted below. After the stream's end commit tells whether all of it was read.
        """
        return GuestFile(call("vm_pack", self._handle, path=as_path(path), one_file_system=one_file_system), "rb")

    def unpack(
        self, path: GuestPath, *, owners: bool = False, owner: Optional[str] = None, setuid: bool = False, special: bool = False, skip_special: bool = False
    ) -> GuestFile:
        """Unpacks a tar archive that is written to a stream into a directory of the guest, and never outside of it. commit tells how it went.

        owners: keep them, by number; else files are the owner's, NAME|UID[:GROUP|GID], default root. setuid: keep set-user-ID and set-group-ID bits.
        special: make devices and FIFOs, skip_special: leave them out; else they are an error.
        """
        return GuestFile(call(
            "vm_unpack", self._handle, path=as_path(path), owners=owners, owner=owner, setuid=setuid, special=special, skip_special=skip_special
        ), "wb")  # fmt: skip

    def copy_in(
        self, source: HostPath, target: GuestPath, *, owners: bool = False, owner: Optional[str] = None, setuid: bool = False, special: bool = False,
        skip_special: bool = False,
    ) -> None:  # fmt: skip
        """Copies a file or a tree of the host into the guest, as cp -a does. An error leaves a part of the copy.

        source: with /. at its end it means what is in the directory. target: a directory that the copy goes into, else the copy's own path.
        The options are those of unpack.
        """
        call(
            "vm_copy_in", self._handle, source=as_path(source), target=as_path(target), owners=owners, owner=owner, setuid=setuid, special=special,
            skip_special=skip_special,
        )  # fmt: skip

    def copy_out(
        self, source: GuestPath, target: HostPath, *, owners: bool = False, setuid: bool = False, skip_special: bool = False, one_file_system: bool = False,
        max_bytes: Optional[int] = None, max_entries: Optional[int] = None,
    ) -> None:  # fmt: skip
        """Copies a file or a tree of the guest to the host. Whatever is in the guest, nothing outside of the copy is written.

        source, target: as for copy_in. owners: keep them, by number, which takes root. setuid: keep set-user-ID and set-group-ID bits. skip_special: leave
        devices and FIFOs out; else they are an error. one_file_system: leave out what is mounted in the tree. max_bytes, max_entries: more is an error.
        An error leaves a part of the copy.
        """
        call(
            "vm_copy_out", self._handle, source=as_path(source), target=as_path(target), owners=owners, setuid=setuid, skip_special=skip_special,
            one_file_system=one_file_system, max_bytes=max_bytes, max_entries=max_entries,
        )  # fmt: skip
