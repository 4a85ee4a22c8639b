"""What needs no guest: loading, options, errors, handles, signals, fork."""

import ast
import asyncio
import gc
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import supermachine
from supermachine import _native, aio, errors

ROOT = Path(__file__).parents[3]


def python(script: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script], env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


def test_every_error_of_the_header_has_a_class() -> None:
    header = (ROOT / "include/supermachine.h").read_text()
    listed = {int(n): name.lower() for name, n in re.findall(r"^\tSM_ERR_([A-Z_]+) = (\d+)", header, re.M)}
    assert {c: e.name for c, e in errors.ERRORS.items()} == listed


def test_every_call_and_option_is_one_of_the_library() -> None:
    calls = {}
    for section in (ROOT / "docs/abi.md").read_text().split("### sm_")[1:]:
        options = section.split("| option |")[1].split("\n\n")[0] if "| option |" in section else ""
        calls[section.split()[0]] = set(re.findall(r"^\| (\w+) \|", options, re.M)) - {"option"}
    package = set((ROOT / "bindings/python/supermachine").glob("*.py"))
    of_asyncio = {p for p in package if "aio" in p.name}
    for paths, wanted in ((package - of_asyncio, set(calls)), (of_asyncio, set(calls) - {"version", "doctor", "set_admission", "metrics"})):
        used = {kind + "_close" for kind in ("store", "image", "vm", "exec", "forward", "file", "pool", "entries", "watch")}
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in CALLERS and isinstance(node.args[0], ast.Constant):
                    call = node.args[0].value
                    used.add(call)
                    given = {k.arg for k in node.keywords}
                    assert given <= calls.get(call, set()), f"{path.name}: sm_{call} has other options"
                    left = calls[call] - given - NOT_OFFERED.get(call, set())
                    assert not left, f"{path.name}: sm_{call}: options that the package does not offer: {left}"
        assert used == wanted


CALLERS = ("call", "quick", "_quick", "_events")
NOT_OFFERED = {
    "vm_console": {"max_bytes"},
    "vm_read_file": {"max_bytes"},
    "vm_fork": {"timeout_ms"},
    "vm_start_workload": {"timeout_ms"},
}
"""Options that the package leaves at their defaults."""


def test_the_twins_have_the_same_methods() -> None:
    for name in ("VM", "Image", "Pool", "Store", "Process", "Forward", "GuestFile", "Watch"):
        sync, other = getattr(supermachine, name), getattr(aio, name)
        methods = {m for m in dir(sync) if m[0] != "_"} - {"close"}
        assert {m for m in dir(other) if m[0] != "_"} - {"aclose"} == methods
        for m in methods:
            if callable(getattr(sync, m)):
                assert list(inspect.signature(getattr(sync, m)).parameters.values()) == list(inspect.signature(getattr(other, m)).parameters.values()), m
    assert list(inspect.signature(supermachine.run).parameters) == list(inspect.signature(aio.run).parameters)


