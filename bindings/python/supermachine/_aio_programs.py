"""Programs of VMs, for asyncio."""

from __future__ import annotations

from typing import Any, AsyncIterator, Dict, List, Optional, Sequence

from ._aio import Handle, Stream, call, open_streams
from ._native import quick
from ._options import Args, Command, Env, Files, GuestPath, Limits, as_args, as_commands, as_env, as_files, as_limits, as_ms, as_path
from ._results import Chain, Exit, ExitError, Program, Result, Spawned, as_chain, as_exit, as_program, as_result


class Process(Handle):
    """A program that runs in a VM. Async iteration gives the lines that it writes to stdout."""

    _kind = "exec"

    def __init__(self, started: Dict[str, Any], stdin: Optional[Stream], stdout: Optional[Stream], stderr: Optional[Stream]) -> None:
        super().__init__(started["exec"])
        self.id: int = started["id"]
        """Its number in the guest, for VM.attach."""
        self.pid: int = started["pid"]
        """Process ID in the guest."""
        self.stdin = stdin[1] if stdin else None
        """Write to it, await drain(), and close it to end the input; None if it was not asked for."""
        self.stdout = stdout[0] if stdout else None
        """Read from it until its end; None if it was not asked for."""
        self.stderr = stderr[0] if stderr else None
        """Read from it until its end; None if it was not asked for."""
        self._writers = [s[1] for s in (stdin, stdout, stderr) if s]

    async def wait(self) -> Exit:
        """Awaits the program's end. What it wrote can still be read."""
        return Exit(**as_exit(await call("exec_wait", self._handle)))

    def signal(self, name: str) -> None:
        """Sends a signal, such as "TERM", to the program's process group."""
        quick("exec_signal", self._handle, signal=name)

    def kill(self) -> None:
        """Ends the program, and its background children, at once."""
        self.signal("KILL")

    def resize(self, rows: int, cols: int) -> None:
        """Changes the size of the program's terminal."""
        quick("exec_resize", self._handle, rows=rows, cols=cols)

    async def detach(self) -> None:
        """Has the program run on by itself: its streams end, wait raises a CanceledError, and VM.attach attaches to it. Of an attachment it ends that alone."""
        await call("exec_detach", self._handle)

    async def aclose(self) -> None:
        """Kills the program if it still runs and was not detached, or ends an attachment, and closes the streams."""
        for w in self._writers:
            w.close()
        await super().aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self.stdout is None:
            raise ValueError("stdout was not asked for")
        async for line in self.stdout:
            yield line


async def _process(started: Dict[str, Any]) -> Process:
    return Process(started, *await open_streams(started, "stdin", "stdout", "stderr"))


class Programs(Handle):
    """The programs of a VM."""

    async def run(
        self, args: Args, *, input: Optional[bytes] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
        timeout: Optional[float] = None, limits: Optional[Limits] = None, max_output: Optional[int] = None, check: bool = False,
    ) -> Result:  # fmt: skip
        """Runs a program to its end and collects what it writes, up to 64 MiB of each stream.

        input: what it reads. env: over the image's environment. timeout: seconds, after which it is killed and the result says timed_out.
        limits: as setrlimit has them, {"nofile": 1024, "as": (soft, "unlimited")} or ["nofile=1024"]. max_output: keep so many bytes of each stream
        and drop the rest; without it more than 64 MiB is an error. check: raise an ExitError unless it exits with 0.

        The program is killed if the coroutine is canceled.
        """
        argv = as_args(args)
        result = as_result(await call(
            "vm_run", self._handle, args=argv, stdin=input, env=as_env(env), workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout),
            limits=as_limits(limits), max_output=max_output,
        ))  # fmt: skip
        if check and result.code != 0:
            raise ExitError(argv, result)
        return result

    async def exec(
        self, args: Args, *, stdin: bool = False, stdout: bool = True, stderr: bool = False, tty: bool = False, rows: Optional[int] = None,
        cols: Optional[int] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
        timeout: Optional[float] = None, limits: Optional[Limits] = None,
    ) -> Process:  # fmt: skip
        """Starts a program and returns once it runs. stdin, stdout, stderr: which streams are wanted. tty: run it on a terminal."""
        return await _process(await call(
            "vm_exec", self._handle, args=as_args(args), stdin=stdin, stdout=stdout, stderr=stderr, tty=tty, rows=rows, cols=cols, env=as_env(env),
            workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout), limits=as_limits(limits),
        ))  # fmt: skip

    async def spawn(
        self, args: Args, *, stdin: bool = False, tty: bool = False, rows: Optional[int] = None, cols: Optional[int] = None, env: Optional[Env] = None,
        workdir: Optional[GuestPath] = None, user: Optional[str] = None, timeout: Optional[float] = None, limits: Optional[Limits] = None,
    ) -> Spawned:  # fmt: skip
        """Starts a program that runs by itself: the guest keeps the end of its output, up to 256 KiB, and how it ends, for attach.

        stdin: leave its input open for who attaches.
        """
        r = await call(
            "vm_spawn", self._handle, args=as_args(args), stdin=stdin, tty=tty, rows=rows, cols=cols, env=as_env(env), workdir=as_path(workdir), user=user,
            timeout_ms=as_ms(timeout), limits=as_limits(limits),
        )  # fmt: skip
        return Spawned(r["id"], r["pid"])

    async def attach(self, id: int, *, stdin: bool = False, stdout: bool = True, stderr: bool = False) -> Process:
        """Attaches to a program that runs by itself: what the guest has kept of its output comes first, then what it writes.

        Any number may be attached; closing ends the attachment alone. Once one has got the exit status the guest forgets the program.
        """
        return await _process(await call("vm_attach", self._handle, id=id, stdin=stdin, stdout=stdout, stderr=stderr))

    async def programs(self) -> List[Program]:
        """Lists the programs that run, and those that run by themselves, have ended, and whose exit status nobody has got: the oldest first, 4096 at most."""
        return [as_program(p) for p in (await call("vm_programs", self._handle))["programs"]]

    async def chain(
        self, commands: Sequence[Command], *, files: Optional[Files] = None, continue_on_error: bool = False, timeout: Optional[float] = None,
        max_output: Optional[int] = None,
    ) -> Chain:  # fmt: skip
        """Writes files and runs programs one after another, until one of them fails.

        commands: each a list of arguments, or a dict with args and any of env, workdir, user, timeout, limits. files: the contents by path, or a list of
        dicts with path, data, mode, owner. timeout: for all together. max_output: of each program, as for run.
        """
        return as_chain(await call(
            "vm_chain", self._handle, commands=as_commands(commands), files=as_files(files), continue_on_error=continue_on_error, timeout_ms=as_ms(timeout),
            max_output=max_output,
        ))  # fmt: skip

    async def start_workload(
        self, args: Args, *, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None, limits: Optional[Limits] = None
    ) -> None:
        """Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped."""
        await call("vm_start_workload", self._handle, args=as_args(args), env=as_env(env), workdir=as_path(workdir), user=user, limits=as_limits(limits))

    async def logs(self) -> Process:
        """Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing ends the following alone."""
        return await _process(await call("vm_follow", self._handle))
