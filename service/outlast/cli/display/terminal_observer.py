"""What watches a job for a person: the supervisor's observer, and a voice of its own."""

from __future__ import annotations

from typing import Any

from outlast.cli.display import units
from outlast.job.heartbeat import Beat
from outlast.job.lifecycle import Job, describe
from outlast.job.log_events import LogEvent
from outlast.job.logs import LEVELS, render
from outlast.supervisor.supervisor import Observer

# The state says these too, and better.
_SAID_BY_STATE = frozenset({LogEvent.ATTEMPT_ENDED, LogEvent.JOB_FAILED, LogEvent.SCRIPT_FAILED})


class TerminalObserver(Observer):
    """An observer that can also say something itself, and is closed when the job rests."""

    _resumed = 0

    def tell_resumed(self, beat: Beat) -> None:
        """Say, once an attempt, what it goes on from."""
        if beat.restored_from is not None and beat.attempt != self._resumed:
            self._resumed = beat.attempt
            at = (
                beat.last_checkpoint_at_step if beat.last_checkpoint == beat.restored_from else None
            )
            step = "" if at is None else f" (step {units.number(at)})"
            self.say(f"attempt {beat.attempt} goes on from {beat.restored_from}{step}")

    def say(self, text: str) -> None:
        """Say one thing, with the time."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more is shown."""


def state(job: Job) -> str:
    """Return the job's state in one line; that it is ours goes without saying."""
    return describe(job.evolve(owner=None))


def trouble(row: dict[str, Any], *, colour: bool = False) -> str:
    """Return what a row of the log has to say to somebody who watches, "" for nothing.

    Warnings and errors are shown at once; the rest is for `outlast logs`.
    """
    if LEVELS.get(str(row.get("level")), 0) < LEVELS["warning"]:
        return ""
    return "" if row.get("event") in _SAID_BY_STATE else render(row, colour=colour)
