"""Images, VMs, pools and stores."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

from ._files import Files, GuestFile
from ._handle import Handle, as_socket
from ._native import call, quick
from ._options import Env, GuestPath, Progress, as_env, as_list, as_ms, as_path
from ._programs import Programs


class Forward(Handle):
    """A listener on the host whose connections go to a port of the guest, or one in the guest whose connections go to a server of the host."""

    _kind = "forward"

    def __init__(self, made: Dict[str, Any]) -> None:
        super().__init__(made["forward"])
        self.address: str = made["address"]
        """On the host, HOST:PORT or a path: where it listens, or where the server is."""
        self.port: int = made["port"]
        """The guest's; 0 if it is found anew for each connection."""

    def stats(self) -> Dict[str, int]:
        """Says what the forward has done so far; the keys are those of sm_forward_stats."""
        return quick("forward_stats", self._handle)


class VM(Programs, Files):
    """A running microVM. Use it in a with block, or close it."""

    _kind = "vm"

    def __init__(self, started: Dict[str, Any]) -> None:
        super().__init__(started["vm"])
        self.id: str = started["id"]
        """Random identifier, 12 hexadecimal digits."""
        self.name: str = started["name"]
        """Name, which is also the guest's host name."""
        self.restore_id: str = started["restore_id"]
        """The random identifier that the guest was given when it was restored; empty for one that was booted."""

    @classmethod
    def boot(
        cls, ref: str, *, name: Optional[str] = None, memory_mib: Optional[int] = None, vcpus: Optional[int] = None, scratch_mib: Optional[int] = None,
        volumes: Optional[Sequence[str]] = None, mounts: Optional[Sequence[str]] = None, network: bool = False, egress: Optional[Sequence[str]] = None,
        egress_default: Optional[str] = None, network_rate: Optional[int] = None, disk_rate: Optional[int] = None,
        disk_ops: Optional[int] = None, cpu_percent: Optional[int] = None, cgroup: Optional[str] = None, lifetime: Optional[float] = None, idle_timeout: Optional[float] = None,
        timeout: Optional[float] = None, pull: Optional[str] = None, platform: Optional[str] = None, insecure: Optional[Sequence[str]] = None,
        store: "Optional[Store]" = None, progress: Optional[Progress] = None,
    ) -> "VM":  # fmt: skip
        """Pulls an OCI image if need be and boots it, without a snapshot. The image's command is not started. volumes and so on: as for Image.start."""
        return cls(call(
            "vm_boot", _of(store), progress, ref=ref, name=name, memory_mib=memory_mib, vcpus=vcpus, scratch_mib=scratch_mib, timeout_ms=as_ms(timeout),
            pull=pull, platform=platform, insecure=as_list("insecure", insecure), volumes=as_list("volumes", volumes), mounts=as_list("mounts", mounts),
            network=network, egress=as_list("egress", egress), egress_default=egress_default, network_rate=network_rate, disk_rate=disk_rate,
            disk_ops=disk_ops, cpu_percent=cpu_percent, cgroup=cgroup, lifetime_ms=as_ms(lifetime), idle_timeout_ms=as_ms(idle_timeout),
        ))  # fmt: skip

    def console(self) -> str:
        """Returns the last that the guest's kernel and init wrote to the console."""
        return str(quick("vm_console", self._handle)["text"])

    def follow_console(self) -> GuestFile:
        """Reads what the guest's kernel and init write to the console as a stream: the last 64 KiB that are kept, and then what comes, until the VM is closed."""
        return GuestFile(call("vm_follow_console", self._handle), "rb")

    def connect(self, port: Optional[int] = None) -> socket.socket:
        """Opens a connected socket to a TCP port of the guest; default: the workload's, or else the one on which a program has listened longest."""
        return as_socket(call("vm_connect", self._handle, port=port)["fd"])

    def forward(self, port: Optional[int] = None, address: Optional[str] = None) -> Forward:
        """Listens on the host, at HOST:PORT or a Unix socket's path, and connects what arrives to the guest's port. Default: 127.0.0.1 and a free port."""
        return Forward({"port": port or 0, **call("vm_forward", self._handle, port=port, address=address)})

    def forward_to_host(self, address: str, port: Optional[int] = None) -> Forward:
        """Listens on a TCP port of the guest's loopback address, by default a free one, and connects what arrives to a server of the host.

        address: HOST:PORT or a Unix socket's path. Copies of the VM do not have it.
        """
        return Forward({"address": address, **call("vm_forward_to_host", self._handle, address=address, port=port)})

    def socket_path(self) -> str:
        """Returns the path of a Unix socket that leads to the workload's port, for other processes of the same user. It goes with the VM."""
        return str(call("vm_socket_path", self._handle)["path"])

    def pause(self) -> None:
        """Stops the guest's processors and devices."""
        call("vm_pause", self._handle)

    def resume(self) -> None:
        """Continues a paused VM."""
        call("vm_resume", self._handle)

    def snapshot(self, name: Optional[str] = None, *, base: "Optional[Image]" = None, lean: bool = False, store: "Optional[Store]" = None) -> "Image":
        """Saves the running VM as an image that others can be started from. base: store only what differs from it."""
        return Image(call("vm_snapshot", self._handle, name=name, base=None if base is None else base._handle, lean=lean, store=None if store is None else store._handle))

    def fork(self, n: int = 1, *, names: Optional[Sequence[str]] = None) -> "List[VM]":
        """Makes n VMs that go on from this instant, while this one goes on too."""
        r = call("vm_fork", self._handle, n=n, names=None if names is None else list(names))
        return [VM({"vm": v, "id": i, "name": m, "restore_id": s}) for v, i, m, s in zip(r["vms"], r["ids"], r["names"], r["restore_ids"])]

    def info(self) -> Dict[str, Any]:
        """Describes the VM; the keys are those of sm_vm_info."""
        return quick("vm_info", self._handle)

    def stats(self) -> Dict[str, int]:
        """Measures what the VM uses and has used, and asks its guest; the keys are those of sm_vm_stats."""
        return call("vm_stats", self._handle)

    def set_balloon(self, bytes: int) -> None:
        """Asks the guest to give up so many bytes of its memory; 0 returns all of it."""
        quick("vm_set_balloon", self._handle, bytes=bytes)

    def wait(self) -> str:
        """Waits until the VM has ended and tells why, such as "powered off"."""
        return str(call("vm_wait", self._handle)["reason"])

    def stop(self, grace: Optional[float] = None) -> str:
        """Asks the guest to shut down, and stops it by force if it does not within grace seconds (default 10). Tells how it ended."""
        return str(call("vm_stop", self._handle, grace_ms=as_ms(grace))["reason"])

    def kill(self) -> None:
        """Ends the VM at once."""
        quick("vm_kill", self._handle)

    def discard(self) -> None:
        """Like close, but a VM that was acquired from a pool is thrown away."""
        if self._take():
            call("vm_discard", self._handle)


