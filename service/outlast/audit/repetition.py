"""Trains an interval again: the attempt of an audit, launched and watched."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from outlast import backends
from outlast.attempt import written_files
from outlast.backends.base import Exit
from outlast.errors import AuditFailed, BackendFailed
from outlast.job import heartbeat
from outlast.job.heartbeat import Watch
from outlast.job.outcome import judge
from outlast.job.spec import JobSpec
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded

_POLL: Final = 0.05  # seconds
_TAIL: Final = 1500  # characters of the script's output in an error


@dataclass(frozen=True)
class Repetition:
    """What the attempt of an audit came to."""

    loaded: Loaded
    """The checkpoint that it saved at its end."""
    machine_changed: str | None
    """What differs from the machine of the job's first attempt."""
    written: list[str] = field(default_factory=list)
    """Other files that the script opened for writing."""


def repeat(spec: JobSpec, storage: Storage, attempt: int, first: CheckpointId) -> Repetition:
    """Train from checkpoint `first` to the job's audit target; return what was saved there.

    Args:
        spec: Spec of the temporary job.
        storage: Storage of the temporary job.
        attempt: Number of the attempt, larger than that of `first`.
        first: The checkpoint from which it trains.

    Raises:
        AuditFailed: the attempt did not come to the end of the interval.
    """
    end, output = _train(spec, storage, attempt)
    store = CheckpointStore(storage)
    saved = [found for found in store.ids() if found.attempt == attempt and found > first]
    beat = heartbeat.read(storage, attempt)
    if not saved:
        error = None if beat is None else beat.error
        _, reason = judge(end.code, end.signal, error)
        raise AuditFailed(job=spec.job, reason=reason, output=_last_lines(output))
    changed = None if beat is None else beat.machine_changed
    return Repetition(store.load(saved[-1]), changed, written_files.load(storage))


def _train(spec: JobSpec, storage: Storage, attempt: int) -> tuple[Exit, bytes]:
    backend = backends.get("local")
    handle = backend.launch(spec, storage, attempt)
    watch = Watch(time.monotonic())
    try:
        while (end := backend.poll(handle)) is None:
            time.sleep(_POLL)
            silent = watch.observe(heartbeat.read(storage, attempt), time.monotonic())
            if spec.stall_timeout and silent.progress > spec.stall_timeout:
                reason = f"no progress for {silent.progress:.0f} s"
                output = _last_lines(backend.output(handle))
                raise AuditFailed(job=spec.job, reason=reason, output=output)
        return end, backend.output(handle)
    finally:
        with suppress(BackendFailed):
            backend.kill(handle)
            while backend.poll(handle) is None:
                time.sleep(_POLL)
        backend.close()


def _last_lines(output: bytes) -> str:
    text = output.decode(errors="replace").strip()[-_TAIL:]
    return f" The script's output ends with:\n{text}" if text else ""
