"""Run any OCI image as a hardware-isolated microVM, inside this process.

>>> import supermachine
>>> supermachine.run("busybox", ["echo", "hi"]).stdout
b'hi\\n'
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional, Sequence

from . import errors
from ._files import GuestFile, Watch
from ._native import events as _events
from ._native import quick as _quick
from ._options import Args, Env, GuestPath, Limits, Progress, as_args, as_limits, as_list, as_ms
from ._programs import Process
from ._results import Chain, Exit, ExitError, FileEvent, FileInfo, Program, Result, Spawned
from ._vm import VM, Forward, Image, Pool, Store
from .errors import SupermachineError

__all__ = [
    "VM", "Chain", "Exit", "ExitError", "FileEvent", "FileInfo", "Forward", "GuestFile", "Image", "Pool", "Process", "Program", "Result", "Spawned", "Store",
    "SupermachineError", "Watch", "doctor", "errors", "metrics", "run", "set_admission", "trace", "version",
]  # fmt: skip


def run(
    ref: str, args: Args, *, input: Optional[bytes] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
    timeout: Optional[float] = None, limits: Optional[Limits] = None, max_output: Optional[int] = None, check: bool = False,
    memory_mib: Optional[int] = None, vcpus: Optional[int] = None, pull: Optional[str] = None, progress: Optional[Progress] = None,
    volumes: Optional[Sequence[str]] = None, mounts: Optional[Sequence[str]] = None, network: bool = False, egress: Optional[Sequence[str]] = None,
) -> Result:  # fmt: skip
    """Runs a program in a fresh microVM of an OCI image. The image is pulled and booted once; later calls go on from that snapshot.

    volumes, mounts, network, egress: what the VM has of the host and the world, as for Image.start.
    """
    argv, _, _ = as_args(args), as_ms(timeout), as_limits(limits)  # nothing is pulled for arguments that are wrong
    with Image.from_oci(ref, boot_only=True, memory_mib=memory_mib, vcpus=vcpus, pull=pull, progress=progress) as image, image.start(
        volumes=volumes, mounts=mounts, network=network, egress=egress
    ) as vm:  # fmt: skip
        return vm.run(
            argv, input=input, env=env, workdir=workdir, user=user, timeout=timeout, limits=limits, max_output=max_output, check=check
        )  # fmt: skip


def doctor() -> Dict[str, Any]:
    """Looks at everything that this host needs to run VMs: ok, and checks with name, status, detail and fix."""
    return _quick("doctor")


def version() -> Dict[str, Any]:
    """Says which library this is."""
    return _quick("version")


def set_admission(*, wait: bool = False, margin_mib: Optional[int] = None, parallel: Optional[int] = None, per_vm_mib: Optional[int] = None) -> None:
    """Changes how this process decides whether a VM may start: see sm_set_admission in docs/abi.md."""
    _quick("set_admission", wait=wait, margin_mib=margin_mib, parallel=parallel, per_vm_mib=per_vm_mib)


def metrics() -> str:
    """Returns what this process has done so far and has open, as text in Prometheus' format."""
    return str(_quick("metrics")["text"])


def trace(*, categories: Optional[Sequence[str]] = None) -> Iterator[Dict[str, Any]]:
    """Gives a dict for each step of what the library does: category, object, step, start_us and took_us; until the loop over it ends.

    categories: of boot, restore, snapshot, bake, exec, vsock, fs, net, pool and oci; default: all. It begins with the loop, which waits for steps that
    other threads cause.
    """
    return _events("trace", categories=as_list("categories", categories))
