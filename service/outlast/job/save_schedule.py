"""When to save: by steps, by time, after epochs, or automatically. Pure."""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

from outlast_checkpoints.errors import UsageError

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smh])")
_AUTO: Final = re.compile(r"auto(?::(\d+(?:\.\d+)?)%)?")
OVERHEAD: Final = 0.01
_HINT: Final = (
    "Use steps (100), a time (30s, 5m, 1h), 'epoch', 'auto' or 'auto:2%', several separated by "
    "commas, or 'never'."
)


class SaveEvery(msgspec.Struct, frozen=True, kw_only=True):
    """When a checkpoint is due. Several conditions can be combined.

    Without any condition, only stops and the end of a phase save.
    """

    steps: int | None = None
    """Save at every multiple of this many steps of the phase."""
    seconds: float | None = None
    """Save this many seconds after the last save."""
    epoch: bool = False
    """Save after the validation and callbacks of each epoch."""
    overhead: float | None = None
    """Save as often as `interval` chooses, within this share of the time (0.01: one percent)."""

    @classmethod
    def parse(cls, text: str | int | SaveEvery) -> SaveEvery:
        """Parse for example "100", "30s", "5m", "epoch", "auto:2%", "100,epoch" or "never".

        Raises:
            UsageError: the text is not a valid cadence.
        """
        if isinstance(text, SaveEvery):
            return text
        if isinstance(text, bool) or not isinstance(text, int | str):
            raise UsageError(field="save_every", problem=f"invalid cadence {text!r}", hint=_HINT)
        steps: int | None = None
        seconds: float | None = None
        epoch = False
        overhead: float | None = None
        parts = [part.strip().lower() for part in str(text).split(",")]
        if parts == ["never"]:
            return cls()
        for part in parts:
            duration = _DURATION.fullmatch(part)
            auto = _AUTO.fullmatch(part)
            if part == "epoch" and not epoch:
                epoch = True
            elif part.isascii() and part.isdigit() and int(part) > 0 and steps is None:
                steps = int(part)
            elif duration and float(duration[1]) > 0 and seconds is None:
                seconds = float(duration[1]) * _UNITS[duration[2]]
            elif auto and overhead is None and 0 < float(auto[1] or 1) <= 100:
                overhead = OVERHEAD if auto[1] is None else float(auto[1]) / 100
            else:
                raise UsageError(
                    field="save_every", problem=f"invalid cadence {part!r} in {text!r}", hint=_HINT
                )
        return cls(steps=steps, seconds=seconds, epoch=epoch, overhead=overhead)

    def next_step_due(self, step: int) -> int | None:
        """Return the first step after `step` with a save due; None without a step cadence."""
        if self.steps is None:
            return None
        return (step // self.steps + 1) * self.steps

    def steps_until_due(self, step: int, limit: int) -> int:
        """Return how many of the next `limit` steps can run before a save is due (at least 1)."""
        due = self.next_step_due(step)
        return limit if due is None else min(limit, due - step)

    def step_due(self, step: int) -> bool:
        """Return whether a save is due after `step` steps of the phase."""
        return self.steps is not None and step > 0 and step % self.steps == 0

    def time_due(self, elapsed: float) -> bool:
        """Return whether a save is due `elapsed` seconds after the last one."""
        return self.seconds is not None and elapsed >= self.seconds

    def __str__(self) -> str:
        parts = [str(self.steps)] if self.steps is not None else []
        if self.seconds is not None:
            whole = math.isclose(self.seconds, round(self.seconds))
            parts.append(f"{round(self.seconds) if whole else self.seconds}s")
        if self.epoch:
            parts.append("epoch")
        if self.overhead is not None:
            parts.append(f"auto:{self.overhead * 100:g}%" if self.overhead != OVERHEAD else "auto")
        return ",".join(parts) or "never"
