"""What a cloud says, and what it has to be able to do for it to be heard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

RESERVE: Final = 2.0  # seconds of what a notice leaves that are for the supervisor's own end

Tell = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Notice:
    """This machine is about to be taken.

    cloud: its short name. why: for people. within: seconds that are left, None: nobody said.
    heard_at: monotonic seconds. deadline: when it is taken, as text.
    """

    cloud: str
    why: str
    within: float | None
    heard_at: float
    deadline: str | None

    @classmethod
    def now(cls, cloud: str, why: str, within: float | None) -> Notice:
        """Return the notice that is heard at this moment."""
        deadline = None if within is None else iso(time.time() + within)
        return cls(cloud, why, within, time.monotonic(), deadline)

    def left(self, now: float) -> float | None:
        """Return the seconds that are left for a training at `now` (monotonic), None: unknown."""
        if self.within is None:
            return None
        return max(0.0, self.heard_at + self.within - RESERVE - now)

    def time_to_leave(self, now: float, grace: float, *, limit: bool) -> float:
        """Return the seconds that a training has for saving and leaving.

        What the notice leaves goes before the grace, be it less or more; with `limit` only when it
        is less.
        """
        left = self.left(now)
        if left is None:
            return grace
        return min(left, grace) if limit else left

    @property
    def story(self) -> str:
        """What happens and by when, for people."""
        by = "" if self.deadline is None else f", by {self.deadline}"
        return f"{self.cloud}: {self.why}{by}"

    def told(self) -> dict[str, Any]:
        """Return what the log tells of it."""
        return {
            "cloud": self.cloud,
            "why": self.why,
            "seconds_left": None if self.within is None else round(self.within, 1),
            "deadline": self.deadline,
            "hint": "the training saves and leaves",
        }


class Unanswered(Exception):
    """The metadata server does not answer, or not as it should: what it did say."""


class Cloud(Protocol):
    """A cloud's own way to say that it takes this machine."""

    name: str
    pause: float  # seconds between two looks

    def look(self, tell: Tell) -> Notice | None:
        """Ask once, which may wait for news. tell: what is only worth a line in the log.

        Raises `Unanswered`.
        """

    def acknowledge(self) -> bool:
        """Say that the machine may be taken now; return whether that was wanted and said."""


def iso(unix: float) -> str:
    """Return a moment as text, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix))
