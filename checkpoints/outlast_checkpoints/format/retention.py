"""Retention: which checkpoints to keep, decided from their names and metrics alone.

A checkpoint is kept if any rule wants it. The decision is stable: applied again to the kept
checkpoints, it drops nothing more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import CheckpointId

Mode = Literal["min", "max", "auto"]

_HINT = 'For example 3, "all" or "last:3,every:1000,best:val_loss:min:2".'
_BIGGER_IS_BETTER = re.compile(
    r"(^|_)(\w*acc|\w*accuracy|auc|precision|recall|f1|f1_score|fbeta_score|r2|r2_score|iou|"
    r"mean_io_u|dice|map|bleu|psnr|ssim|reward|return)(_\d+)?$"
)


class Best(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keep the best checkpoints by a metric.

    Attributes:
        metric: Name in the logs, such as "val_loss".
        mode: "min", "max", or "auto" (default): larger is better for accuracies, AUC, F1, IoU,
            rewards and similar names; smaller is better for all others.
        count: How many to keep. Default 1.
    """

    metric: str
    mode: Mode = "auto"
    count: int = 1

    @property
    def bigger(self) -> bool:
        """Whether a larger value is better."""
        if self.mode == "auto":
            return bool(_BIGGER_IS_BETTER.search(self.metric))
        return self.mode == "max"


class Item(msgspec.Struct, frozen=True):
    """A checkpoint as retention sees it: its name and its metrics."""

    id: CheckpointId
    metrics: Mapping[str, float] = {}


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which checkpoints to keep. A checkpoint is kept if any rule wants it.

    Example:

        Keep.parse("last:3,every:1000,best:val_loss:min:2")

    Attributes:
        last: How many of the newest to keep. Default 3; None keeps all.
        every: Also keep the first checkpoint of every so many steps of a phase. Default None: no
            such rule.
        best: Also keep the best by a metric. Default None: no such rule.
        back: Also keep a checkpoint at least so many steps before the newest one, for a rollback.
            Default None: no such rule.
    """

    last: int | None = 3
    every: int | None = None
    best: Best | None = None
    back: int | None = None

    @classmethod
    def parse(cls, text: str | int | Keep) -> Keep:
        """Parse a number, "all", or rules such as "last:3,every:1000,best:val_loss:min:2".

        Args:
            text: The rules, separated by commas. A number N means "last:N". A `Keep` is returned
                unchanged.

        Returns:
            The rules. Those not named keep their defaults.

        Raises:
            UsageError: `text` is not a valid set of rules.
        """
        if isinstance(text, Keep):
            return text
        words = str(text).strip()
        if words == "all":
            return cls(last=None)
        if re.fullmatch(r"[+-]?\d+", words):
            return cls(last=_count(words, words))
        found: dict[str, int | Best | None] = {}
        for part in words.split(","):
            rule, _, value = part.strip().partition(":")
            if rule in found:
                raise UsageError(field="keep", problem=f"{rule!r} is given twice", hint=_HINT)
            if rule == "last":
                found[rule] = None if value.strip() == "all" else _count(value, part)
            elif rule == "every":
                found[rule] = _count(value, part)
            elif rule == "best":
                found[rule] = _best(value, part)
            else:
                raise UsageError(field="keep", problem=f"unknown rule {part!r}", hint=_HINT)
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = ["last:all" if self.last is None else f"last:{self.last}"]
        if self.every is not None:
            parts.append(f"every:{self.every}")
        if self.best is not None:
            parts.append(f"best:{self.best.metric}:{self.best.mode}:{self.best.count}")
        return ",".join(parts)


def plan(items: Sequence[Item], keep: Keep) -> set[CheckpointId]:
    """Return the checkpoints to keep. The newest is always one of them."""
    ordered = sorted(items, key=lambda item: item.id)
    if keep.last is None:
        return {item.id for item in ordered}
    kept = {item.id for item in ordered[-max(1, keep.last) :]}
    if keep.every is not None:
        kept |= _first_of_each(ordered, keep.every)
    if keep.best is not None:
        kept |= _best_of(ordered, keep.best)
    if keep.back is not None and ordered:
        kept.add(_back_from(ordered, keep.back))
    return kept


def _back_from(ordered: Sequence[Item], steps: int) -> CheckpointId:
    """Return the newest checkpoint so many steps before the newest one, or its phase's oldest."""
    newest = ordered[-1].id
    of_phase = [item.id for item in ordered if item.id.phase == newest.phase]
    before = [one for one in of_phase if one.step <= newest.step - steps]
    return before[-1] if before else of_phase[0]


def _first_of_each(ordered: Iterable[Item], every: int) -> set[CheckpointId]:
    first: dict[tuple[int, int], CheckpointId] = {}
    for item in ordered:
        first.setdefault((item.id.phase, item.id.step // every), item.id)
    return set(first.values())


def _best_of(ordered: Iterable[Item], best: Best) -> set[CheckpointId]:
    sign = -1.0 if best.bigger else 1.0
    scored = [
        (sign * item.metrics[best.metric], item.id)
        for item in ordered
        if not math.isnan(item.metrics.get(best.metric, math.nan))
    ]
    # Of equally good ones the older is kept: it reached the value first.
    return {checkpoint for _, checkpoint in sorted(scored)[: best.count]}


def _count(value: str, part: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value.strip()) or int(value) < 1:
        raise UsageError(
            field="keep", problem=f"{part!r} needs a whole number of at least 1", hint=_HINT
        )
    return int(value)


def _best(value: str, part: str) -> Best:
    metric, *rest = (word.strip() for word in value.split(":"))
    mode: Mode = "auto"
    for candidate in ("min", "max", "auto"):
        if rest and rest[0] == candidate:
            mode = candidate
            rest = rest[1:]
            break
    if not metric or len(rest) > 1 or (rest and not re.fullmatch(r"[+-]?\d+", rest[0])):
        problem = f"{part!r} is not best:METRIC, best:METRIC:min or best:METRIC:max:COUNT"
        raise UsageError(field="keep", problem=problem, hint=_HINT)
    return Best(metric, mode, _count(rest[0], part) if rest else 1)
