"""The local backend: attempts are child processes, each in its own session.

So Ctrl-C on the terminal reaches only the supervisor, and an attempt can be killed together with
every process that it started.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import outlast
import outlast_checkpoints
from outlast.backends import orphans
from outlast.backends.base import Exit, Handle
from outlast.backends.warm_spares import Child, Reports, Spare, kill_group
from outlast.errors import BackendFailed, SpecInvalid
from outlast.job import process_identity, rank
from outlast.job.preload import PIPE, Order, Preload
from outlast.job.process_identity import SUPERVISOR_PID, Identity
from outlast.job.spec import JobSpec, interpreter
from outlast_checkpoints.errors import AlreadyExists
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage

_PACKAGES: Final = (outlast, outlast_checkpoints)
_INSTALLED: Final = ("site-packages", "dist-packages")


class LocalBackend:
    """Launches attempts as child processes on this machine."""

    def __init__(self) -> None:
        self._children: dict[int, Child] = {}
        self._spare: Spare | None = None
        self._reports: dict[int, Reports] = {}  # of the attempts that began cold
        self._adopts = False

    def launch(self, spec: JobSpec, storage: Storage, attempt: int) -> Handle:
        if storage.capabilities.in_process:
            raise SpecInvalid(
                field="root",
                problem=f"{storage.root} exists in one process only, and attempts are other "
                "processes. Use a folder or a bucket.",
            )
        output = _output_path(storage, attempt)
        try:
            for folder in (output.parent.parent, output.parent):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            child: Child | None = self._warm_child(storage, attempt, output)
            if child is None:
                with open(output, "ab", opener=_private) as file:
                    child = self._cold_child(spec, storage, attempt, file)
        except OSError as error:
            what = interpreter(spec)
            raise BackendFailed(
                backend="local", action=f"start {what!r} in {spec.cwd!r}", reason=str(error)
            ) from error
        self._children[child.pid] = child
        who = process_identity.of_process(child.pid)
        return {
            "pid": who.pid,
            "start": who.start,
            "host": who.host,
            "boot_id": who.boot_id,
            "output": str(output),
        }

    def preload(self, handle: Handle) -> Preload | None:
        reports = self._reports.get(handle["pid"])
        if reports is None and self._spare is not None:
            reports = self._spare.reports
        if reports is None:
            return None
        reports.read()
        return reports.preload

    def prepare(self, spec: JobSpec, preload: Preload) -> None:
        """Keep a spare process that has imported these modules, for the next attempt."""
        if self._spare is not None and self._spare.preload == preload and self._spare.exists():
            return
        self._end_spare()
        if not orphans.adopting():
            self._adopts = orphans.adopt()

        def start(orders: int, pipe: int) -> subprocess.Popen[bytes]:
            arguments = ["outlast.attempt.warm_spare", str(pipe)]
            return _start(spec, arguments, orders, subprocess.DEVNULL, (pipe,))

        with suppress(OSError):  # the next attempt starts cold
            self._spare = Spare(start, preload)

    def close(self) -> None:
        self._end_spare()
        self._close_reports()
        self._reap()
        if self._adopts:
            self._adopts = not orphans.adopt(False)

    def _end_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def _close_reports(self) -> None:
        for reports in self._reports.values():
            reports.close()
        self._reports.clear()

    def _cold_child(self, spec: JobSpec, storage: Storage, attempt: int, output: Any) -> Child:
        arguments = ["outlast.attempt.main", storage.root, str(attempt)]
        self._close_reports()
        if not spec.warm_spare:
            return _start(spec, arguments, subprocess.DEVNULL, output)
        reports = Reports()
        try:
            with reports.sender() as pipe:
                child = _start(
                    spec, arguments, subprocess.DEVNULL, output, (pipe,), {PIPE: str(pipe)}
                )
        except OSError:
            reports.close()
            raise
        self._reports[child.pid] = reports
        return child

    def _warm_child(self, storage: Storage, attempt: int, output: Path) -> Child | None:
        """Turn the spare into this attempt and return it; None when there is no spare."""
        if self._spare is None:
            return None
        fork_next = orphans.adopting()
        order = Order(url=storage.root, attempt=attempt, output=str(output), fork_next=fork_next)
        self._close_reports()
        child = self._spare.become(order)
        if child is None:
            self._end_spare()
        return child

    def poll(self, handle: Handle) -> Exit | None:
        self._reap()
        child = self._children.get(handle["pid"])
        if child is None:
            return Exit() if _identity(handle).gone() else None
        if child.returncode is None:
            # Look without reaping: until it is reaped, pid and process group are certainly ours.
            seen = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if seen is None:
                return None
            if seen.si_code != os.CLD_EXITED or seen.si_status != 0:
                kill_group(child.pid)  # end the processes that the dead attempt started
        code = child.wait()
        return Exit(code=code) if code >= 0 else Exit(signal=-code)

    def signal(self, handle: Handle, signum: int) -> None:
        if self._alive(handle):
            with suppress(ProcessLookupError):
                os.kill(handle["pid"], signum)

    def kill(self, handle: Handle) -> None:
        if self._alive(handle):
            kill_group(handle["pid"])

    def output(self, handle: Handle, start: int = 0) -> bytes:
        try:
            with Path(handle["output"]).open("rb") as file:
                file.seek(start)
                return file.read()
        except FileNotFoundError:
            return b""

    def finish(self, handle: Handle, storage: Storage, attempt: int) -> None:
        if storage.local_path("") is not None:
            return
        with suppress(AlreadyExists):
            storage.create(layout.output_log(attempt), self.output(handle))
        output = Path(handle["output"])
        output.unlink(missing_ok=True)
        with suppress(OSError):
            output.parent.rmdir()

    def _reap(self) -> None:
        """Reap the orphans of ended attempts, if this process has adopted them."""
        known = {pid for pid, child in self._children.items() if child.returncode is None}
        spare = None if self._spare is None else self._spare.child()
        orphans.reap(known if spare is None else known | {spare.pid})

    def _alive(self, handle: Handle) -> bool:
        if handle["pid"] in self._children:
            return self.poll(handle) is None
        who = _identity(handle)
        return who.local and not who.gone()


def _start(
    spec: JobSpec,
    arguments: list[str],
    stdin: int,
    output: Any,
    pass_fds: Collection[int] = (),
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [interpreter(spec), "-P", "-m", *arguments],
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=spec.cwd or None,
        env={**_environment(spec, os.environ), **variables},
        start_new_session=True,
        pass_fds=pass_fds,
    )


def _identity(handle: Handle) -> Identity:
    return Identity(
        host=handle["host"], pid=handle["pid"], boot_id=handle["boot_id"], start=handle["start"]
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def _output_path(storage: Storage, attempt: int) -> Path:
    """Return the path of output.log: in the job's folder, or a temporary one."""
    place = storage.local_path(layout.output_log(attempt))
    if place is not None:
        return place
    return Path(tempfile.mkdtemp(prefix="outlast-")) / "output.log"


def _environment(spec: JobSpec, environ: Mapping[str, str]) -> dict[str, str]:
    env = {**rank.none(environ), **spec.env}
    env.setdefault("PYTHONUNBUFFERED", "1")  # output.log is up to date
    if spec.deterministic:
        # The order of a set of strings must be the same in every attempt.
        env.setdefault("PYTHONHASHSEED", str(spec.seed % 2**32))
    env[SUPERVISOR_PID] = str(os.getpid())
    if (source := source_path()) is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, env.get("PYTHONPATH")]))
    return env


def source_path() -> str | None:
    """Return the source folders that this code runs from; None when it is installed.

    A child process needs them in its PYTHONPATH.
    """
    roots = {Path(str(package.__file__)).resolve().parents[1] for package in _PACKAGES}
    sources = sorted(str(root) for root in roots if root.name not in _INSTALLED)
    return os.pathsep.join(sources) or None
