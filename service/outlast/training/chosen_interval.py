"""`ChosenInterval`: the time between two saves of an automatic cadence."""

from __future__ import annotations

import time
from typing import Any

from outlast.job.log_events import LogEvent
from outlast.job.save_interval import Failures, SaveCost, first, interval


class ChosenInterval:
    """The seconds between two saves, chosen from what saves cost and how often attempts fail.

    `overhead` is the largest share of the time that saves may cost, from 0 to 1. `failures` are
    those of the job before this attempt.

    Attributes:
        cost: The measured cost of a save.
    """

    def __init__(self, overhead: float, failures: Failures, log: Any) -> None:
        self.cost = SaveCost()
        self._overhead = overhead
        self._before = failures
        self._log = log
        self._began = time.monotonic()
        self._seconds = first(failures)

    def due(self, since: float) -> bool:
        """Return whether a save is due `since` seconds after the last one."""
        return since >= self._seconds

    def written(self, seconds: float) -> None:
        """Note that the last save was durable after `seconds`, and choose anew."""
        cost, before = self.cost, self._before
        cost.written(seconds)
        under_way = before.seconds + time.monotonic() - self._began
        failures = Failures(before.count, under_way, before.lives)
        chosen = interval(cost, failures, self._overhead)
        if not 0.8 <= chosen / (self._seconds or 1e-9) <= 1.25:
            self._log.info(
                LogEvent.SAVE_INTERVAL_CHOSEN,
                seconds=round(chosen, 2),
                cost_ms=round(cost.seconds * 1e3, 1),
                cost_measured=cost.measured,
                overhead=f"{cost.seconds / chosen:.2%}",
                written_in_s=round(cost.writing, 3),
                failures=failures.count,
                mean_time_between_failures_s=round(failures.mean_time_between),
            )
            self._seconds = chosen
