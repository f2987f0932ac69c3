"""Kills attempts at chosen steps; their heartbeat has the pid."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outlast.job import heartbeat
from outlast.job.journal import Journal

if TYPE_CHECKING:
    from outlast.job.heartbeat import Beat
    from outlast_checkpoints.storage.base import Storage

LOOK_EVERY = 0.02  # seconds between two looks


@dataclass(frozen=True)
class Killed:
    """An attempt that was killed."""

    attempt: int
    """Number of the attempt."""
    pid: int
    """Its process id."""
    step: int
    """Step in its last heartbeat."""
    saved_at: int
    """Step of its last checkpoint."""


def kill_next(
    storage: Storage, part: float, after: int, running: Callable[[], bool]
) -> Killed | None:
    """Kill the next attempt once it has done a part of its steps; return None if the job ends.

    Args:
        storage: Storage of the job.
        part: Share of all steps, from 0 to 1.
        after: Only attempts with a higher number are killed.
        running: Returns whether the job still runs.
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
    # Kill between two checkpoints, so that steps have to be repeated.
    return beat.step >= part * beat.total_steps and beat.step > beat.last_checkpoint_at_step


def _kill(beat: Beat) -> bool:
    """Send SIGKILL to the process that wrote the heartbeat, unless its pid was reused."""
    process = beat.process
    if not process.is_running():
        return False
    try:
        os.kill(beat.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