class Image(Handle):
    """What VMs start from: a workload that was brought to readiness and frozen."""

    _kind = "image"

    def __init__(self, made: Dict[str, Any]) -> None:
        super().__init__(made["image"])
        self.id: str = made["id"]
        """The snapshot's identifier."""

    @classmethod
    def from_oci(
        cls, ref: str, *, name: Optional[str] = None, entrypoint: Optional[Sequence[str]] = None, cmd: Optional[Sequence[str]] = None, env: Optional[Env] = None,
        user: Optional[str] = None, workdir: Optional[GuestPath] = None, boot_only: bool = False, memory_mib: Optional[int] = None, vcpus: Optional[int] = None,
        scratch_mib: Optional[int] = None, guest_port: Optional[int] = None, ready: Union[None, str, Sequence[str]] = None,
        warmup: Optional[Sequence[Sequence[str]]] = None, timeout: Optional[float] = None, pull: Optional[str] = None, platform: Optional[str] = None,
        insecure: Optional[Sequence[str]] = None, store: "Optional[Store]" = None, progress: Optional[Progress] = None,
    ) -> "Image":  # fmt: skip
        """Pulls an OCI image and boots it once, brings its workload to readiness and freezes it. If the store has that already, nothing is booted.

        boot_only: start no workload, the VMs only run programs. ready: "port[:N]", "settle[:DURATION]", "none", or a program's arguments that exits with 0.
        warmup: programs that run before the freeze. timeout: seconds. progress: is called with a dict for each step.
        """
        command = None if ready is None or isinstance(ready, str) else list(ready)
        return cls(call(
            "image_from_oci", _of(store), progress, ref=ref, name=name, entrypoint=entrypoint, cmd=cmd, env=as_env(env), user=user,
            workdir=as_path(workdir), boot_only=boot_only, memory_mib=memory_mib, vcpus=vcpus, scratch_mib=scratch_mib, guest_port=guest_port,
            ready=ready if isinstance(ready, str) else None, ready_command=command, warmup=warmup, timeout_ms=as_ms(timeout), pull=pull, platform=platform,
            insecure=insecure,
        ))  # fmt: skip

    @classmethod
    def from_snapshot(cls, name: str, *, verify: Optional[str] = None, store: "Optional[Store]" = None) -> "Image":
        """Opens a snapshot of the store by its ID, the beginning of it, or its name. verify: "once" (default), "always" or "never"."""
        return cls(call("image_from_snapshot", _of(store), name=name, verify=verify))

    def start(
        self, name: Optional[str] = None, *, volumes: Optional[Sequence[str]] = None, mounts: Optional[Sequence[str]] = None, network: bool = False,
        egress: Optional[Sequence[str]] = None, egress_default: Optional[str] = None, network_rate: Optional[int] = None,
        disk_rate: Optional[int] = None, disk_ops: Optional[int] = None, cpu_percent: Optional[int] = None, cgroup: Optional[str] = None, lifetime: Optional[float] = None, idle_timeout: Optional[float] = None,
        timeout: Optional[float] = None,
    ) -> VM:  # fmt: skip
        """Starts a VM, with entropy, clock and host name of its own.

        volumes: disks that are kept in files of the host, FILE:/PATH[:ro][:size=8G]. mounts: directories of the host,
        DIR:/PATH[:ro][:symlinks=opaque|deny|follow]. network: let it reach the public Internet, unless egress says otherwise: rules
        "allow|deny WHAT[:PORTS][/tcp|udp]", of which the first that fits decides; WHAT is an address, a network, a name, *.NAME or *. egress_default:
        "allow" (default) or "deny", for what no rule is about. network_rate: bytes per second, each way. disk_rate, disk_ops: bytes and requests
        per second of each disk. cpu_percent: of the host's CPUs, 100 for one. cgroup: directory of a threaded cgroup for its processors.
        lifetime: it is ended by force after so many seconds. idle_timeout: it is paused when nobody has used it for so many seconds; the next use
        wakes it up. timeout: seconds until it answers. Closing it shuts it down first if it has volumes, for which it gets 5 seconds.
        """
        return VM(call(
            "vm_start", self._handle, name=name, timeout_ms=as_ms(timeout), volumes=as_list("volumes", volumes), mounts=as_list("mounts", mounts),
            network=network, egress=as_list("egress", egress), egress_default=egress_default, network_rate=network_rate, disk_rate=disk_rate,
            disk_ops=disk_ops, cpu_percent=cpu_percent, cgroup=cgroup, lifetime_ms=as_ms(lifetime), idle_timeout_ms=as_ms(idle_timeout),
        ))  # fmt: skip

    def acquire(self) -> VM:
        """Takes a VM from the image's own pool, which keeps one ready. Closing it gives it back."""
        return VM(call("image_acquire", self._handle))

    def pool_stats(self) -> Dict[str, int]:
        """Says what the image's own pool has and has done; the keys are those of sm_pool_stats."""
        return quick("image_pool_stats", self._handle)

    def info(self) -> Dict[str, Any]:
        """Describes the image; the keys are those of sm_image_info."""
        return quick("image_info", self._handle)

    def pool(
        self, *, min: Optional[int] = None, max: Optional[int] = None, idle_timeout: Optional[float] = None, acquire_timeout: Optional[float] = None,
        replace: bool = False, volumes: Optional[Sequence[str]] = None, mounts: Optional[Sequence[str]] = None, network: bool = False,
        egress: Optional[Sequence[str]] = None, egress_default: Optional[str] = None, network_rate: Optional[int] = None,
    ) -> "Pool":  # fmt: skip
        """Makes a pool of VMs: min kept ready, max at most, idle_timeout seconds until a surplus is closed, acquire_timeout seconds to wait for one.

        volumes to network_rate: what each VM has, as for start. Volumes can only be read, and VMs with a network are replaced after each use.
        """
        return Pool(quick(
            "pool_new", self._handle, min=min, max=max, idle_timeout_ms=as_ms(idle_timeout), acquire_timeout_ms=as_ms(acquire_timeout), replace=replace,
            volumes=as_list("volumes", volumes), mounts=as_list("mounts", mounts), network=network, egress=as_list("egress", egress),
            egress_default=egress_default, network_rate=network_rate,
        )["pool"])  # fmt: skip


