"""Programs that run by themselves, chains, ports, and what a VM is started with."""

import asyncio
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
import supermachine
from supermachine import aio, errors

pytestmark = pytest.mark.skipif("SUPERMACHINE_TEST_IMAGES" not in os.environ, reason="needs guests: run it by make test")

SERVE = "nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null & for i in $(seq 600); do netstat -ltn | grep -q :7 && exit; sleep 0.1; done; exit 1"


def serve(listener: socket.socket, times: int) -> threading.Thread:
    """Answers so many connections with what they say."""

    def work() -> None:
        for _ in range(times):
            s, _ = listener.accept()
            with s:
                s.sendall(b"host:" + s.recv(100))

    t = threading.Thread(target=work, daemon=True)
    t.start()
    return t


def test_traces(image: supermachine.Image) -> None:
    seen: List[Dict[str, Any]] = []

    def work() -> None:
        for step in supermachine.trace(categories=["restore"]):
            seen.append(step)
            break

    t = threading.Thread(target=work)
    t.start()
    while t.is_alive():
        image.start().close()
    (step,) = seen
    assert step["category"] == "restore" and step["step"] and step["took_us"] >= 0


def test_limits_and_output(vm: supermachine.VM) -> None:
    show = ["sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c"]
    assert vm.run(show, limits={"nofile": (32, 64), "core": 0}).text == "32\n64\n0\n"
    assert vm.run(show, limits=["nofile=32:64", "core=unlimited"]).text == "32\n64\nunlimited\n"
    with pytest.raises(errors.InvalidArgumentError, match="nofile=1024"):
        vm.run(["true"], limits=["nofile"])
    with vm.exec(show, limits={"nofile": 40}) as p:
        assert next(iter(p)) == b"40\n"
    r = vm.run(["sh", "-c", "echo 0123456789; echo abc >&2"], max_output=5)
    assert (r.stdout, r.stdout_bytes, r.stdout_truncated, r.stderr, r.stderr_bytes, r.stderr_truncated) == (b"01234", 11, True, b"abc\n", 4, False)


def test_programs_that_run_by_themselves(vm: supermachine.VM) -> None:
    spawned = vm.spawn(["sh", "-c", "echo ready; read x; echo got $x; echo oh >&2; exit 5"], stdin=True, env={"A": "b"}, limits={"nofile": 50})
    (program,) = [p for p in vm.programs() if p.id == spawned.id]
    assert program.pid == spawned.pid and program.args[:2] == ["sh", "-c"] and (program.detached, program.ended, program.workload, program.tty) == (True, False, False, False)
    assert abs(program.started - time.time()) < 3600
    (child,) = vm.fork()
    with child, child.attach(spawned.id) as copy:
        assert copy.stdout is not None and copy.stdout.readline() == b"ready\n"
    with vm.attach(spawned.id, stdin=True, stderr=True) as p:
        assert p.stdin is not None and p.stdout is not None and p.stderr is not None
        p.stdin.write(b"it\n")
        p.stdin.close()
        assert (p.stdout.read(), p.stderr.read(), p.wait().code) == (b"ready\ngot it\n", b"oh\n", 5)
    with pytest.raises(errors.NotFoundError):
        vm.attach(spawned.id)

    with vm.exec(["sh", "-c", "echo one; sleep 1000"]) as p:
        assert p.stdout is not None and p.stdout.readline() == b"one\n"
        p.detach()
        assert p.stdout.read() == b""
    assert [q.detached for q in vm.programs() if q.id == p.id] == [True], "closing does not kill it"
    with vm.attach(p.id) as first, vm.attach(p.id) as again:
        assert first.id == p.id
        first.detach()
        with pytest.raises(errors.CanceledError):
            first.wait()
        again.kill()
        assert again.wait().signal == signal.SIGKILL