PROGRAM = dict(env={"A": "b"}, workdir=Path("/"), user="0", timeout=1.5, limits={"nofile": 5, "as": (1, "unlimited"), "core": -1})
STARTED = dict(
    volumes=["/v:/v"], mounts=["/m:/m:ro"], network=True, egress=["allow *"], egress_default="deny", network_rate=5, disk_rate=6, disk_ops=7, cpu_percent=50, cgroup="/c",
    lifetime=1.5, idle_timeout=2, timeout=3,
)  # fmt: skip
TERMINAL = dict(stdin=True, tty=True, rows=1, cols=2)
UNPACK = dict(owners=True, owner="0", setuid=True, special=True, skip_special=True)
EVERY: List[Tuple[str, Tuple[Any, ...], Dict[str, Any]]] = [
    ("run", (["a"],), {**PROGRAM, "input": b"x", "max_output": 5}),
    ("exec", (["a"],), {**PROGRAM, **TERMINAL, "stdout": True, "stderr": True}),
    ("spawn", (["a"],), {**PROGRAM, **TERMINAL}),
    ("attach", (5,), dict(stdin=True, stdout=True, stderr=True)),
    ("programs", (), {}),
    ("chain", ([["a"], {"args": ["b"], **PROGRAM}],), dict(files={Path("/f"): "x"}, continue_on_error=True, timeout=1, max_output=2)),
    ("chain", ([["a"]],), dict(files=[dict(path="/f", data=b"x", mode=0o600, owner="0")])),
    ("stats", (), {}),
    ("connect", (), {}),
    ("forward", (), {}),
    ("forward_to_host", ("127.0.0.1:1",), dict(port=5)),
    ("socket_path", (), {}),
    ("read_file", (b"/\xff",), dict(offset=0, length=1)),
    ("write_file", ("/\udcff", bytearray(b"x")), dict(mode=0o600, owner="0", append=True, offset=0)),
    ("open_file", (Path("/"),), dict(offset=0, length=1)),
    ("create_file", ("/",), dict(mode=0o600, owner="0", append=True, offset=0)),
    ("stat", ("/",), dict(follow=False)),
    ("list", ("/",), {}),
    ("walk", ("/",), dict(depth=2, one_file_system=True)),
    ("watch", ("/",), dict(recursive=True)),
    ("mkdir", ("/",), dict(mode=0o1777, parents=True, owner="0")),
    ("remove", ("/",), dict(recursive=True)),
    ("rename", ("/", "/"), dict(replace=False)),
    ("chmod", ("/", 0), dict(recursive=True)),
    ("chown", ("/", "0"), dict(recursive=True, follow=False)),
    ("symlink", ("/", "/"), {}),
    ("pack", ("/",), dict(one_file_system=True)),
    ("unpack", ("/",), UNPACK),
    ("copy_in", (Path("/"), "/"), UNPACK),
    ("copy_out", ("/", Path("/")), dict(owners=True, setuid=True, skip_special=True, one_file_system=True, max_bytes=1, max_entries=1)),
    ("follow_console", (), {}),
]
FIRST = {"vm": 1 << 63, "image": 1 << 63, "id": "", "name": "", "restore_id": ""}
"""Of a VM or an image that was never one. The library looks at the options first."""


@pytest.mark.parametrize("name, args, options", EVERY, ids=[name for name, _, _ in EVERY])
def test_options_reach_the_library(name: str, args: Tuple[Any, ...], options: Dict[str, Any]) -> None:
    vm, twin = supermachine.VM(FIRST), aio.VM(FIRST)
    vm._closed = twin._closed = True

    async def main() -> None:
        made = getattr(twin, name)(*args, **options)
        if inspect.isasyncgen(made):
            async for _ in made:
                pass
        else:
            await made

    with pytest.raises(errors.InvalidHandleError):
        made = getattr(vm, name)(*args, **options)
        next(made)
    with pytest.raises(errors.InvalidHandleError):
        asyncio.run(main())


def test_options_of_a_start_reach_the_library() -> None:
    image, twin = supermachine.Image(FIRST), aio.Image(FIRST)
    image._closed = twin._closed = True
    with pytest.raises(errors.InvalidHandleError):
        image.start("name", **STARTED)
    with pytest.raises(errors.InvalidHandleError):
        asyncio.run(twin.start("name", **STARTED))
    with pytest.raises(errors.ImageNotFoundError):
        supermachine.VM.boot("oci:/nowhere", name="x", memory_mib=64, vcpus=1, scratch_mib=16, pull="never", insecure=["a"], **{**STARTED, "volumes": None, "mounts": None})


