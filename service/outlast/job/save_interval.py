"""How often to save, from what a save costs and how often attempts die: pure.

Sources: J. W. Young, "A first order approximation to the optimum checkpoint interval",
Communications of the ACM 17(9), 1974; J. T. Daly, "A higher order estimate of the optimum
checkpoint interval for restart dumps", Future Generation Computer Systems 22(3), 2006, eq. 37.
"""

from __future__ import annotations

import math
import statistics
from typing import Final

import msgspec

# One failure within ten minutes is assumed beside what is seen: a job that is new saves often, and
# one that has run for days without a failure seldom.
ASSUMED_UPTIME: Final = 600.0
SHORTEST: Final = 1.0
LONGEST: Final = 600.0  # a save costs little: more than this need never be lost
UNMEASURED: Final = 3.0  # so soon comes the save that shows what one costs
LIVES: Final = 5  # recent failures that show how long attempts live


class Failures(msgspec.Struct, frozen=True):
    """How often attempts of a job ended otherwise than they should.

    count: in `seconds` of all attempts. lives: seconds that those lived which failed last, the
    newest last.
    """

    count: int = 0
    seconds: float = 0.0
    lives: tuple[float, ...] = ()

    @property
    def mean_time_between(self) -> float:
        """Seconds between two failures, estimated."""
        return (self.seconds + ASSUMED_UPTIME) / (self.count + 1)

    @property
    def usual_life(self) -> float:
        """Seconds that attempts which fail have lately lived; infinite before the first."""
        return statistics.median(self.lives[-LIVES:]) if self.lives else math.inf

    @property
    def bearable(self) -> float:
        """Seconds between two saves with which attempts that die so soon come further still."""
        return self.usual_life / 4


def daly(cost: float, mean_time: float) -> float:
    """Return Daly's optimum of the time between two saves.

    cost: seconds that a save takes from the training. mean_time: seconds between two failures.
    For a small cost it is Young's sqrt(2 * cost * mean_time).
    """
    if cost >= 2 * mean_time:
        return mean_time
    part = math.sqrt(cost / (2 * mean_time))
    return math.sqrt(2 * cost * mean_time) * (1 + part / 3 + part * part / 9) - cost


def interval(cost: SaveCost, failures: Failures, overhead: float) -> float:
    """Return the seconds from one save to the next.

    overhead: the share of the time that saves may take at most. Where attempts die so fast that
    within this bound more than a quarter of their life would pass between two saves, it yields:
    what is best for that life counts. A save is never begun while another is written.
    """
    wanted = daly(cost.seconds, failures.mean_time_between)
    bounded = max(min(max(wanted, SHORTEST), LONGEST), cost.seconds / overhead)
    if not cost.measured:
        bounded = min(bounded, UNMEASURED)
    if bounded > failures.bearable:
        best = daly(cost.seconds, failures.usual_life)
        bounded = min(max(best, SHORTEST), failures.bearable)
    return max(bounded, 2 * cost.writing)


def first(failures: Failures) -> float:
    """Return the seconds after which an attempt saves for the first time.

    That save shows what one costs. What the attempt went on from is saved already.
    """
    return min(UNMEASURED, failures.bearable)


class SaveCost:
    """What saves have cost the training so far.

    While a save is being written the steps may be slower than otherwise; what they take more,
    and the time that the loop was held, is the save's cost. Until one was measured the whole
    writing counts, which is the most that it can be.
    """

    def __init__(self) -> None:
        self.writing = 0.0  # seconds until durable, of the last save
        self._pace: float | None = None  # seconds a step while nothing is written
        self._excess = 0.0
        self._held = 0.0
        self._cost: float | None = None
        self._steps = 0

    @property
    def measured(self) -> bool:
        """Whether steps were taken while a save was being written."""
        return self._cost is not None

    @property
    def seconds(self) -> float:
        """The cost of a save."""
        return self._held + self.writing if self._cost is None else self._cost

    def steps(self, count: int, seconds: float, *, writing: bool) -> None:
        """Take in a call of so many steps. writing: a save was being written meanwhile."""
        if not writing:
            pace = seconds / count
            self._pace = pace if self._pace is None else 0.8 * self._pace + 0.2 * pace
        elif self._pace is not None:
            self._excess += seconds - count * self._pace
            self._steps += count

    def held(self, seconds: float) -> None:
        """Take in that the loop was held for a save, which begins now."""
        self._held, self._excess, self._steps = seconds, 0.0, 0

    def written(self, seconds: float) -> None:
        """Take in that the save is durable, after so many seconds of writing."""
        self.writing = seconds
        if self._steps:
            cost = self._held + max(0.0, self._excess)
            self._cost = cost if self._cost is None else 0.7 * self._cost + 0.3 * cost
