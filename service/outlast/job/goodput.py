"""What became of a job's time: which part of it went into steps that counted. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import msgspec

from outlast.job.heartbeat import Beat
from outlast_checkpoints.format.layout import CheckpointId

_GETTING_READY = ("starting", "importing", "compiling", "restoring")


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt: from its claim to its end, unix seconds; ended None: it goes on.

    on_purpose: it ended because it was done or somebody stopped it, so what comes after it until
    the next one is nobody's loss. beat: its last, None when it never gave one.
    """

    began: float
    ended: float | None
    on_purpose: bool
    beat: Beat | None


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """The time of a job, in seconds, from its first attempt on, without what it stood stopped.

    total: of which `training` went into steps that counted, `repeated` into those that a later
    attempt had to do again (`repeated_steps` of them), `validating` into validation, `saving`
    into holding the loop for saves and waiting for the last ones, `getting_ready` into starts:
    Python, imports, restoring, tracing and compiling; the rest is `down`: from a death to the
    next claim, and what no beat has told. All to within about a heartbeat for each death.
    """

    total: float
    training: float
    repeated: float
    validating: float
    saving: float
    getting_ready: float
    down: float
    steps: int
    repeated_steps: int

    @property
    def share(self) -> float:
        """The goodput: training over total, 0 to 1."""
        return self.training / self.total if self.total > 0 else 0.0


def measure(lives: Sequence[Life], now: float) -> Goodput:
    """Return what became of the time of these attempts, oldest first. now: unix seconds."""
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
    told = sum(spent.values())
    return Goodput(
        total=total,
        training=spent.get("training", 0.0) - repeated,
        repeated=repeated,
        validating=spent.get("validating", 0.0),
        saving=spent.get("saving", 0.0),
        getting_ready=getting_ready,
        down=max(0.0, total - told),
        steps=steps - repeated_steps,
        repeated_steps=repeated_steps,
    )


def _repeated_steps(beat: Beat, following: Life | None) -> int:
    """Return how many of an attempt's steps the next one has to do again."""
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
