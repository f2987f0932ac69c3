"""The limit on the time that the attempts of a job may take together (`--max-duration`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from outlast.job.events import Claimed, Ended, Resumed
from outlast.job.journal import Entry, Journal
from outlast.job.stop_note import StopNote


def spent(entries: Iterable[Entry]) -> float:
    """Return the seconds that the ended attempts took since the job was last resumed."""
    total, began = 0.0, 0.0
    for entry in entries:
        match entry.event:
            case Resumed():
                total = 0.0
            case Claimed():
                began = entry.at
            case Ended():
                total += max(0.0, entry.at - began)
            case _:
                pass
    return total


class TimeLimit:
    """Asks once for a stop when the time is over.

    Args:
        seconds: The limit; 0 for none.
        clock: Returns monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._attempt = 0
        self._began = 0.0
        self._asked = False

    def look(self, journal: Journal) -> StopNote | None:
        """Return a request to stop if the attempts have taken longer than the limit.

        Args:
            journal: The journal of the job; only what was read of it counts.
        """
        if not self._seconds or self._asked:
            return None
        job = journal.job_after(len(journal))
        if job.attempt != self._attempt:
            self._attempt, self._began = job.attempt, self._clock()
        running = self._clock() - self._began if job.in_flight else 0.0
        known = [journal.entry(seq) for seq in range(1, len(journal) + 1)]
        self._asked = spent(known) + running >= self._seconds
        return StopNote(by=f"--max-duration {self._seconds:g} s") if self._asked else None
