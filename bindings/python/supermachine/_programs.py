"""Programs of VMs."""

from __future__ import annotations

from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Sequence

from ._handle import Handle, as_socket
from ._native import call, quick
from ._options import Args, Command, Env, Files, GuestPath, Limits, as_args, as_commands, as_env, as_files, as_limits, as_ms, as_path
from ._results import Chain, Exit, ExitError, Program, Result, Spawned, as_chain, as_exit, as_program, as_result


class Process(Handle):
    """A program that runs in a VM. Iterating over it gives the lines that it writes to stdout."""

    _kind = "exec"

    def __init__(self, started: Dict[str, Any]) -> None:
        super().__init__(started["exec"])
        self.id: int = started["id"]
        """Its number in the guest, for VM.attach."""
        self.pid: int = started["pid"]
        """Process ID in the guest."""
        self.stdin = self._stream(started["stdin"], "wb")
        """A binary file to write to, closed to end the input; None if it was not asked for."""
        self.stdout = self._stream(started["stdout"], "rb")
        """A binary file to read from; None if it was not asked for."""
        self.stderr = self._stream(started["stderr"], "rb")
        """A binary file to read from; None if it was not asked for."""

    @staticmethod
    def _stream(fd: int, mode: Any) -> Optional[BinaryIO]:
        if fd < 0:
            return None
        with as_socket(fd) as s:  # the file keeps the descriptor open
            f: BinaryIO = s.makefile(mode)
            return f

    def wait(self) -> Exit:
        """Waits for the program's end. What it wrote can still be read."""
        return Exit(**as_exit(call("exec_wait", self._handle)))

    def signal(self, name: str) -> None:
        """Sends a signal, such as "TERM", to the program's process group."""
        quick("exec_signal", self._handle, signal=name)

    def kill(self) -> None:
        """Ends the program, and its background children, at once."""
        self.signal("KILL")

    def resize(self, rows: int, cols: int) -> None:
        """Changes the size of the program's terminal."""
        quick("exec_resize", self._handle, rows=rows, cols=cols)

    def detach(self) -> None:
        """Has the program run on by itself: its streams end, wait raises a CanceledError, and VM.attach attaches to it. Of an attachment it ends that alone."""
        call("exec_detach", self._handle)

    def close(self) -> None:
        """Kills the program if it still runs and was not detached, or ends an attachment, and closes the streams."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass  # what was buffered has nobody to read it
        super().close()

    def __iter__(self) -> Iterator[bytes]:
        if self.stdout is None:
            raise ValueError("stdout was not asked for")
        return iter(self.stdout)


class Programs(Handle):
    """The programs of a VM."""

    def run(
        self, args: Args, *, input: Optional[bytes] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
        timeout: Optional[float] = None, limits: Optional[Limits] = None, max_output: Optional[int] = None, check: bool = False,
    ) -> Result:  # fmt: skip
        """Runs a program to its end and collects what it writes, up to 64 MiB of each stream.

        input: what it reads. env: over the image's environment. timeout: seconds, after which it is killed and the result says timed_out.
        limits: as setrlimit has them, {"nofile": 1024, "as": (soft, "unlimited")} or ["nofile=1024"]. max_output: keep so many bytes of each stream
        and drop the rest; without it more than 64 MiB is an error. check: raise an ExitError unless it exits with 0.
        """
        argv = as_args(args)
        result = as_result(call(
            "vm_run", self._handle, args=argv, stdin=input, env=as_env(env), workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout),
            limits=as_limits(limits), max_output=max_output,
        ))  # fmt: skip
        if check and result.code != 0:
            raise ExitError(argv, result)
        return result

    def exec(
        self, args: Args, *, stdin: bool = False, stdout: bool = True, stderr: bool = False, tty: bool = False, rows: Optional[int] = None,
        cols: Optional[int] = None, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None,
        timeout: Optional[float] = None, limits: Optional[Limits] = None,
    ) -> Process:  # fmt: skip
        """Starts a program and returns once it runs. stdin, stdout, stderr: which streams are wanted. tty: run it on a terminal."""
        return Process(call(
            "vm_exec", self._handle, args=as_args(args), stdin=stdin, stdout=stdout, stderr=stderr, tty=tty, rows=rows, cols=cols, env=as_env(env),
            workdir=as_path(workdir), user=user, timeout_ms=as_ms(timeout), limits=as_limits(limits),
        ))  # fmt: skip

    def spawn(
        self, args: Args, *, stdin: bool = False, tty: bool = False, rows: Optional[int] = None, cols: Optional[int] = None, env: Optional[Env] = None,
        workdir: Optional[GuestPath] = None, user: Optional[str] = None, timeout: Optional[float] = None, limits: Optional[Limits] = None,
    ) -> Spawned:  # fmt: skip
        """Starts a program that runs by itself: the guest keeps the end of its output, up to 256 KiB, and how it ends, for attach.

        stdin: leave its input open for who attaches.
        """
        r = call(
            "vm_spawn", self._handle, args=as_args(args), stdin=stdin, tty=tty, rows=rows, cols=cols, env=as_env(env), workdir=as_path(workdir), user=user,
            timeout_ms=as_ms(timeout), limits=as_limits(limits),
        )  # fmt: skip
        return Spawned(r["id"], r["pid"])

    def attach(self, id: int, *, stdin: bool = False, stdout: bool = True, stderr: bool = False) -> Process:
        """Attaches to a program that runs by itself: what the guest has kept of its output comes first, then what it writes.

        Any number may be attached; closing ends the attachment alone. Once one has got the exit status the guest forgets the program.
        """
        return Process(call("vm_attach", self._handle, id=id, stdin=stdin, stdout=stdout, stderr=stderr))

    def programs(self) -> List[Program]:
        """Lists the programs that run, and those that run by themselves, have ended, and whose exit status nobody has got: the oldest first, 4096 at most."""
        return [as_program(p) for p in call("vm_programs", self._handle)["programs"]]

    def chain(
        self, commands: Sequence[Command], *, files: Optional[Files] = None, continue_on_error: bool = False, timeout: Optional[float] = None,
        max_output: Optional[int] = None,
    ) -> Chain:  # fmt: skip
        """Writes files and runs programs one after another, until one of them fails.

        commands: each a list of arguments, or a dict with args and any of env, workdir, user, timeout, limits. files: the contents by path, or a list of
        dicts with path, data, mode, owner. timeout: for all together. max_output: of each program, as for run.
        """
        return as_chain(call(
            "vm_chain", self._handle, commands=as_commands(commands), files=as_files(files), continue_on_error=continue_on_error, timeout_ms=as_ms(timeout),
            max_output=max_output,
        ))  # fmt: skip

    def start_workload(
        self, args: Args, *, env: Optional[Env] = None, workdir: Optional[GuestPath] = None, user: Optional[str] = None, limits: Optional[Limits] = None
    ) -> None:
        """Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped."""
        call("vm_start_workload", self._handle, args=as_args(args), env=as_env(env), workdir=as_path(workdir), user=user, limits=as_limits(limits))

    def logs(self) -> Process:
        """Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing ends the following alone."""
        return Process(call("vm_follow", self._handle))
