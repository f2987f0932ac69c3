"""The local engine: a detached supervisor on this machine."""

from __future__ import annotations

import os
import shlex
import signal
from contextlib import suppress
from pathlib import Path

from outlast.engines.base import Handle, QueueState
from outlast.job import process_identity
from outlast.job.process_identity import Identity
from outlast.job.spec import JobSpec
from outlast.supervisor import detached
from outlast_checkpoints.storage.base import Storage


class LocalEngine:
    """Starts supervisors that survive the terminal."""

    def plan(self, spec: JobSpec, storage: Storage) -> str:
        return shlex.join(detached.command(storage))

    def launch(self, spec: JobSpec, storage: Storage) -> Handle:
        who = process_identity.of_process(detached.start_detached(storage.root))
        return {
            "id": str(who.pid),
            "pid": who.pid,
            "host": who.host,
            "boot_id": who.boot_id,
            "start": who.start,
        }

    def poll(self, handle: Handle) -> QueueState | None:
        who = _identity(handle)
        return None if who.gone() else QueueState("running", str(who))

    def stop(self, handle: Handle, storage: Storage) -> None:
        who = _identity(handle)
        if who.pid < 2 or not who.local or who.gone():
            return
        with suppress(ProcessLookupError):
            process = os.pidfd_open(who.pid)  # from here on the pid cannot become another's
            try:
                if who.start is not None and not who.gone() and _supervises(who.pid, storage):
                    signal.pidfd_send_signal(process, signal.SIGTERM)
            finally:
                os.close(process)

    def requeue(self, handle: Handle, storage: Storage) -> Handle | None:
        return None


def _supervises(pid: int, storage: Storage) -> bool:
    """Return whether a process is a detached supervisor of the job in `storage`, and ours."""
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    module = [word.encode() for word in detached.command(storage)[-3:]]
    return owner == os.geteuid() and words[-4:-1] == module


def _identity(handle: Handle) -> Identity:
    return Identity(**{name: handle[name] for name in ("host", "pid", "boot_id", "start")})