def test_values_that_the_package_refuses() -> None:
    vm = supermachine.VM(FIRST)
    vm._closed = True
    for f, text in (
        (lambda: vm.run(["a"], limits="nofile=5"), "limits is a list"),
        (lambda: vm.chain(["echo", "hi"]), r"\['sh', '-c', command\]"),
        (lambda: vm.chain("echo"), "commands is a list"),
        (lambda: vm.chain([{"args": ["a"], "tmeout": 5}]), "tmeout"),
        (lambda: vm.chain([{"env": {}}]), "args"),
        (lambda: vm.chain([["a"]], files=[{"path": "/a", "date": b""}]), "date"),
        (lambda: supermachine.Image.start(vm, mounts="/a:/b"), "mounts is a list"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=text):
            f()
    with pytest.raises(ValueError, match="length of 0"):
        vm.read_file("/a", length=0)
    with pytest.raises(ValueError, match="-1 seconds"):
        supermachine.Image.start(vm, lifetime=-1)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidArgumentError, match="mode: -1 is out of range"):
        vm.chmod("/a", -1)
    with pytest.raises(errors.InvalidArgumentError, match='unknown option "recursiv"; the nearest one is "recursive"'):
        _native.call("vm_watch", 1, recursiv=True)


def test_text_of_errors_may_be_anything() -> None:
    with pytest.raises(errors.NotFoundError, match="nothing-\ufffd"):
        _native.call("image_from_snapshot", 0, name=b"nothing-\xff")


def test_a_trace_ends_with_its_loop() -> None:
    async def main() -> None:
        async for _ in aio.trace():
            pass

    def interrupt() -> "threading.Timer":
        timer = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.start()
        return timer

    before = len(os.listdir("/proc/self/fd"))
    timer = interrupt()
    with pytest.raises(KeyboardInterrupt):
        for _ in supermachine.trace():
            pass
    timer.join()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(asyncio.wait_for(main(), 0.2))
    with pytest.raises(errors.InvalidArgumentError, match="nonsense"):
        next(supermachine.trace(categories=["nonsense"]))
    with pytest.raises(TypeError, match="categories is a list"):
        supermachine.trace(categories="exec")


def test_metrics() -> None:
    assert "# TYPE supermachine_" in supermachine.metrics()


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(errors.InvalidArgumentError, match="memory_mib: an integer is needed, and a string was given") as e:
        supermachine.Image.from_oci("oci:/nowhere", memory_mib="x")  # type: ignore[arg-type]
    assert (e.value.code, e.value.name, e.value.op) == (2, "invalid_argument", "read the options of")
    with pytest.raises(errors.InvalidArgumentError, match='unknown option "memori_mib"; the nearest one is "memory_mib"'):
        _native.call("image_from_oci", 0, None, ref="x", memori_mib=5)
    with pytest.raises(errors.ImageNotFoundError):
        supermachine.Image.from_oci("oci:/nowhere")
    with pytest.raises(TypeError, match=r"\['sh', '-c', command\]"):
        supermachine.run("busybox", "echo hi")
    with pytest.raises(TypeError):
        supermachine.run("busybox", [5])  # type: ignore[list-item]
    with pytest.raises(ValueError):
        supermachine.run("busybox", ["true"], timeout=-1)
    with pytest.raises(TypeError):
        supermachine.Store(5)  # type: ignore[arg-type]


def test_closed_objects(tmp_path: Path) -> None:
    store = supermachine.Store(tmp_path)
    assert store.images() == [] and store.snapshots() == []
    with store:
        assert not store.closed
    assert store.closed and "closed" in repr(store)
    store.close()
    with pytest.raises(errors.InvalidHandleError):
        store.images()
    with pytest.raises(errors.InvalidHandleError):  # and not found in the user's own store
        supermachine.Image.from_snapshot("nothing", store=store)
    with supermachine.Store(tmp_path) as store, pytest.raises(errors.NotFoundError):
        supermachine.Image.from_snapshot("nothing", store=store)