def test_chains(vm: supermachine.VM) -> None:
    commands: List[Any] = [["cat", "/tmp/in"], {"args": ["sh", "-c", "echo $A; pwd; id -u"], "env": {"A": "b"}, "workdir": Path("/tmp"), "user": "65534"}]
    r = vm.chain(commands, files={"/tmp/in": "text"})
    assert ([o.text for o in r.outputs], r.failed, r.error) == (["text", "b\n/tmp\n65534\n"], None, "")
    r = vm.chain([["false"], ["echo", "x"]], files=[{"path": "/tmp/run", "data": b"", "mode": 0o700, "owner": "5"}])
    assert (len(r.outputs), r.failed) == (1, 0) and (vm.stat("/tmp/run").mode, vm.stat("/tmp/run").uid) == (0o700, 5)
    r = vm.chain([["true"], ["false"], ["echo", "0123"]], continue_on_error=True, max_output=2)
    assert ([o.code for o in r.outputs], r.failed, r.outputs[2].stdout, r.outputs[2].stdout_truncated) == ([0, 1, 0], 1, b"01", True)
    r = vm.chain([["echo", "x"], ["nothing"]])
    assert (r.outputs[0].text, r.failed) == ("x\n", 1) and "nothing" in r.error
    r = vm.chain([["echo", "x"], {"args": ["sleep", "1000"], "timeout": 0.2}])
    assert r.failed == 1 and r.outputs[1].timed_out


