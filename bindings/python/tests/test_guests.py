"""What needs guests: programs, streams, files, connections, pools, snapshots, and the host program's own life beside them."""

import asyncio
import ctypes
import gc
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import List

import pytest
import supermachine
from supermachine import aio, errors

pytestmark = pytest.mark.skipif("SUPERMACHINE_TEST_IMAGES" not in os.environ, reason="needs guests: run it by make test")

MIB = 1 << 20


def test_run_by_one_call(image: supermachine.Image, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hi\n")
    ref, mounts = f"oci:{os.environ['SUPERMACHINE_TEST_IMAGES']}/busybox:latest", [f"{tmp_path}:/src:ro"]
    assert supermachine.run(ref, ["cat", "/src/file"], memory_mib=96, mounts=mounts, check=True).text == "hi\n"
    assert asyncio.run(aio.run(ref, ["cat", "/src/file"], memory_mib=96, mounts=mounts)).text == "hi\n"


def test_run(vm: supermachine.VM) -> None:
    r = vm.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (r.stdout, r.stderr, r.code, r.signal, r.timed_out) == (b"out\n", b"err\n", 3, 0, False)
    assert r.text == "out\n" and r.duration > 0 and r.max_rss > 0
    assert vm.run(["cat"], input=b"\xff\0binary").stdout == b"\xff\0binary"
    assert vm.run(["printf", "%s", b"\xffarg"]).stdout == b"\xffarg"
    assert vm.run(["printf", "%s", "zażółć"]).text == "zażółć"
    assert vm.run(["sh", "-c", "echo $A $PWD $(id -u)"], env={"A": "b"}, workdir=Path("/tmp"), user="65534").text == "b /tmp 65534\n"
    assert vm.run(["true"]).stdout == b""
    r = vm.run(["sleep", "100"], timeout=0.1)
    assert r.timed_out and r.signal == signal.SIGKILL
    with pytest.raises(supermachine.ExitError, match="'sh' exited with 4: oh no") as e:
        vm.run(["sh", "-c", "echo oh no >&2; exit 4"], check=True)
    assert e.value.result.code == 4


def test_errors(vm: supermachine.VM) -> None:
    with pytest.raises(errors.CommandNotFoundError, match="nothing"):
        vm.run(["nothing"])
    with pytest.raises(errors.NotExecutableError):
        vm.run(["/etc/passwd"])
    with pytest.raises(errors.InvalidArgumentError):
        vm.run([])
    with pytest.raises(errors.NotFoundError):
        vm.read_file("/nothing")
    with pytest.raises(errors.RefusedError):
        vm.connect(81)
    with pytest.raises(errors.RefusedError, match="no program listens"):
        vm.connect()
    with pytest.raises(errors.InvalidArgumentError):
        vm.fork(5000)


def test_streams(vm: supermachine.VM) -> None:
    with vm.exec(["sh", "-c", "for i in 1 2 3; do echo line $i; done"]) as p:
        assert list(p) == [b"line 1\n", b"line 2\n", b"line 3\n"]
        assert p.wait().code == 0 and p.pid > 0
    with vm.exec(["cat"], stdin=True) as p:
        assert p.stdin is not None and p.stdout is not None
        total = 16 * MIB
        block = os.urandom(MIB)

        def write() -> None:
            assert p.stdin is not None
            for _ in range(total // MIB):
                p.stdin.write(block)
            p.stdin.close()

        t = threading.Thread(target=write)
        t.start()
        got = hashlib.sha256()
        n = 0
        while data := p.stdout.read(MIB):
            got.update(data)
            n += len(data)
        t.join()
        assert n == total and got.digest() == hashlib.sha256(block * (total // MIB)).digest()
    with vm.exec(["sleep", "100"]) as p:
        p.signal("TERM")
        assert p.wait().signal == signal.SIGTERM
    with vm.exec(["sh", "-c", "stty size; read x; stty size"], stdin=True, tty=True, rows=10, cols=20) as p:
        assert p.stdin is not None and p.stdout is not None
        assert p.stdout.readline().split() == [b"10", b"20"]
        p.resize(30, 40)
        p.stdin.write(b"\n")
        p.stdin.flush()
        assert p.stdout.read().split()[-2:] == [b"30", b"40"]
    with vm.exec(["sleep", "1000"]) as p:
        pass
    with pytest.raises(errors.InvalidHandleError):
        p.wait()


def test_files(vm: supermachine.VM, tmp_path: Path) -> None:
    vm.write_file("/tmp/a", "text", mode=0o600)
    assert vm.read_file("/tmp/a") == b"text"
    assert vm.run(["stat", "-c", "%a", "/tmp/a"]).text == "600\n"
    vm.write_file("/tmp/empty", b"")
    assert vm.read_file("/tmp/empty") == b""
    with vm.create_file("/tmp/a") as f:
        f.stream.write(b"new")
    assert vm.read_file("/tmp/a") == b"new"
    with pytest.raises(RuntimeError), vm.create_file("/tmp/a") as f:
        f.stream.write(b"half of it")
        raise RuntimeError
    assert vm.read_file("/tmp/a") == b"new"
    with vm.open_file("/tmp/a") as f:
        assert f.stream.read() == b"new"
        f.commit()
    (tmp_path / "host").write_bytes(os.urandom(3 * MIB))
    (tmp_path / "host").chmod(0o751)
    vm.upload(tmp_path / "host", "/tmp/host")
    assert vm.read_file("/tmp/host") == (tmp_path / "host").read_bytes()
    assert vm.run(["stat", "-c", "%a", "/tmp/host"]).text == "751\n"


def test_connections(vm: supermachine.VM, tmp_path: Path) -> None:
    vm.run(["sh", "-c", "nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null & for i in $(seq 600); do netstat -ltn | grep -q :7 && exit; sleep 0.1; done; exit 1"], check=True)
    with vm.connect(7) as s:
        s.sendall(b"hello")
        s.shutdown(socket.SHUT_WR)
        assert s.recv(100, socket.MSG_WAITALL) == b"hello"
    with vm.forward(7) as f:
        host, port = f.address.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as s:
            s.sendall(b"hi")
            assert s.recv(2, socket.MSG_WAITALL) == b"hi"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    with vm.forward(7, str(tmp_path / "socket")) as f:
        assert f.address == str(tmp_path / "socket")


def test_pool(image: supermachine.Image) -> None:
    with image.pool(min=1, max=1, acquire_timeout=60) as pool:
        for _ in range(3):
            with pool.acquire() as vm:
                assert vm.run(["ls", "/tmp"]).stdout == b""
                vm.write_file("/tmp/mine", b"x")
        stats = pool.stats()
        assert (stats["max"], stats["acquires"], stats["starts"]) == (1, 3, 1)
        vm = pool.acquire()
        vm.discard()
    with image.pool(min=1, max=1, acquire_timeout=0.05) as pool:
        while pool.stats()["idle"] == 0:
            time.sleep(0.05)
        with pool.acquire() as vm:
            with pytest.raises(errors.ExhaustedError):
                pool.acquire()
    with pytest.raises(errors.InvalidHandleError):
        pool.acquire()
    with image.acquire() as vm:
        assert image.pool_stats()["in_use"] == 1


def test_snapshots_and_forks(image: supermachine.Image, vm: supermachine.VM) -> None:
    vm.write_file("/tmp/kept", b"kept")
    children = vm.fork(2, names=["a", "b"])
    try:
        assert [c.run(["hostname"]).text for c in children] == ["a\n", "b\n"]
        assert len({c.restore_id for c in children}) == 2
        assert [c.read_file("/tmp/kept") for c in children] == [b"kept"] * 2
    finally:
        for c in children:
            c.close()
    with supermachine.Store() as store:
        with vm.snapshot("python-test", base=image) as saved:
            with saved.start(name="again") as again:
                assert again.read_file("/tmp/kept") == b"kept" and again.name == "again"
        assert store.inspect("python-test")["base"] == image.id
        with supermachine.Image.from_snapshot("python-test") as saved, saved.start() as again:
            assert again.read_file("/tmp/kept") == b"kept"
        assert "python-test" in [s["name"] for s in store.snapshots()]
        store.remove("python-test")
        with pytest.raises(errors.NotFoundError):
            store.inspect("python-test")


def test_life_of_a_vm(image: supermachine.Image) -> None:
    vm = image.start(name="mine")
    info = vm.info()
    assert (info["name"], info["memory_mib"], info["running"], info["vcpus"]) == ("mine", 96, True, 1)
    assert vm.stats()["total_bytes"] > 0
    vm.pause()
    vm.resume()
    vm.set_balloon(0)
    assert isinstance(vm.console(), str)
    ended: List[str] = []
    t = threading.Thread(target=lambda: ended.append(vm.wait()))
    t.start()
    assert vm.stop(grace=1) == "stopped"
    t.join()
    assert ended == ["stopped"] and vm.info()["running"] is False
    with pytest.raises(errors.VMEndedError):
        vm.run(["true"])
    vm.close()
    with pytest.raises(errors.InvalidHandleError):
        vm.info()


def test_logs_of_a_workload(vm: supermachine.VM) -> None:
    vm.start_workload(["sh", "-c", "echo started; sleep 1000"])
    with vm.logs() as logs:
        assert logs.stdout is not None and logs.stdout.readline() == b"started\n"


def test_ctrl_c_cancels_a_program(vm: supermachine.VM) -> None:
    main = threading.get_ident()
    p = vm.exec(["sh", "-c", "echo here; sleep 1000"])
    assert p.stdout is not None and p.stdout.readline() == b"here\n"
    threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        p.wait()
    p.close()
    assert vm.run(["echo", "fine"]).text == "fine\n"


def test_asyncio(image: supermachine.Image) -> None:
    async def main() -> None:
        async with await aio.Image.from_snapshot(image.id) as img, await img.start(name="one") as vm:
            results = await asyncio.gather(*(vm.run(["sh", "-c", f"sleep 0.1; echo {i}"]) for i in range(20)))
            assert [r.text for r in results] == [f"{i}\n" for i in range(20)]
            with pytest.raises(errors.CommandNotFoundError):
                await vm.run(["nothing"])

            async with await vm.exec(["cat"], stdin=True) as p:
                assert p.stdin is not None and p.stdout is not None
                block = os.urandom(MIB)

                async def write() -> None:
                    assert p.stdin is not None
                    for _ in range(4):
                        p.stdin.write(block)
                        await p.stdin.drain()
                    p.stdin.write_eof()

                writer = asyncio.ensure_future(write())
                assert await p.stdout.read(-1) == block * 4
                await writer
                assert (await p.wait()).code == 0
            async with await vm.exec(["sh", "-c", "echo a; echo b"]) as p:
                assert [line async for line in p] == [b"a\n", b"b\n"]

            # A program that waits is killed when its coroutine is canceled, and the VM goes on.
            task = asyncio.ensure_future(vm.run(["sh", "-c", "touch /tmp/started; sleep 1000"]))
            while (await vm.run(["test", "-e", "/tmp/started"])).code:
                pass
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while b"sleep 1000" in (await vm.run(["ps", "-o", "args"])).stdout:
                pass
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(vm.wait(), 0.1)

            await vm.write_file("/tmp/a", "text")
            assert await vm.read_file("/tmp/a") == b"text"
            children = await vm.fork(2)
            assert [await c.read_file("/tmp/a") for c in children] == [b"text"] * 2
            for c in children:
                await c.aclose()
            async with img.pool(max=2) as pool:
                async with await pool.acquire() as one, await pool.acquire() as two:
                    assert (await one.run(["echo", "1"])).text + (await two.run(["echo", "2"])).text == "1\n2\n"
                    assert pool.stats()["in_use"] == 2
            # Starts that are canceled leave nothing.
            for i in range(5):
                task = asyncio.ensure_future(img.start())
                await asyncio.sleep(0.02 * i)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    await task.result().aclose()

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    end = time.monotonic() + 30
    while len(os.listdir("/proc/self/fd")) > before + 2 and time.monotonic() < end:  # what is closed in the background
        gc.collect()
        time.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # of which Go keeps some


def test_a_vm_that_is_forgotten_is_closed(image: supermachine.Image) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        vm = image.start()
        del vm
        gc.collect()
    assert [str(w.message) for w in seen if w.category is ResourceWarning] == ["unclosed <supermachine.VM>"]


def test_vms_end_with_the_interpreter(image: supermachine.Image) -> None:
    script = "import sys, supermachine; vm = supermachine.Image.from_snapshot(sys.argv[1]).start(); print(vm.run(['echo', 'hi']).text)"
    r = subprocess.run([sys.executable, "-W", "ignore", "-c", script, image.id], capture_output=True, text=True, timeout=60)
    assert (r.returncode, r.stdout) == (0, "hi\n\n"), r.stderr


def test_the_program_lives_through_a_storm(image: supermachine.Image) -> None:
    """Signals, children, threads and a second Go library, while VMs are busy."""
    second = ctypes.CDLL(os.environ["SUPERMACHINE_SECOND_LIBRARY"])
    seconds = float(os.environ.get("SUPERMACHINE_STORM", "20"))
    counts = {signal.SIGUSR1: 0, signal.SIGCHLD: 0, signal.SIGWINCH: 0}

    def count(s: int, _: object) -> None:
        counts[signal.Signals(s)] += 1

    before = {s: signal.signal(s, count) for s in counts}
    end = time.monotonic() + seconds
    failures: List[BaseException] = []

    def busy() -> None:
        try:
            with image.start() as vm:
                while time.monotonic() < end:
                    assert vm.run(["echo", "x"]).stdout == b"x\n"
        except BaseException as e:
            failures.append(e)

    def storm() -> None:
        while time.monotonic() < end:
            for s in (signal.SIGUSR1, signal.SIGWINCH):
                os.kill(os.getpid(), s)
            select.select([], [], [], 0.0005)

    threads = [threading.Thread(target=busy), threading.Thread(target=storm)]
    for t in threads:
        t.start()
    try:
        children = 0
        while time.monotonic() < end:
            assert subprocess.run(["true"]).returncode == 0
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            children += 2
        for t in threads:
            t.join()
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    assert not failures
    assert second.second_ticks() > 0
    assert children > 0 and all(n > 0 for n in counts.values()), counts
