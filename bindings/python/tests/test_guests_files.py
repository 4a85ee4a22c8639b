"""Files, trees and watches of guests."""

import asyncio
import io
import os
import tarfile
import time
from pathlib import Path
from typing import Callable, List

import pytest
import supermachine
from supermachine import aio, errors

pytestmark = pytest.mark.skipif("SUPERMACHINE_TEST_IMAGES" not in os.environ, reason="needs guests: run it by make test")


def archive(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """A tar archive; data is the content of each file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for m in members:
            m.size = len(data) if m.isreg() else 0
            tar.addfile(m, io.BytesIO(data))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    m = tarfile.TarInfo(name)
    m.type, m.linkname = kind, link
    return m


def test_parts_of_files(vm: supermachine.VM) -> None:
    vm.write_file("/tmp/f", "0123456789", mode=0o640, owner="65534:7")
    info = vm.stat("/tmp/f")
    assert (info.path, info.type, info.size, info.mode, info.uid, info.gid, info.links, info.target, info.error) == ("/tmp/f", "file", 10, 0o640, 65534, 7, 1, "", "")
    assert info.is_file() and not info.is_dir() and not info.is_symlink() and abs(info.mtime - time.time()) < 3600
    assert vm.read_file("/tmp/f", offset=3, length=4) == b"3456" and vm.read_file("/tmp/f", offset=100) == b""
    vm.write_file("/tmp/f", b"ab", offset=0)
    vm.write_file("/tmp/f", memoryview(b"end"), append=True)
    with vm.create_file("/tmp/f", offset=4) as f:
        f.stream.write(b"XY")
    with vm.create_file("/tmp/f", append=True) as f:
        f.stream.write(b"!")
    with vm.open_file("/tmp/f", offset=1) as f:
        assert f.stream.read() == b"b23XY6789end!"
        f.commit()
    assert vm.stat("/tmp/f").uid == 65534, "its owner stays"
    with pytest.raises(errors.InvalidArgumentError, match="exclude"):
        vm.write_file("/tmp/f", b"", append=True, offset=0)
    with pytest.raises(errors.NotFoundError), vm.create_file("/none/f") as f:
        for _ in range(64):
            f.stream.write(bytes(1 << 20))  # breaks at some time; what is raised says why


def test_names_of_files(vm: supermachine.VM) -> None:
    vm.mkdir("/tmp/a/b/c", 0o1750, parents=True, owner="5:6")
    assert [(i.mode, i.uid, i.gid) for i in (vm.stat("/tmp/a"), vm.stat("/tmp/a/b/c"))] == [(0o755, 5, 6), (0o1750, 5, 6)]
    with pytest.raises(errors.ExistsError):
        vm.mkdir("/tmp/a")
    with pytest.raises(errors.NotEmptyError) as e:
        vm.remove("/tmp/a")
    assert "/tmp/a" in str(e.value)
    vm.symlink("b/c", "/tmp/a/link")
    link = vm.stat("/tmp/a/link", follow=False)
    assert link.is_symlink() and link.target == "b/c" and vm.stat("/tmp/a/link").is_dir()
    vm.write_file("/tmp/a/one", b"1")
    vm.write_file("/tmp/a/two", b"2")
    with pytest.raises(errors.ExistsError):
        vm.rename("/tmp/a/one", "/tmp/a/two", replace=False)
    vm.rename("/tmp/a/one", "/tmp/a/two")
    assert vm.read_file("/tmp/a/two") == b"1"
    vm.chmod("/tmp/a", 0o700, recursive=True)
    vm.chown("/tmp/a", "8:9", recursive=True)
    vm.chown("/tmp/a/link", "1", follow=False)
    vm.chmod("/tmp/a/two", 0)
    assert {(i.path, i.type, i.mode & 0o777, i.uid, i.gid) for i in vm.walk("/tmp/a") if not i.is_symlink()} == {
        ("b", "directory", 0o700, 8, 9), ("b/c", "directory", 0o700, 8, 9), ("two", "file", 0, 8, 9)
    }  # fmt: skip
    assert vm.stat("/tmp/a/link", follow=False).uid == 1
    vm.write_file(b"/tmp/a/\xff", b"x")
    assert vm.read_file("/tmp/a/\udcff") == b"x", "as os.fsdecode has it"
    assert {i.path for i in vm.list("/tmp/a")} == {"b", "link", "two", b"\xff"}
    assert vm.stat(b"/tmp/a/\xff").path == b"/tmp/a/\xff"
    with pytest.raises(errors.NotFoundError, match="\ufffe?\ufffd"):
        vm.stat(b"/tmp/a/\xfe")
    vm.remove("/tmp/a", recursive=True)
    with pytest.raises(errors.NotFoundError):
        vm.stat("/tmp/a")


def test_long_lists(vm: supermachine.VM) -> None:
    vm.run(["sh", "-c", "mkdir -p /tmp/many/sub/deep && cd /tmp/many && for i in $(seq 3000); do : >$i; done"], check=True)
    assert {i.path for i in vm.list("/tmp/many")} == {str(i) for i in range(1, 3001)} | {"sub"}
    assert {i.path for i in vm.walk("/tmp/many", depth=2)} >= {"sub/deep", "3000"}
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for _ in vm.walk("/"):
            break  # ends the list in the guest
    vm.list("/")  # is not even opened
    with pytest.raises(errors.NotFoundError):
        next(vm.list("/none"))
    with pytest.raises(RuntimeError):
        for _ in vm.walk("/proc", one_file_system=True):
            raise RuntimeError
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_watches(vm: supermachine.VM) -> None:
    vm.mkdir("/tmp/w")
    with vm.watch("/tmp/w", recursive=True) as watch:
        vm.write_file("/tmp/w/a", b"x", append=True)
        vm.rename("/tmp/w/a", "/tmp/w/b")
        vm.mkdir("/tmp/w/d")
        vm.remove("/tmp/w", recursive=True)
        seen = list(watch)  # ends, as what was watched is gone
    assert [(e.op, e.path, e.from_) for e in seen if e.op == "renamed"] == [("renamed", "b", "a")]
    assert {("created", "a", False), ("created", "d", True), ("removed", "b", False)} <= {(e.op, e.path, e.dir) for e in seen}
    with pytest.raises(errors.InvalidHandleError):
        next(watch)
    with pytest.raises(errors.NotFoundError):
        vm.watch("/none")


def test_archives_and_copies(vm: supermachine.VM, tmp_path: Path) -> None:
    vm.mkdir("/tmp/to")
    with vm.unpack("/tmp/to", owner="3:4") as f:
        f.stream.write(archive(member("x/y"), member("link", tarfile.SYMTYPE, "x"), data=b"text"))
    assert (vm.read_file("/tmp/to/link/y"), vm.stat("/tmp/to/x/y").uid, vm.stat("/tmp/to/x/y").gid) == (b"text", 3, 4)
    for bad in (member("../out"), member("pipe", tarfile.FIFOTYPE)):
        with pytest.raises(supermachine.SupermachineError), vm.unpack("/tmp/to") as f:
            f.stream.write(archive(bad))
    with vm.unpack("/tmp/to", skip_special=True) as f:
        f.stream.write(archive(member("pipe", tarfile.FIFOTYPE), member("after")))
    assert {i.path for i in vm.list("/tmp/to")} == {"x", "link", "after"}
    with vm.pack("/tmp/to") as f:
        with tarfile.open(fileobj=f.stream, mode="r|") as tar:
            names = {m.name for m in tar}
        f.stream.read()
        f.commit()
    assert {"x/y", "link", "after"} <= names

    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_bytes(b"host")
    (tmp_path / "tree/sub/file").chmod(0o751)
    vm.copy_in(tmp_path / "tree", "/tmp", owner="9")
    info = vm.stat("/tmp/tree/sub/file")
    assert (info.mode, info.uid) == (0o751, 9)
    vm.copy_in(f"{tmp_path}/tree/.", "/tmp/to")
    assert vm.read_file("/tmp/to/sub/file") == b"host"
    vm.copy_out("/tmp/to", tmp_path / "out")
    assert (tmp_path / "out/x/y").read_bytes() == b"text" and os.readlink(tmp_path / "out/link") == "x"
    with pytest.raises(errors.LimitError):
        vm.copy_out("/tmp/to", tmp_path / "small", max_bytes=3)
    vm.run(["mkfifo", "/tmp/to/pipe"], check=True)
    with pytest.raises(errors.UnsafeError):
        vm.copy_out("/tmp/to", tmp_path / "out2")
    vm.copy_out("/tmp/to/.", tmp_path / "out3", skip_special=True, max_entries=100)
    assert (tmp_path / "out3/after").exists() and not (tmp_path / "out3/pipe").exists()


def test_files_with_asyncio(image: supermachine.Image, tmp_path: Path) -> None:
    async def main() -> None:
        async with await aio.Image.from_snapshot(image.id) as img, await img.start() as vm:
            await vm.mkdir("/tmp/d/e", parents=True)
            async with await vm.create_file("/tmp/d/f", owner="5") as f:
                for _ in range(8):
                    f.writer.write(b"x" * (1 << 20))
                    await f.writer.drain()
            assert (await vm.stat("/tmp/d/f")).size == 8 << 20
            with pytest.raises(RuntimeError):
                async with await vm.create_file("/tmp/d/f") as f:
                    f.writer.write(b"half")
                    raise RuntimeError
            await vm.write_file("/tmp/d/f", b"y", offset=0)
            async with await vm.open_file("/tmp/d/f", length=3) as f:
                assert await f.reader.read() == b"yxx"
                await f.commit()
            with pytest.raises(errors.NotFoundError):
                async with await vm.create_file("/none/f") as f:
                    for _ in range(64):
                        f.writer.write(bytes(1 << 20))
                        await f.writer.drain()
            assert {i.path async for i in vm.list("/tmp/d")} == {"e", "f"}
            async for _ in vm.walk("/"):
                break
            await vm.symlink("f", "/tmp/d/l")
            await vm.rename("/tmp/d/l", "/tmp/d/m")
            await vm.chmod("/tmp/d/e", 0o700)
            await vm.chown("/tmp/d/e", "7")
            assert (await vm.stat("/tmp/d/m", follow=False)).target == "f"
            await vm.copy_out("/tmp/d", tmp_path / "d")
            await vm.copy_in(tmp_path / "d", "/tmp/d2")
            await vm.upload(tmp_path / "d/f", "/tmp/f2")
            assert [(await vm.stat(p)).size for p in ("/tmp/d2/f", "/tmp/f2")] == [8 << 20] * 2
            async with await vm.pack("/tmp/d/e") as packed, await vm.unpack("/tmp/d2") as unpacked:
                unpacked.writer.write(await packed.reader.read())
                await packed.commit()
            async with await vm.watch("/tmp/d") as watch:
                next_event = asyncio.ensure_future(watch.__anext__())
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(next_event), 0.1)
                await vm.remove("/tmp/d", recursive=True)
                events = [await next_event] + [e async for e in watch]
            assert ("removed", "e", True) in [(e.op, e.path, e.dir) for e in events]

    settles(lambda: asyncio.run(main()))


def settles(run: Callable[[], None]) -> None:
    """Runs something and has all that it opened closed in the end."""
    before = len(os.listdir("/proc/self/fd"))
    run()
    end = time.monotonic() + 30
    while len(os.listdir("/proc/self/fd")) > before + 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # of which Go keeps some
