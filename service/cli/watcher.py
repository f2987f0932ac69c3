"""What watches a job for a person: the supervisor's observer, and a voice of its own."""

from __future__ import annotations

from typing import Any

from service.lifecycle import Job, describe
from service.logs import LEVELS, render
from service.supervisor import Observer

# The state says these too, and better.
_SAID_BY_STATE = frozenset({"attempt ended", "job failed", "script failed"})


class Watcher(Observer):
    """An observer that can also say something itself, and is closed when the job rests."""

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

    Warnings and errors are shown at once; the rest is for `holdfast logs`.
    """
    if LEVELS.get(str(row.get("level")), 0) < LEVELS["warning"]:
        return ""
    return "" if row.get("event") in _SAID_BY_STATE else render(row, colour=colour)
