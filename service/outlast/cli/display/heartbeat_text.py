"""Formats a heartbeat as text for the live line, the plain lines and `outlast status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outlast.cli.display import units
from outlast_checkpoints.printable import printable

if TYPE_CHECKING:
    from outlast.job.heartbeat import Beat

MOST_METRICS = 3


def steps(beat: Beat) -> str:
    """Return "step 1,200/50,000"; "step 1,200" if the end is unknown; "" before any step."""
    if beat.phase is None:
        return ""
    if beat.total_steps:
        return f"step {units.number(beat.step)}/{units.number(beat.total_steps)}"
    return f"step {units.number(beat.step)}"


def epochs(beat: Beat) -> str:
    """Return "epoch 3/50", counted from 1; phases other than the first are named."""
    if beat.phase is None:
        return ""
    now = min(beat.epoch + 1, beat.epochs or beat.epoch + 1)
    text = f"epoch {now}/{beat.epochs}" if beat.epochs else f"epoch {now}"
    if beat.phase_name:
        return f"{printable(beat.phase_name)}: {text}"
    return text if beat.phase == 0 else f"phase {beat.phase}: {text}"


def metrics(beat: Beat, most: int = MOST_METRICS) -> str:
    """Return the first `most` metrics, loss first: "loss 0.123 · accuracy 0.98"."""
    ordered = sorted(beat.logs, key=lambda name: name != "loss")[:most]
    return " · ".join(f"{printable(name)} {_value(beat.logs[name])}" for name in ordered)


def _value(value: float | None) -> str:
    # A heartbeat stores null for a value that is not finite.
    return "not finite" if value is None else units.metric(value)


def speed(beat: Beat) -> str:
    """Return "512 steps/s"; "" if the speed is unknown."""
    return units.rate(beat.steps_per_second or 0.0)


def remaining(beat: Beat) -> str:
    """Return "ETA 1:35" for the phase; "" if its end or the speed is unknown."""
    if not beat.total_steps or not beat.steps_per_second:
        return ""
    return f"ETA {units.duration((beat.total_steps - beat.step) / beat.steps_per_second)}"


def saved(beat: Beat) -> str:
    """Return "saved at 1,200" for the step of the last checkpoint; "" if there is none."""
    if beat.last_checkpoint_at_step is None:
        return ""
    return f"saved at {units.number(beat.last_checkpoint_at_step)}"


def line(beat: Beat, most: int = MOST_METRICS) -> str:
    """Return the whole heartbeat as one line, with the first `most` metrics."""
    parts = [epochs(beat), steps(beat), metrics(beat, most), speed(beat), remaining(beat)]
    return " · ".join(part for part in [*parts, saved(beat)] if part) or beat.activity
