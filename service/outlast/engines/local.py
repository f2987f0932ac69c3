"""The local engine: a detached supervisor on this machine."""

from __future__ import annotations

import os
import shlex
import signal
from contextlib import suppress

from outlast.engines.base import Handle, Standing
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

    def poll(self, handle: Handle) -> Standing | None:
        who = _identity(handle)
        return None if who.gone() else Standing("running", str(who))

    def stop(self, handle: Handle) -> None:
        who = _identity(handle)
        if who.local and not who.gone():
            with suppress(ProcessLookupError):
                os.kill(who.pid, signal.SIGTERM)

    def again(self, handle: Handle, storage: Storage) -> Handle | None:
        return None


def _identity(handle: Handle) -> Identity:
    return Identity(**{name: handle[name] for name in ("host", "pid", "boot_id", "start")})
