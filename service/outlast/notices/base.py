"""A preemption notice, and the protocol of the clouds that give it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

RESERVE: Final = 2.0  # seconds of a notice that are reserved for the supervisor's own end

OnEvent = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Notice:
    """The announcement that this machine will be taken."""

    cloud: str
    """Short name of the cloud."""
    why: str
    """What will happen, for people."""
    within: float | None
    """Seconds until then when the notice was heard; None if unknown."""
    heard_at: float
    """When the notice was heard, in monotonic seconds."""
    deadline: str | None
    """When the machine will be taken, as text; None if unknown."""

    @classmethod
    def now(cls, cloud: str, why: str, within: float | None) -> Notice:
        """Return a notice that is heard now."""
        deadline = None if within is None else iso(time.time() + within)
        return cls(cloud, why, within, time.monotonic(), deadline)

    def left(self, now: float) -> float | None:
        """Return the seconds left for the training at `now` (monotonic); None if unknown."""
        if self.within is None:
            return None
        return max(0.0, self.heard_at + self.within - RESERVE - now)

    def time_to_leave(self, now: float, grace: float, *, limit: bool) -> float:
        """Return the seconds that a training has to save and leave.

        Args:
            now: Monotonic seconds.
            grace: Grace of the job, used when the notice has no time.
            limit: Whether the grace caps the time of the notice.
        """
        left = self.left(now)
        if left is None:
            return grace
        return min(left, grace) if limit else left

    @property
    def description(self) -> str:
        """What will happen and when, for people."""
        by = "" if self.deadline is None else f", by {self.deadline}"
        return f"{self.cloud}: {self.why}{by}"

    def log_fields(self) -> dict[str, Any]:
        """Return the fields of the log line about this notice."""
        return {
            "cloud": self.cloud,
            "why": self.why,
            "seconds_left": None if self.within is None else round(self.within, 1),
            "deadline": self.deadline,
            "hint": "the training saves and leaves",
        }


class Unanswered(Exception):
    """The metadata server did not answer, or not properly; the text has its answer."""


class Cloud(Protocol):
    """How a cloud announces that it takes this machine."""

    name: str
    """Short name of the cloud."""
    pause: float
    """Seconds between two looks."""

    def look(self, on_event: OnEvent) -> Notice | None:
        """Ask the metadata server once; this may wait for news.

        Args:
            on_event: Logs an event that does not end the training.

        Raises:
            Unanswered: the server does not answer properly.
        """

    def acknowledge(self) -> bool:
        """Tell the cloud that it may take the machine now; return whether it was informed."""


def iso(unix: float) -> str:
    """Return a moment as text, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
