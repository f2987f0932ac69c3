"""`kill -9` at chosen steps: the attempt's process is found by its heartbeat."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlast.job import heartbeat
from outlast.job.journal import Journal
from outlast.job.process_identity import Identity

if TYPE_CHECKING:
    from outlast.job.heartbeat import Beat
    from outlast_checkpoints.storage.base import Storage

LOOK_EVERY = 0.02  # seconds


@dataclass(frozen=True)
class Killed:
    """An attempt that was killed; step: the last that it told of."""

    attempt: int
    pid: int
    step: int
    saved_at: int


def kill_next(
    storage: Storage, part: float, after: int, running: Callable[[], bool]
) -> Killed | None:
    """Kill the first attempt beyond `after` once it is past `part` (0 to 1) of the steps.

    running: whether the job still goes on; when not, None is returned.
    """
    while running():
        beat = _newest(storage, after)
        if beat is not None and _due(beat, part) and _kill(beat):
            return Killed(beat.attempt, beat.pid, beat.step, beat.last_checkpoint_at_step or 0)
        time.sleep(LOOK_EVERY)
    return None


def _newest(storage: Storage, after: int) -> Beat | None:
    entry = Journal(storage).newest()
    if entry is None or entry.attempt <= after:
        return None
    return heartbeat.read(storage, entry.attempt)


def _due(beat: Beat, part: float) -> bool:
    if beat.ended is not None or beat.total_steps is None or beat.last_checkpoint_at_step is None:
        return False
    # Between two checkpoints: steps have to be done again, which is the point.
    return beat.step >= part * beat.total_steps and beat.step > beat.last_checkpoint_at_step


def _kill(beat: Beat) -> bool:
    """Send SIGKILL to the process that wrote the beat, and to no other that has its number."""
    process = Identity(host=beat.host, pid=beat.pid, boot_id=beat.boot_id, start=beat.process_start)
    if not process.at_work():
        return False
    try:
        os.kill(beat.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
