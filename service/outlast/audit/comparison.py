"""What differs between a checkpoint and its repetition: the state and the history rows. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from outlast.audit.state_leaves import PARTS, Leaf, Place, State

_ABSENT: Final[Any] = object()
HISTORY: Final = "history"
_TEXT: Final = 60  # characters of a value in a message
# Seconds that Keras' TensorBoard measures. They differ in every run, and nothing depends on them.
_MEASURED: Final = ("._train_accumulated_time",)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One value that differs."""

    part: str
    """Part of the state, for example "optimizer"."""
    path: str
    """Where it is, for example "layers/dense/vars/0"."""
    how: str
    """How much it differs, or both values; for people."""

    def __str__(self) -> str:
        return f"{self.part}: {self.path}: {self.how}"


class Times(NamedTuple):
    """Time spans in unix seconds: of the training until the checkpoint, and of the audit.

    A value within the first one in the checkpoint, and within the second one in the audit, is the
    reading of a clock.
    """

    training: tuple[float, float]
    audit: tuple[float, float]

    def are_read(self, before: Leaf, again: Leaf) -> bool:
        """Return whether both values are readings of a clock."""
        pairs = ((before, self.training), (again, self.audit))
        return all(type(value) is float and low <= value <= high for value, (low, high) in pairs)


def compare_states(
    before: State, again: State, times: Times, ignored: Sequence[str] = ()
) -> list[Difference]:
    """Return what differs, in the order of `PARTS`, then of the paths in the checkpoint.

    Readings of a clock are left out.

    Args:
        before: State of the checkpoint.
        again: State of its repetition.
        times: When the two were trained.
        ignored: Paths to leave out, each with everything below it.
    """
    units = before.units() | again.units()
    mine, theirs = dict(before.leaves(units)), dict(again.leaves(units))
    found = []
    for place in dict.fromkeys([*mine, *theirs]):
        how = _difference(mine.get(place, _ABSENT), theirs.get(place, _ABSENT), times)
        if how is not None and not is_ignored(place, ignored):
            found.append(Difference(part=place[0], path=place[1], how=how))
    return sorted(found, key=lambda difference: PARTS.index(difference.part))


def compare_rows(
    before: Iterable[Mapping[str, Any]],
    again: Iterable[Mapping[str, Any]],
    ignored: Sequence[str] = (),
) -> Difference | None:
    """Return the first difference of two histories, times aside; None if they are equal."""
    for mine, theirs in zip_longest(before, again):
        if mine is None or theirs is None:
            lacking = "the checkpoint" if mine is None else "the repetition"
            return Difference(
                part=HISTORY, path=_row_name(mine or theirs), how=f"{lacking} has no such row"
            )
        left, right = _row_values(mine), _row_values(theirs)
        for name in dict.fromkeys([*left, *right]):
            one, other = left.get(name, _ABSENT), right.get(name, _ABSENT)
            if not _same(one, other) and not is_ignored((HISTORY, name), ignored):
                how = f"{name} {_told(one)}, again {_told(other)}"
                return Difference(part=HISTORY, path=_row_name(mine), how=how)
    return None


def is_ignored(place: Place, ignored: Sequence[str]) -> bool:
    """Return whether a path, or one above it, is in `ignored` or is known to be measured."""
    path = place[1]
    below = any(f"{path}/".startswith(one + end) for one in ignored for end in "/.[")
    return below or path.endswith(_MEASURED)


def _difference(before: Leaf, again: Leaf, times: Times) -> str | None:
    if isinstance(before, np.ndarray) and isinstance(again, np.ndarray):
        return _of_arrays(before, again)
    if _same(before, again) or times.are_read(before, again):
        return None
    return f"{_told(before)}, again {_told(again)}"


def _of_arrays(before: np.ndarray[Any, Any], again: np.ndarray[Any, Any]) -> str | None:
    if (before.shape, before.dtype) != (again.shape, again.dtype):
        return f"{_told(before)}, again {_told(again)}"
    if before.size == 0:
        return None
    mine, theirs = (np.ascontiguousarray(array).reshape(-1) for array in (before, again))
    one, other = (array.view(np.uint8) for array in (mine, theirs))
    if np.array_equal(one, other):
        return None
    differs = (one != other).reshape(mine.size, -1).any(axis=1)
    count = int(differs.sum())
    of = f"{count} of {mine.size} values"
    with np.errstate(all="ignore"):
        off = np.abs(mine[differs].astype(np.float64) - theirs[differs].astype(np.float64))
    return f"{of}, by up to {np.nanmax(off):.3g}" if not np.isnan(off).all() else of


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return False
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _told(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."


def _row_values(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in row.items() if name not in ("time", "logs")}
    return {**values, **row.get("logs", {})}


def _row_name(row: Mapping[str, Any]) -> str:
    kind = row.get("kind")
    number = row.get("epoch" if kind == "epoch" else "step")
    return f"{kind} {number}"
