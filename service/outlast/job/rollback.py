"""Rolling a training back before a fault, and leaving out the batches around it. Pure.

The batches that are left out depend on the fault alone, never on which checkpoints there are. So a
training that is killed at any point ends as one that was not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import CheckpointId

DEFAULT: Final = "back:1,skip:1,max:3"
_HINT: Final = (
    f"Use some of back:N, skip:N and max:N with commas between them, for example {DEFAULT!r}. "
    "back and max may be 0, skip is at least 1."
)
_FIELDS: Final = {"back": "back", "skip": "skip", "max": "most"}  # by the name in a text
_PART: Final = re.compile(r"(back|skip|max):(\d{1,9})")


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A step whose loss is not finite."""

    phase: int
    """Index of the phase, from 0."""
    step: int
    """Number of the step in the phase, from 1."""
    epoch: int
    """Its epoch, from 0."""
    batch: int
    """Index of its batch in the epoch, from 0."""
    value: str
    """The loss: "nan", "inf" or "-inf"."""

    def __str__(self) -> str:
        return (
            f"the loss became {self.value} at step {self.step} "
            f"(epoch {self.epoch}, batch {self.batch})"
        )


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """The decision to continue before a fault, without some batches."""

    attempt: int
    """The attempt that met the fault; the next one continues before it."""
    fault: Fault
    """The fault."""
    first: int
    """The first step whose batch is left out, from 1."""
    last: int
    """The last step whose batch is left out."""

    @property
    def limit(self) -> tuple[int, int]:
        """Phase and step of the last state before what is left out."""
        return self.fault.phase, self.first - 1

    def __str__(self) -> str:
        one = self.first == self.last
        steps = f"step {self.first}" if one else f"steps {self.first} to {self.last}"
        return f"{self.fault}; the job continues before it and leaves out {steps}"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollback leaves out, and how often the same place may need one."""

    back: int = 1
    """Batches before the faulty one to leave out."""
    skip: int = 1
    """Batches from the faulty one on to leave out."""
    most: int = 3
    """Rollbacks at one place; one more fault there ends the job."""

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Parse for example "back:100,skip:200,max:3". Raises `UsageError`."""
        given: dict[str, int] = {}  # by field
        for part in text.replace(" ", "").split(","):
            match = _PART.fullmatch(part)
            field = "" if match is None else _FIELDS[match[1]]
            if match is None or field in given:
                problem = f"{part!r} in {text!r} is not understood"
                raise UsageError(field="rollback", problem=problem, hint=_HINT)
            given[field] = int(match[2])
        if given.get("skip") == 0:
            problem = f"{text!r} would train the faulty batch again"
            raise UsageError(field="rollback", problem=problem, hint=_HINT)
        return cls(**given)

    def decide(
        self,
        attempt: int,
        fault: Fault,
        earlier: Sequence[Rollback],
        checkpoints: Iterable[CheckpointId],
    ) -> Rollback | str:
        """Return the rollback for a fault, or why the job has to end instead.

        Args:
            attempt: The attempt that met the fault.
            fault: The fault.
            earlier: The job's rollbacks so far, oldest first.
            checkpoints: The checkpoints that count.
        """
        kept = [one.step for one in checkpoints if one.phase == fault.phase]
        # What was pruned cannot be trained again.
        first = max(1, fault.step - self.back, min(kept, default=0) + 1)
        if first > fault.step:
            return "no checkpoint before it is left"
        last = fault.step + self.skip - 1
        here = _at_one_place(fault.phase, first, earlier)
        if self.most == 0:
            return "no rollback is allowed"
        if len(here) >= self.most:
            left_out = f"steps {min(one.first for one in here)} to {max(one.last for one in here)}"
            return f"{len(here)} rollbacks at this place were allowed, and left out {left_out}"
        return Rollback(attempt=attempt, fault=fault, first=first, last=last)


def _at_one_place(phase: int, first: int, earlier: Sequence[Rollback]) -> list[Rollback]:
    """Return the newest rollbacks whose left-out steps reach without a gap up to `first`."""
    found: list[Rollback] = []
    for one in reversed(earlier):
        if one.fault.phase != phase or not one.first <= first <= one.last + 1:
            break
        found.append(one)
        first = one.first
    return found


class LeftOut:
    """The steps of one phase whose batches are not trained.

    Args:
        rollbacks: The rollbacks of the job.
        phase: Index of the phase.
    """

    def __init__(self, rollbacks: Iterable[Rollback], phase: int) -> None:
        self._ranges = [(one.first, one.last) for one in rollbacks if one.fault.phase == phase]

    def next_steps(self, step: int, group: int = 1) -> int:
        """Return how many steps after `step` to leave out now, in whole groups; 0 for none.

        Args:
            step: Steps done so far.
            group: Steps that are trained together. A group with one left-out step is left out.
        """
        count = 0
        while self._any(step + count + 1, step + count + group):
            count += group
        return count

    def until(self, step: int, most: int) -> int:
        """Return how many of the next `most` steps come before the next left-out one."""
        ahead = [first - 1 - step for first, _ in self._ranges if first > step]
        return min([most, *(count for count in ahead if count > 0)])

    def _any(self, first: int, last: int) -> bool:
        return any(low <= last and first <= high for low, high in self._ranges)
