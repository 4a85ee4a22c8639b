"""What needs no guest: loading, options, errors, handles, signals, fork."""

import ast
import gc
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
from typing import List

import pytest
import supermachine
from supermachine import _native, errors

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
    used = {kind + "_close" for kind in ("store", "image", "vm", "exec", "forward", "file", "pool")}
    for name in ("_vm.py", "__init__.py", "aio.py"):
        for node in ast.walk(ast.parse((ROOT / "bindings/python/supermachine" / name).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("call", "quick", "_quick") and isinstance(node.args[0], ast.Constant):
                call = node.args[0].value
                used.add(call)
                given = {k.arg for k in node.keywords}
                assert given <= calls[call], f"sm_{call} has other options"
                assert calls[call] - given <= NOT_OFFERED.get(call, set()), (
                    f"sm_{call}: options that the package does not offer: {calls[call] - given}"
                )
    assert used == set(calls) - {"trace"}


NOT_OFFERED = {
    "vm_snapshot": {"store"},
    "vm_console": {"max_bytes"},
    "vm_read_file": {"max_bytes"},
    "vm_fork": {"timeout_ms"},
    "vm_start_workload": {"timeout_ms"},
}
"""Options that the package leaves at their defaults."""


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
