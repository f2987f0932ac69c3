"""Goodput: the share of a job's time that went into steps that counted. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import msgspec

from outlast.job.heartbeat import Beat
from outlast_checkpoints.format.layout import CheckpointId

_GETTING_READY = ("starting", "importing", "compiling", "restoring")


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """The life of one attempt, from its claim to its end."""

    began: float
    """Time of the claim, in unix seconds."""
    ended: float | None
    """Time of the end, in unix seconds; None while the attempt runs."""
    on_purpose: bool
    """Whether it was done or stopped on request; the pause after it then does not count."""
    beat: Beat | None
    """Its last heartbeat; None if it never wrote one."""


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """How a job spent its time since its first attempt, in seconds, pauses on request excluded.

    The numbers are accurate to about one heartbeat for each death of an attempt.
    """

    total: float
    """All of the time."""
    training: float
    """Steps that counted."""
    repeated: float
    """Steps that a later attempt repeated."""
    validating: float
    """Validation."""
    saving: float
    """Holding the loop for saves, and waiting for the last save."""
    getting_ready: float
    """Starting Python, importing, restoring, tracing and compiling."""
    down: float
    """From the death of an attempt to the next claim, and whatever no heartbeat reported."""
    steps: int
    """Number of steps that counted."""
    repeated_steps: int
    """Number of steps that were repeated."""

    @property
    def share(self) -> float:
        """The goodput: `training` divided by `total`, from 0 to 1."""
        return self.training / self.total if self.total > 0 else 0.0


def measure(lives: Sequence[Life], now: float) -> Goodput:
    """Return how a job spent its time.

    Args:
        lives: Its attempts, oldest first.
        now: Unix seconds.
    """
    spent: dict[str, float] = {}
    total = 0.0
    steps, repeated_steps, repeated = 0, 0, 0.0
    for life, following in zip_longest(lives, lives[1:]):
        end = now if life.ended is None else life.ended
        if following is not None and not life.on_purpose:
            end = following.began
        total += max(0.0, end - life.began)
        beat = life.beat
        if beat is None:
            continue
        for activity, seconds in beat.spent.items():
            spent[activity] = spent.get(activity, 0.0) + seconds
        again = _repeated_steps(beat, following)
        steps += beat.steps_done
        repeated_steps += again
        if beat.steps_done:
            repeated += beat.spent.get("training", 0.0) * again / beat.steps_done
    getting_ready = sum(spent.get(activity, 0.0) for activity in _GETTING_READY)
    counted = sum(spent.values())
    return Goodput(
        total=total,
        training=spent.get("training", 0.0) - repeated,
        repeated=repeated,
        validating=spent.get("validating", 0.0),
        saving=spent.get("saving", 0.0),
        getting_ready=getting_ready,
        down=max(0.0, total - counted),
        steps=steps - repeated_steps,
        repeated_steps=repeated_steps,
    )


def _repeated_steps(beat: Beat, following: Life | None) -> int:
    """Return how many steps of an attempt the next one repeats."""
    if following is None or following.beat is None or beat.phase is None:
        return 0
    restored = CheckpointId.parse(following.beat.restored_from or "")
    if restored is None:
        lost = beat.step if following.beat.phase is not None else 0
    elif restored.phase == beat.phase:
        lost = beat.step - restored.step
    else:
        lost = beat.step
    return min(max(0, lost), beat.steps_done)
