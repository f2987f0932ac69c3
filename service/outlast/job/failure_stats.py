"""Counts the failures of a job in its journal."""

from __future__ import annotations

from collections.abc import Iterable

from outlast.job.events import Ended, Started
from outlast.job.journal import Entry
from outlast.job.outcome import Outcome
from outlast.job.save_interval import LIVES, Failures

# Outcomes that would not repeat by themselves, and that nobody asked for.
_FAILURES = frozenset(
    {Outcome.PREEMPTED, Outcome.CRASHED, Outcome.KILLED, Outcome.STALLED, Outcome.LOST}
)


def seen_in(entries: Iterable[Entry]) -> Failures:
    """Return the failures and the total run time of all ended attempts."""
    lives: list[float] = []
    seconds = 0.0
    started: float | None = None
    for entry in entries:
        match entry.event:
            case Started():
                started = entry.at
            case Ended(outcome=outcome):
                # writers' clocks may have been set back
                life = max(0.0, entry.at - started) if started is not None else 0.0
                seconds += life
                if outcome in _FAILURES:
                    lives.append(life)
                started = None
    return Failures(len(lives), seconds, tuple(lives[-LIVES:]))
