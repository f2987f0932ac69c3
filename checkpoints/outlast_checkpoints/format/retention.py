"""Which checkpoints to keep: a plan, worked out from their names and metrics alone.

Keeping is a union: what any rule wants stays. A plan is stable: planning again over what was
kept drops nothing more.
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
    """The `count` best by a metric. mode "auto": bigger is better for accuracies and the like."""

    metric: str
    mode: Mode = "auto"
    count: int = 1

    @property
    def bigger(self) -> bool:
        """Whether a bigger value is a better one."""
        if self.mode == "auto":
            return bool(_BIGGER_IS_BETTER.search(self.metric))
        return self.mode == "max"


class Item(msgspec.Struct, frozen=True):
    """A checkpoint as retention sees it."""

    id: CheckpointId
    metrics: Mapping[str, float] = {}


class Keep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to keep. last: the newest so many, None: all. every: the first in each so many steps
    of a phase. best: by a metric."""

    last: int | None = 3
    every: int | None = None
    best: Best | None = None

    @classmethod
    def parse(cls, text: str | int | Keep) -> Keep:
        """Return what `3`, "all", "last:3,every:1000,best:val_loss:min:2" mean.

        Rules that are not named keep their defaults. Raises `UsageError` (field "keep").
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
                raise UsageError(field="keep", problem=f"{part!r} is no rule", hint=_HINT)
        return cls(**found)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = ["last:all" if self.last is None else f"last:{self.last}"]
        if self.every is not None:
            parts.append(f"every:{self.every}")
        if self.best is not None:
            parts.append(f"best:{self.best.metric}:{self.best.mode}:{self.best.count}")
        return ",".join(parts)


def plan(items: Sequence[Item], keep: Keep) -> set[CheckpointId]:
    """Return which of the checkpoints to keep. The newest is always among them."""
    ordered = sorted(items, key=lambda item: item.id)
    if keep.last is None:
        return {item.id for item in ordered}
    kept = {item.id for item in ordered[-max(1, keep.last) :]}
    if keep.every is not None:
        kept |= _first_of_each(ordered, keep.every)
    if keep.best is not None:
        kept |= _best_of(ordered, keep.best)
    return kept


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
    # Equally good ones: the older, as it was the one that reached it.
    return {checkpoint for _, checkpoint in sorted(scored)[: best.count]}


def _count(value: str, part: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value.strip()) or int(value) < 1:
        raise UsageError(field="keep", problem=f"{part!r} needs a number from 1", hint=_HINT)
    return int(value)


def _best(value: str, part: str) -> Best:
    metric, *rest = (word.strip() for word in value.split(":"))
    mode: Mode = "auto"
    for candidate in ("min", "max", "auto"):
        if rest and rest[0] == candidate:
            mode = candidate
            rest = rest[1:]
            break
    if not metric or len(rest) > 1:
        problem = f"{part!r} is not best:METRIC, best:METRIC:min or best:METRIC:max:COUNT"
        raise UsageError(field="keep", problem=problem, hint=_HINT)
    return Best(metric, mode, _count(rest[0], part) if rest else 1)