class Pool(Handle):
    """Keeps VMs of one image ready. The image must stay open as long."""

    _kind = "pool"

    def acquire(self) -> VM:
        """Takes a VM, in microseconds if one is ready. Closing it gives it back, and the next user gets a clean one."""
        return VM(call("pool_acquire", self._handle))

    def stats(self) -> Dict[str, int]:
        """Says what the pool has and has done; the keys are those of sm_pool_stats."""
        return quick("pool_stats", self._handle)


class Store(Handle):
    """Where images and snapshots are kept. The functions that take none use the user's own."""

    _kind = "store"

    def __init__(self, dir: Union[None, str, Path] = None, *, assets: Union[None, str, Path] = None) -> None:
        super().__init__(quick("store_open", 0, dir=as_path(dir), assets=as_path(assets))["store"])

    def pull(
        self, ref: str, *, pull: Optional[str] = None, platform: Optional[str] = None, insecure: Optional[Sequence[str]] = None, progress: Optional[Progress] = None
    ) -> Dict[str, Any]:
        """Makes an OCI image available and describes it."""
        return call("store_pull", self._handle, progress, ref=ref, pull=pull, platform=platform, insecure=insecure)

    def images(self) -> List[Dict[str, Any]]:
        """Lists the OCI images in the store."""
        return list(call("store_images", self._handle)["images"])

    def remove_image(self, ref: str) -> None:
        """Forgets the reference of an OCI image."""
        call("store_remove_image", self._handle, ref=ref)

    def snapshots(self) -> List[Dict[str, Any]]:
        """Lists the snapshots in the store, newest first."""
        return list(call("store_snapshots", self._handle)["snapshots"])

    def inspect(self, name: str) -> Dict[str, Any]:
        """Describes one snapshot."""
        return call("store_inspect", self._handle, name=name)

    def remove(self, name: str) -> None:
        """Deletes a snapshot. VMs that were started from it go on."""
        call("store_remove", self._handle, name=name)

    def prune(self, *, older: Optional[float] = None, max_bytes: Optional[int] = None, unreferenced: bool = False, all: bool = False) -> List[Dict[str, Any]]:
        """Deletes the snapshots that may go, and describes them. older: not used for so many seconds."""
        return list(call("store_prune", self._handle, older_ms=as_ms(older), max_bytes=max_bytes, unreferenced=unreferenced, all=all)["snapshots"])

    def flatten(self, name: str) -> str:
        """Makes a snapshot that holds everything itself from one that holds differences, and returns its ID."""
        return str(call("store_flatten", self._handle, name=name)["id"])


def _of(store: Optional[Store]) -> int:
    return 0 if store is None else store._handle
