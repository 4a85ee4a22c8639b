"""Run any OCI image as a hardware-isolated microVM, inside this process.

>>> import supermachine
>>> supermachine.run("busybox", ["echo", "hi"]).stdout
b'hi\\n'
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from . import errors
from ._native import quick as _quick
from ._vm import VM, Args, Env, Exit, ExitError, Forward, GuestFile, GuestPath, Image, Pool, Process, Progress, Result, Store, as_args, as_ms
from .errors import SupermachineError

__all__ = [
    "VM", "Exit", "ExitError", "Forward", "GuestFile", "Image", "Pool", "Process", "Result", "Store", "SupermachineError", "doctor", "errors", "run",
    "set_admission", "version",
]  # fmt: skip


def run(
    ref: str, args: Args, *, input: Optional[bytes] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
    timeout: Optional[float] = None, check: bool = False, memory_mib: Optional[int] = None, vcpus: Optional[int] = None, pull: Optional[str] = None,
    progress: Optional[Progress] = None,
) -> Result:  # fmt: skip
    """Runs a program in a fresh microVM of an OCI image. The image is pulled and booted once; later calls go on from that snapshot."""
    argv, _ = as_args(args), as_ms(timeout)  # nothing is pulled for arguments that are wrong
    with Image.from_oci(ref, boot_only=True, memory_mib=memory_mib, vcpus=vcpus, pull=pull, progress=progress) as image, image.start() as vm:
        return vm.run(argv, input=input, env=env, workdir=workdir, user=user, timeout=timeout, check=check)


def doctor() -> Dict[str, Any]:
    """Looks at everything that this host needs to run VMs: ok, and checks with name, status, detail and fix."""
    return _quick("doctor")


def version() -> Dict[str, Any]:
    """Says which library this is."""
    return _quick("version")


def set_admission(*, wait: bool = False, margin_mib: Optional[int] = None, parallel: Optional[int] = None, per_vm_mib: Optional[int] = None) -> None:
    """Changes how this process decides whether a VM may start: see sm_set_admission in docs/abi.md."""
    _quick("set_admission", wait=wait, margin_mib=margin_mib, parallel=parallel, per_vm_mib=per_vm_mib)
