"""The result of an audit."""

from __future__ import annotations

import msgspec

from outlast.audit.comparison import HISTORY, Difference
from outlast.audit.interval import Interval


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit has found."""

    job: str
    """Name of the job."""
    interval: Interval
    """What was trained again."""
    differences: list[Difference] = []
    """What differs, the first one first; none if the training is exact."""
    compared: int = 0
    """Number of arrays and values that were compared."""
    seconds: float = 0.0
    """How long the audit took."""
    machine_changed: str | None = None
    """What differs from the machine of the job's first attempt; None if nothing."""
    written: list[str] = []
    """Files outside of the audit's folder that the script opened for writing."""

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    @property
    def seen_at(self) -> str | None:
        """The first history row that differs, for example "step 41"; None if none does."""
        return next((d.path for d in self.differences if d.part == HISTORY), None)

    @property
    def by_part(self) -> dict[str, list[Difference]]:
        """The differences by part of the state."""
        found: dict[str, list[Difference]] = {}
        for difference in self.differences:
            found.setdefault(difference.part, []).append(difference)
        return found
