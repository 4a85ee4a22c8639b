"""Files of VMs, for asyncio."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, AsyncGenerator, AsyncIterator, Deque, Dict, Optional, Type, Union

from ._aio import Handle, Stream, call, open_stream
from ._options import Data, GuestPath, HostPath, as_data, as_length, as_path
from ._results import FileEvent, FileInfo, as_event, as_info


class GuestFile(Handle):
    """A file of the guest, or an archive of some, read or written as a stream of any size."""

    _kind = "file"

    def __init__(self, opened: Dict[str, Any], stream: Stream, writing: bool) -> None:
        super().__init__(opened["file"])
        self.reader, self.writer = stream
        """Read from the one until its end; or write to the other, and await its drain()."""
        self._writing = writing

    async def commit(self) -> None:
        """Ends the stream and awaits that all of it was read, or is in the file. A written file appears under its name only now."""
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # the transfer has ended, and says why
        await call("file_wait", self._handle)

    async def aclose(self) -> None:
        """Gives the transfer up. A file that was not committed stays as it was."""
        self.writer.transport.abort()
        await super().aclose()

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        try:
            if kind is None and self._writing:
                await self.commit()
            elif isinstance(error, ConnectionError) and self.reader.exception() is not None:
                await call("file_wait", self._handle)  # it was this stream that broke, and the transfer says why
        finally:
            await self.aclose()


async def _file(opened: Dict[str, Any], writing: bool) -> GuestFile:
    return GuestFile(opened, await open_stream(opened), writing)


class _Entries(Handle):
    _kind = "entries"

    async def __aiter__(self) -> AsyncIterator[FileInfo]:
        while batch := (await call("entries_next", self._handle))["entries"]:
            for entry in batch:
                yield as_info(entry)


class Watch(Handle):
    """What happens to files of the guest, in an async loop over it; the loop ends once what was watched is gone."""

    _kind = "watch"

    def __init__(self, started: Dict[str, Any]) -> None:
        super().__init__(started["watch"])
        self._events: Deque[FileEvent] = deque()

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> FileEvent:
        if not self._events:
            self._events.extend(map(as_event, (await call("watch_next", self._handle))["events"]))
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()


class Files(Handle):
    """The files of a VM."""

    async def read_file(self, path: GuestPath, *, offset: Optional[int] = None, length: Optional[int] = None) -> bytes:
        """Reads a file of the guest, of up to 64 MiB. offset, length: where to begin, and how many bytes to read at most."""
        return bytes((await call("vm_read_file", self._handle, path=as_path(path), offset=offset, length=as_length(length)))["data"] or b"")

    async def write_file(
        self, path: GuestPath, data: Data, mode: Optional[int] = None, *, owner: Optional[str] = None, append: bool = False, offset: Optional[int] = None
    ) -> None:
        """Creates or replaces a file of the guest, all or nothing.

        mode: permission bits, default 0o644. owner: NAME|UID[:GROUP|GID], default root. append: add to the end of the file. offset: write over the
        contents of an existing file from there on; its mode and owner stay. These two are not atomic.
        """
        await call(
            "vm_write_file", self._handle, path=as_path(path), data=as_data(data), mode=mode, owner=owner, append=append, in_place=offset is not None,
            offset=offset,
        )  # fmt: skip

    async def open_file(self, path: GuestPath, *, offset: Optional[int] = None, length: Optional[int] = None) -> GuestFile:
        """Reads a file of the guest, of any size, as a stream. offset, length: where to begin, and how many bytes to read at most."""
        return await _file(await call("vm_open_file", self._handle, path=as_path(path), offset=offset, length=as_length(length)), False)

    async def create_file(
        self, path: GuestPath, mode: Optional[int] = None, *, owner: Optional[str] = None, append: bool = False, offset: Optional[int] = None
    ) -> GuestFile:
        """Creates or replaces a file of the guest with what is written to a stream. It appears when it is committed, as an async with block does at its end.

        The options are those of write_file.
        """
        return await _file(await call(
            "vm_create_file", self._handle, path=as_path(path), mode=mode, owner=owner, append=append, in_place=offset is not None, offset=offset
        ), True)  # fmt: skip

    async def upload(self, source: Union[str, Path], path: GuestPath) -> None:
        """Copies a file of the host into the guest."""
        with open(source, "rb") as f:
            async with await self.create_file(path, os.fstat(f.fileno()).st_mode & 0o777) as to:
                while block := f.read(1 << 20):
                    to.writer.write(block)
                    await to.writer.drain()

    async def stat(self, path: GuestPath, *, follow: bool = True) -> FileInfo:
        """Says what a file of the guest is. follow: of a symbolic link, what it points to."""
        return as_info(await call("vm_stat", self._handle, path=as_path(path), no_follow=not follow))

    def list(self, path: GuestPath) -> AsyncGenerator[FileInfo, None]:
        """Gives the entries of a directory of the guest, which is opened when the first is asked for."""
        return self.walk(path, depth=1)

    async def walk(self, path: GuestPath, *, depth: int = -1, one_file_system: bool = False) -> AsyncGenerator[FileInfo, None]:
        """Gives all that is below a directory of the guest, however much that is; links are not followed.

        depth: how deep to go, where 1 is the directory's own entries and -1 everything. one_file_system: leave out what is mounted below.
        """
        opened = await call("vm_list", self._handle, path=as_path(path), depth=depth, one_file_system=one_file_system)
        async with _Entries(opened["entries"]) as entries:
            async for entry in entries:
                yield entry

    async def watch(self, path: GuestPath, *, recursive: bool = False) -> Watch:
        """Watches a file or a directory of the guest; changes after that are seen. recursive: and everything below a directory, also what is made later."""
        return Watch(await call("vm_watch", self._handle, path=as_path(path), recursive=recursive))

    async def mkdir(self, path: GuestPath, mode: Optional[int] = None, *, parents: bool = False, owner: Optional[str] = None) -> None:
        """Makes a directory in the guest. mode: permission bits, default 0o755. parents: and those it is in; one that exists is no error."""
        await call("vm_mkdir", self._handle, path=as_path(path), mode=mode, parents=parents, owner=owner)

    async def remove(self, path: GuestPath, *, recursive: bool = False) -> None:
        """Removes a file, a link or an empty directory of the guest. recursive: and everything in a directory."""
        await call("vm_remove", self._handle, path=as_path(path), recursive=recursive)

    async def rename(self, path: GuestPath, to: GuestPath, *, replace: bool = True) -> None:
        """Gives a file or a directory of the guest another name in the same file system. replace: what has that name goes, else it is an ExistsError."""
        await call("vm_rename", self._handle, path=as_path(path), to=as_path(to), no_replace=not replace)

    async def chmod(self, path: GuestPath, mode: int, *, recursive: bool = False) -> None:
        """Sets the permissions of a file of the guest, up to 0o7777. recursive: and of everything below; links are left alone."""
        await call("vm_chmod", self._handle, path=as_path(path), mode=mode, recursive=recursive)

    async def chown(self, path: GuestPath, owner: str, *, recursive: bool = False, follow: bool = True) -> None:
        """Sets the owner of a file of the guest: NAME|UID[:GROUP|GID] of the image's accounts, or :GROUP alone.

        recursive: and of everything below, where links get it themselves. follow: of a symbolic link, what it points to.
        """
        await call("vm_chown", self._handle, path=as_path(path), owner=owner, recursive=recursive, no_follow=not follow)

    async def symlink(self, target: GuestPath, path: GuestPath) -> None:
        """Makes path a symbolic link in the guest, which points to target."""
        await call("vm_symlink", self._handle, path=as_path(path), target=as_path(target))

    async def pack(self, path: GuestPath, *, one_file_system: bool = False) -> GuestFile:
        """Reads a file or a tree of the guest as a tar archive, a stream. Unpack it as an archive that may be hostile.

        one_file_system: leave out what is mounted below. After the stream's end commit tells whether all of it was read.
        """
        return await _file(await call("vm_pack", self._handle, path=as_path(path), one_file_system=one_file_system), False)

    async def unpack(
        self, path: GuestPath, *, owners: bool = False, owner: Optional[str] = None, setuid: bool = False, special: bool = False, skip_special: bool = False
    ) -> GuestFile:
        """Unpacks a tar archive that is written to a stream into a directory of the guest, and never outside of it. commit tells how it went.

        owners: keep them, by number; else files are the owner's, NAME|UID[:GROUP|GID], default root. setuid: keep set-user-ID and set-group-ID bits.
        special: make devices and FIFOs, skip_special: leave them out; else they are an error.
        """
        return await _file(await call(
            "vm_unpack", self._handle, path=as_path(path), owners=owners, owner=owner, setuid=setuid, special=special, skip_special=skip_special
        ), True)  # fmt: skip

    async def copy_in(
        self, source: HostPath, target: GuestPath, *, owners: bool = False, owner: Optional[str] = None, setuid: bool = False, special: bool = False,
        skip_special: bool = False,
    ) -> None:  # fmt: skip
        """Copies a file or a tree of the host into the guest, as cp -a does. An error leaves a part of the copy.

        source: with /. at its end it means what is in the directory. target: a directory that the copy goes into, else the copy's own path.
        The options are those of unpack.
        """
        await call(
            "vm_copy_in", self._handle, source=as_path(source), target=as_path(target), owners=owners, owner=owner, setuid=setuid, special=special,
            skip_special=skip_special,
        )  # fmt: skip

    async def copy_out(
        self, source: GuestPath, target: HostPath, *, owners: bool = False, setuid: bool = False, skip_special: bool = False, one_file_system: bool = False,
        max_bytes: Optional[int] = None, max_entries: Optional[int] = None,
    ) -> None:  # fmt: skip
        """Copies a file or a tree of the guest to the host. Whatever is in the guest, nothing outside of the copy is written.

        source, target: as for copy_in. owners: keep them, by number, which takes root. setuid: keep set-user-ID and set-group-ID bits. skip_special: leave
        devices and FIFOs out; else they are an error. one_file_system: leave out what is mounted in the tree. max_bytes, max_entries: more is an error.
        An error leaves a part of the copy.
        """
        await call(
            "vm_copy_out", self._handle, source=as_path(source), target=as_path(target), owners=owners, setuid=setuid, skip_special=skip_special,
            one_file_system=one_file_system, max_bytes=max_bytes, max_entries=max_entries,
        )  # fmt: skip