def test_ports(vm: supermachine.VM) -> None:
    vm.run(["sh", "-c", SERVE], check=True)
    with vm.connect() as s:  # finds it
        s.sendall(b"hello")
        assert s.recv(5, socket.MSG_WAITALL) == b"hello"
    path = vm.socket_path()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.sendall(b"hi")
        assert s.recv(2, socket.MSG_WAITALL) == b"hi"
    with vm.forward() as f:
        host, port = f.address.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as s:
            s.sendall(b"hey")
            assert s.recv(3, socket.MSG_WAITALL) == b"hey"
            stats = f.stats()
        assert f.port == 0 and (stats["total"], stats["failed"]) == (1, 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        t = serve(listener, 1)
        with vm.forward_to_host("127.0.0.1:%d" % listener.getsockname()[1]) as to_host:
            assert to_host.port > 0 and to_host.address.startswith("127.0.0.1:")
            assert vm.run(["sh", "-c", f"echo guest | nc 127.0.0.1 {to_host.port}"]).text == "host:guest\n"
            assert to_host.stats()["total"] == 1
        t.join()
    stats = vm.stats()
    assert stats["cpu_us"] > 0 and stats["time_ms"] > 0 and stats["total_bytes"] > 64 << 20 and stats["net_connections"] == 0


def test_volumes_mounts_and_the_network(image: supermachine.Image, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("host")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        t = serve(listener, 1)
        port = listener.getsockname()[1]
        options: Dict[str, Any] = dict(
            volumes=[f"{tmp_path}/disk:/data:size=64M"], mounts=[f"{tmp_path}/dir:/work", f"{tmp_path}/dir:/config:ro"], network=True,
            egress=[f"allow 192.168.127.1:{port}/tcp"], egress_default="deny", network_rate=1 << 20, disk_rate=64 << 20, disk_ops=10000,
        )  # fmt: skip
        with image.start(**options) as vm:
            assert vm.read_file("/work/file") == b"host"
            vm.write_file("/work/new", "guest")
            assert (tmp_path / "dir/new").read_text() == "guest"
            assert vm.run(["touch", "/config/x"]).code != 0
            vm.write_file("/data/kept", b"kept")
            vm.run(["sync"], check=True)
            assert vm.run(["sh", "-c", f"echo hi | nc host.supermachine.internal {port}"]).text == "host:hi\n"
            assert vm.run(["nc", "-w", "2", "192.168.127.1", "1"], input=b"x").code != 0
            assert (vm.stats()["net_connections"], vm.stats()["net_refused"]) == (2, 1)
            vm.stop(grace=1)
        t.join()
    with image.start(volumes=[f"{tmp_path}/disk:/data:ro"]) as vm:
        assert vm.read_file("/data/kept") == b"kept"
    with pytest.raises(errors.InvalidArgumentError):
        image.start(mounts=["nonsense"])
    with pytest.raises(errors.InvalidArgumentError):
        image.start(network=True, egress=["perhaps *"])


def test_lives(image: supermachine.Image) -> None:
    with image.start(lifetime=1) as vm:
        assert vm.wait() == "expired"
    with image.start(idle_timeout=0.3) as vm:
        while not vm.info()["asleep"]:
            time.sleep(0.05)
        assert vm.run(["echo", "awake"]).text == "awake\n"


def test_boot_takes_what_a_start_takes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("host")
    ref = f"oci:{os.environ['SUPERMACHINE_TEST_IMAGES']}/busybox:latest"
    with supermachine.VM.boot(ref, memory_mib=96, mounts=[f"{tmp_path}:/work:ro"], network=True, egress_default="deny") as vm:
        assert vm.read_file("/work/file") == b"host"


def test_programs_with_asyncio(image: supermachine.Image) -> None:
    async def main() -> None:
        async with aio.Store() as store, await aio.Image.from_snapshot(image.id, store=store) as img, await img.start(lifetime=600) as vm:
            spawned = await vm.spawn(["sh", "-c", "echo ready; sleep 1000"])
            assert spawned.id in [p.id for p in await vm.programs()]
            async with await vm.attach(spawned.id) as p:
                assert p.stdout is not None and await p.stdout.readline() == b"ready\n" and p.id == spawned.id
                await p.detach()
                with pytest.raises(errors.CanceledError):
                    await p.wait()
            for i in range(5):  # attachments that are canceled leave nothing
                task = asyncio.ensure_future(vm.attach(spawned.id))
                await asyncio.sleep(0.002 * i)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    await task.result().aclose()
            r = await vm.chain([["cat", "/tmp/in"], ["false"]], files={"/tmp/in": b"x"})
            assert ([o.stdout for o in r.outputs], r.failed) == ([b"x", b""], 1)
            assert (await vm.run(["sh", "-c", "ulimit -n"], limits={"nofile": 50}, max_output=1)).stdout == b"5"
            assert (await vm.stats())["cpu_us"] > 0
            await vm.run(["sh", "-c", SERVE], check=True)
            reader, writer = await vm.connect()
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            reader, writer = await asyncio.open_unix_connection(await vm.socket_path())
            writer.write(b"hi")
            assert await reader.readexactly(2) == b"hi"
            writer.close()
            async with await vm.forward() as f:
                assert f.stats()["total"] == 0

            async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"host:" + await reader.readline())
                writer.close()

            async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
                async with await vm.forward_to_host("127.0.0.1:%d" % server.sockets[0].getsockname()[1]) as to_host:
                    assert (await vm.run(["sh", "-c", f"echo guest | nc 127.0.0.1 {to_host.port}"])).text == "host:guest\n"
            assert image.id in [s["id"] for s in await store.snapshots()]

            trace = aio.trace(categories=["exec", "restore"])
            first = asyncio.ensure_future(trace.__anext__())
            while not first.done():
                await (await img.start()).aclose()
            assert first.result()["step"]
            await trace.aclose()

    asyncio.run(main())


def test_consoles(image: supermachine.Image, vm: supermachine.VM) -> None:
    mark = ["sh", "-c", "echo '<1>a mark' > /dev/kmsg"]
    late = threading.Timer(60, vm.close)  # which ends the stream
    late.start()
    with vm.follow_console() as console:
        vm.run(mark, check=True)
        assert any(b"a mark" in line for line in console.stream)
        late.cancel()
        vm.close()
        console.stream.read()

    async def main() -> None:
        async with await aio.Image.from_snapshot(image.id) as img, await img.start() as vm, await vm.follow_console() as console:
            await vm.run(mark, check=True)
            await asyncio.wait_for(console.reader.readuntil(b"a mark"), 60)

    asyncio.run(main())