def test_unclosed_objects_warn_and_are_closed(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        store = supermachine.Store(tmp_path)
        handle = store._handle
        del store
        gc.collect()
    assert ["unclosed <supermachine.Store>"] == [str(w.message) for w in seen if w.category is ResourceWarning]
    with pytest.raises(errors.InvalidHandleError, match="closed"):
        _native.call("store_images", handle)


def test_library_that_is_not_there_or_no_library(tmp_path: Path) -> None:
    r = python("import supermachine", SUPERMACHINE_LIBRARY=str(tmp_path / "none.so"))
    assert r.returncode == 1 and "ImportError" in r.stderr and "SUPERMACHINE_LIBRARY" in r.stderr
    (tmp_path / "text.so").write_text("no library")
    r = python("import supermachine", SUPERMACHINE_LIBRARY=str(tmp_path / "text.so"))
    assert r.returncode == 1 and "ImportError" in r.stderr


def test_musl_is_told_before_the_library_is_loaded() -> None:
    r = python("import platform; platform.libc_ver = lambda: ('', ''); import supermachine", SUPERMACHINE_LIBRARY="/nowhere")
    assert "musl" in r.stderr and "Alpine" in r.stderr and "/nowhere" not in r.stderr


def test_a_library_of_an_older_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.c").write_text("int sm_abi_version(void) { return 0; }")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "old.so", tmp_path / "old.c"], check=True)
    r = python("import supermachine", SUPERMACHINE_LIBRARY=str(tmp_path / "old.so"))
    assert "version 0 of the ABI" in r.stderr and "needs 1" in r.stderr


def test_signals_stay_as_they_were() -> None:
    r = python(
        "import signal, ctypes\n"
        "all = [s for s in signal.valid_signals() if s not in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGURG)]\n"
        "before = [signal.getsignal(s) for s in all], signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "ignored = [l for l in open('/proc/self/status') if l.startswith('SigIgn')]\n"
        "import supermachine\n"
        "supermachine.version()\n"
        "assert before == ([signal.getsignal(s) for s in all], signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "assert ignored == [l for l in open('/proc/self/status') if l.startswith('SigIgn')]\n"
    )
    assert r.returncode == 0, r.stderr


def test_broken_pipes_are_exceptions() -> None:
    a, b = socket.socketpair()
    b.close()
    with pytest.raises(BrokenPipeError):
        a.send(b"x")
    a.close()


def test_ctrl_c_ends_a_call_that_waits() -> None:
    main = threading.get_ident()
    timer = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _native.call("trace")  # waits for ever
    assert time.monotonic() - began < 10
    timer.join()
    assert supermachine.version()["abi"] >= 1


def test_handlers_run_while_a_call_waits() -> None:
    ran = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: ran.set())
    try:
        queue = _native.Queue()
        _, call = queue.start("trace", 0, {})
        os.kill(os.getpid(), signal.SIGUSR1)
        assert ran.wait(10)
        queue.cancel(call)
        while (item := queue.next()) is None:
            time.sleep(0.001)
        assert item[2] == errors.CanceledError.code
        queue.close()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_calls_from_handlers_of_signals_do_not_disturb_the_one_that_waits(tmp_path: Path) -> None:
    seen: List[int] = []

    def handler(*_: object) -> None:
        with supermachine.Store(tmp_path) as s:
            seen.append(len(s.images()))
        if len(seen) == 20:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, handler)
    main = threading.get_ident()
    stop = threading.Event()

    def storm() -> None:
        while not stop.wait(0.002):
            signal.pthread_kill(main, signal.SIGUSR1)

    t = threading.Thread(target=storm)
    t.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            _native.call("trace")
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        stop.set()
        t.join()
        signal.signal(signal.SIGUSR1, before)
    assert len(seen) >= 20


def test_forked_children_are_told() -> None:
    store = supermachine.Store()
    pid = os.fork()
    if pid == 0:
        try:
            supermachine.version()
        except errors.ForkedError:
            store.close()  # the parent's: does nothing
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert subprocess.run(["true"]).returncode == 0
    store.images()
    store.close()


def test_threads() -> None:
    failures = []

    def work() -> None:
        try:
            for _ in range(50):
                with supermachine.Store() as s:
                    s.images()
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work) for _ in range(16)]
    before = len(os.listdir("/proc/self/fd"))
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before, "a thread's queue ends with it"
