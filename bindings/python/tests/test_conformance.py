"""The cases that all languages share: capi/conformance."""

import asyncio
import hashlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Dict

import pytest
import supermachine
from supermachine import aio, errors

pytestmark = pytest.mark.skipif("SUPERMACHINE_TEST_IMAGES" not in os.environ, reason="needs guests: run it by make test")

CASES = json.loads((Path(__file__).parents[3] / "capi/conformance/cases.json").read_text())
BLOCK = bytes((i * 31 + (i >> 8)) & 255 for i in range(65536))
LISTEN = "nc -ll -p 7 -e cat >/dev/null 2>&1 </dev/null & for i in $(seq 600); do netstat -ltn | grep -q :7 && exit; sleep 0.1; done; exit 1"


def plain(v: Any) -> Any:
    """Data of the cases as bytes, strings as they are."""
    if isinstance(v, dict) and set(v) == {"text"}:
        return v["text"].encode()
    if isinstance(v, dict) and set(v) == {"hex"}:
        return bytes.fromhex(v["hex"])
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items()}
    return [plain(x) for x in v] if isinstance(v, list) else v


def run(image: supermachine.Image, vm: supermachine.VM, args: Any, stdin: Any = None, timeout_ms: Any = None, **options: Any) -> Dict[str, Any]:
    r = vm.run(args, input=stdin, timeout=None if timeout_ms is None else timeout_ms / 1000, **options)
    return {"code": r.code, "signal": r.signal, "timed_out": r.timed_out, "stdout": r.stdout, "stderr": r.stderr}


def cat(image: supermachine.Image, vm: supermachine.VM, bytes: int) -> Dict[str, Any]:
    with vm.exec(["cat"], stdin=True) as p:
        assert p.stdin is not None and p.stdout is not None

        def write() -> None:
            assert p.stdin is not None
            for _ in range(bytes // len(BLOCK)):
                p.stdin.write(BLOCK)
            p.stdin.close()

        writer = threading.Thread(target=write)
        writer.start()
        got, n = hashlib.sha256(), 0
        while data := p.stdout.read(1 << 20):
            got.update(data)
            n += len(data)
        writer.join()
        return {"bytes": n, "sha256": got.hexdigest()}


def file(image: supermachine.Image, vm: supermachine.VM, path: str, data: bytes, mode: int) -> Dict[str, Any]:
    vm.write_file(path, data, mode=mode)
    return {"data": vm.read_file(path), "mode": vm.run(["stat", "-c", "%a", path]).text.strip()}


def read(image: supermachine.Image, vm: supermachine.VM, path: str) -> None:
    vm.read_file(path)


def echo(s: socket.socket, data: bytes) -> Dict[str, Any]:
    with s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        return {"data": s.makefile("rb").read()}


def connect(image: supermachine.Image, vm: supermachine.VM, port: int, data: bytes) -> Dict[str, Any]:
    vm.run(["sh", "-c", LISTEN], check=True)
    return echo(vm.connect(port), data)


def forward(image: supermachine.Image, vm: supermachine.VM, port: int, data: bytes) -> Dict[str, Any]:
    vm.run(["sh", "-c", LISTEN], check=True)
    with vm.forward(port) as f:
        host, number = f.address.split(":")
        return echo(socket.create_connection((host, int(number))), data)


def pool(image: supermachine.Image, vm: supermachine.VM, max: int, rounds: int) -> Dict[str, Any]:
    listings = []
    with image.pool(max=max) as p:
        for _ in range(rounds):
            with p.acquire() as mine:
                listings.append(mine.run(["ls", "/tmp"]).stdout)
                mine.write_file("/tmp/mine", b"x")
        return {"listings": listings, "starts": p.stats()["starts"]}


def exhaust(image: supermachine.Image, vm: supermachine.VM, max: int, acquire_timeout_ms: int) -> None:
    with image.pool(min=max, max=max, acquire_timeout=acquire_timeout_ms / 1000) as p:
        while p.stats()["idle"] < max:
            time.sleep(0.02)
        held = [p.acquire() for _ in range(max)]
        try:
            p.acquire()
        finally:
            for v in held:
                v.close()


def snapshot(image: supermachine.Image, vm: supermachine.VM, path: str, data: bytes) -> Dict[str, Any]:
    vm.write_file(path, data)
    with vm.snapshot(base=image) as saved, saved.start() as again:
        return {"data": again.read_file(path)}


def fork(image: supermachine.Image, vm: supermachine.VM, n: int, path: str, data: bytes) -> Dict[str, Any]:
    vm.write_file(path, data)
    children = vm.fork(n)
    try:
        return {"data": [c.read_file(path) for c in children]}
    finally:
        for c in children:
            c.close()


def cancel(image: supermachine.Image, vm: supermachine.VM, args: Any) -> Dict[str, Any]:
    async def main() -> bool:
        async with await aio.Image.from_snapshot(image.id) as img, await img.start() as mine:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(mine.run(args), 0.5)
            for _ in range(600):
                if " ".join(args) not in (await mine.run(["ps", "-o", "args"])).text:
                    return True
                await asyncio.sleep(0.1)
        return False

    return {"gone": asyncio.run(main())}


def open(image: supermachine.Image, vm: supermachine.VM, name: str) -> None:
    supermachine.Image.from_snapshot(name)


def bake(image: supermachine.Image, vm: supermachine.VM, ref: str, **options: Any) -> None:
    supermachine.Image.from_oci(ref, **options)


def closed(image: supermachine.Image, vm: supermachine.VM) -> None:
    mine = image.start()
    mine.close()
    mine.info()


def ended(image: supermachine.Image, vm: supermachine.VM) -> None:
    vm.kill()
    vm.wait()
    vm.run(["true"])


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_conformance(case: Dict[str, Any], image: supermachine.Image, vm: supermachine.VM) -> None:
    def do() -> Any:
        return globals()[case["do"]](image, vm, **plain(case["with"]))

    if "error" in case:
        with pytest.raises(supermachine.SupermachineError) as e:
            do()
        assert e.value.name == case["error"] and type(e.value) is errors.ERRORS[e.value.code]
    else:
        assert do() == plain(case["gives"])
