"""How often to save, from the cost of a save and the rate of failures. Pure.

Sources: J. W. Young, "A first order approximation to the optimum checkpoint interval",
Communications of the ACM 17(9), 1974; J. T. Daly, "A higher order estimate of the optimum
checkpoint interval for restart dumps", Future Generation Computer Systems 22(3), 2006, eq. 37.
"""

from __future__ import annotations

import math
import statistics
from typing import Final

import msgspec

# One failure within ten minutes is assumed in addition to those seen. So a new job saves often, and
# a job that has run for days without a failure saves seldom.
ASSUMED_UPTIME: Final = 600.0
SHORTEST: Final = 1.0
LONGEST: Final = 600.0  # a save costs little, so at most this much may be lost
UNMEASURED: Final = 3.0  # seconds until the first save, which measures the cost
LIVES: Final = 5  # recent failures that determine the usual life


class Failures(msgspec.Struct, frozen=True):
    """How often the attempts of a job have failed."""

    count: int = 0
    """Number of failures."""
    seconds: float = 0.0
    """Total run time of all attempts."""
    lives: tuple[float, ...] = ()
    """Run times of the last failed attempts in seconds, the newest last."""

    @property
    def mean_time_between(self) -> float:
        """Estimated seconds between two failures."""
        return (self.seconds + ASSUMED_UPTIME) / (self.count + 1)

    @property
    def usual_life(self) -> float:
        """Median run time of recent failed attempts in seconds; infinite before the first."""
        return statistics.median(self.lives[-LIVES:]) if self.lives else math.inf

    @property
    def bearable(self) -> float:
        """Longest seconds between two saves with which such short attempts still advance."""
        return self.usual_life / 4


def daly(cost: float, mean_time: float) -> float:
    """Return Daly's optimal time between two saves, in seconds.

    For a small cost it equals Young's sqrt(2 * cost * mean_time).

    Args:
        cost: Seconds that a save costs the training.
        mean_time: Mean seconds between two failures.
    """
    if cost >= 2 * mean_time:
        return mean_time
    part = math.sqrt(cost / (2 * mean_time))
    return math.sqrt(2 * cost * mean_time) * (1 + part / 3 + part * part / 9) - cost


def interval(cost: SaveCost, failures: Failures, overhead: float) -> float:
    """Return the seconds from one save to the next.

    If attempts die so fast that, within `overhead`, more than a quarter of their life would pass
    between two saves, the optimum for that life is used instead. A save never begins while
    another one is being written.

    Args:
        cost: Measured cost of a save.
        failures: Failures of the job.
        overhead: Largest share of the time that saves may cost, from 0 to 1.
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
    """Return the seconds after which an attempt saves first; that save measures the cost."""
    return min(UNMEASURED, failures.bearable)


class SaveCost:
    """Measures what saves cost the training.

    The cost is the time for which the loop is held, plus the slowdown of steps while the save is
    being written. Until it is measured, the whole writing time counts, as an upper bound.
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
        """Whether steps ran while a save was being written."""
        return self._cost is not None

    @property
    def seconds(self) -> float:
        """The cost of one save in seconds."""
        return self._held + self.writing if self._cost is None else self._cost

    def steps(self, count: int, seconds: float, *, writing: bool) -> None:
        """Record a call of `count` steps. `writing`: whether a save was being written."""
        if not writing:
            pace = seconds / count
            self._pace = pace if self._pace is None else 0.8 * self._pace + 0.2 * pace
        elif self._pace is not None:
            self._excess += seconds - count * self._pace
            self._steps += count

    def held(self, seconds: float) -> None:
        """Record that the loop was held for `seconds` for a save that begins now."""
        self._held, self._excess, self._steps = seconds, 0.0, 0

    def written(self, seconds: float) -> None:
        """Record that the save is durable after `seconds` of writing."""
        self.writing = seconds
        if self._steps:
            cost = self._held + max(0.0, self._excess)
            self._cost = cost if self._cost is None else 0.7 * self._cost + 0.3 * cost
