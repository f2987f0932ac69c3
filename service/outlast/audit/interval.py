"""Which interval of a training an audit trains again. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from outlast.errors import AuditImpossible
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import CheckpointId

HELP = "'latest', 'step:N' for the interval that contains step N, or 'phase:N' for its newest one."


class At(NamedTuple):
    """Which interval is wanted."""

    phase: int | None = None
    """Index of its phase; None for the newest phase that has such an interval."""
    step: int | None = None
    """A step in it, from 1; None for the newest interval."""

    @classmethod
    def parse(cls, text: str) -> At:
        """Parse "latest", "step:N" or "phase:N". Raises `UsageError`."""
        if text == "latest":
            return cls()
        match = re.fullmatch(r"(step|phase):([0-9]{1,18})", text)
        if match is None or match[0] == "step:0":
            raise UsageError(field="--at", problem=f"invalid interval {text!r}", hint=f"Use {HELP}")
        return cls(step=int(match[2])) if match[1] == "step" else cls(phase=int(match[2]))

    def __str__(self) -> str:
        if self.phase is not None:
            return f"in phase {self.phase} with steps between them"
        if self.step is not None:
            return f"around step {self.step}"
        return "of one phase with steps between them"


class Interval(NamedTuple):
    """The steps between two checkpoints of one phase."""

    first: CheckpointId
    """The checkpoint from which the audit trains."""
    last: CheckpointId
    """The checkpoint that the audit compares with."""

    def __str__(self) -> str:
        return f"steps {self.first.step + 1} to {self.last.step} of phase {self.first.phase}"


def choose(ids: Iterable[CheckpointId], job: str, at: At) -> Interval:
    """Return the interval to train again.

    It begins and ends at two checkpoints of one phase with steps between them. Of several
    checkpoints at the last step, the newest counts, so that the end of an epoch is audited too.

    Args:
        ids: The checkpoints of the job's lineage.
        job: Name of the job, for the error.
        at: Which interval is wanted.

    Raises:
        AuditImpossible: no two checkpoints enclose such an interval.
    """
    ordered = sorted(ids)
    phases = {found.phase for found in ordered if at.phase in (None, found.phase)}
    for phase in sorted(phases, reverse=True):
        of_phase = [found for found in ordered if found.phase == phase]
        ends = sorted({found.step for found in of_phase if found.step >= (at.step or 1)})
        if not ends:
            continue
        end = ends[-1] if at.step is None else ends[0]
        before = [found for found in of_phase if found.step < end]
        if before:
            last = [found for found in of_phase if found.step == end][-1]
            return Interval(before[-1], last)
    raise AuditImpossible(
        job=job,
        problem=f"it has no two checkpoints {at}",
        hint="Save more often (--save-every) and keep at least two checkpoints (--keep last:2). "
        "`outlast checkpoints` lists them; of a finished phase, only the end is kept for sure.",
    )


def following(ids: Iterable[CheckpointId], first: CheckpointId) -> Interval | None:
    """Return the interval from `first` to the next checkpoint of its phase; None if there is none.

    Args:
        ids: The checkpoints of the job's lineage.
        first: A checkpoint that may have been deleted meanwhile.
    """
    later = (found for found in ids if found.phase == first.phase and found.step > first.step)
    last = min(later, default=None)
    return None if last is None else Interval(first, last)
