"""Columns: the numbers of many rows as arrays, several times faster than row by row."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import compress
from operator import or_
from typing import Any, NamedTuple

import msgspec
import numpy as np

from outlast_checkpoints.format.sealed_json import UNREADABLE
from outlast_checkpoints.history import row as rows
from outlast_checkpoints.history.row import Row

Value = float | str | None
Numbers = np.ndarray[Any, np.dtype[np.float64]]

# msgspec refuses these in names of fields, so rows with such metrics are read one by one.
_ODD = re.compile(r'[\x00-\x1f"\\]')
_HUGE = 1 << 1000
_SPELLED = frozenset({"NaN", "Infinity", "-Infinity"})


class Points(NamedTuple):
    """A metric's numbers and the step of each, as float64 arrays of the same length."""

    steps: Numbers
    numbers: Numbers


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of one kind and one phase, in order, as arrays.

    Attributes:
        kind: "phase", "step" or "epoch".
        phase: Index of the phase, from 0.
        steps: The step of each row, float64.
        name: The phase's name, if a row has one.
        batch_loss: The batch's loss, for the rows that have one. None if no row has.
        logs: The logs by name, for the rows that have them. Metrics that no row has are left out.
    """

    kind: str
    phase: int
    steps: Numbers
    name: str | None = None
    batch_loss: Points | None = None
    logs: dict[str, Points] = field(default_factory=dict)


class ColumnReader:
    """Reads blocks of rows as columns.

    The rows of a training look alike, so a decoder built for the metrics seen so far reads only
    the fields that are needed. A block with anything else is read row by row.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, list[str]] = {"step": [], "epoch": []}
        self._decode = _decoder(self._metrics)

    def read(self, lines: bytes, attempt: int, at: int) -> list[Columns]:
        """Read whole lines, the first at byte `at`. Raises `FormatError`."""
        try:
            found = self._decode(lines)
            if len(found) == lines.count(b"\n"):
                return [self._columns(run) for run in _alike(found)]
        except UNREADABLE:
            pass  # damage, a new metric, or values that are not numbers
        runs: dict[tuple[int, str], list[Row]] = {}
        for text in lines.split(b"\n")[:-1]:
            row = rows.decode(text, attempt, at)
            kind = int(row.get("phase", 0)), str(row.get("kind", "step"))
            runs.setdefault(kind, []).append(row)
            at += len(text) + 1
        return [self._one_by_one(phase, kind, run) for (phase, kind), run in runs.items()]

    def _columns(self, found: Sequence[Any]) -> Columns:
        kind = str(found[0].__struct_config__.tag)
        steps = np.fromiter([row.step for row in found], float, len(found))
        if kind == "phase":
            return Columns(kind, found[0].phase, steps, _last(row.name for row in found))
        logs = [row.logs for row in found]
        values = ([getattr(log, name) for log in logs] for name in _fields(self._metrics[kind]))
        return Columns(
            kind,
            found[0].phase,
            steps,
            batch_loss=_points(steps, [row.batch_loss for row in found]),
            logs=_known(steps, zip(self._metrics[kind], values, strict=True)),
        )

    def _one_by_one(self, phase: int, kind: str, found: Sequence[Row]) -> Columns:
        steps = np.fromiter([int(row.get("step", 0)) for row in found], float, len(found))
        if kind not in self._metrics:
            return Columns(kind, phase, steps, _last(row.get("name") for row in found))
        logs = [row.get("logs", {}) for row in found]
        known = self._metrics[kind]
        metrics = list(dict.fromkeys([*known, *(name for log in logs for name in log)]))
        if len(metrics) > len(known) and not any(map(_ODD.search, metrics)):
            self._metrics[kind] = metrics
            self._decode = _decoder(self._metrics)
        values = ([log.get(metric) for log in logs] for metric in metrics)
        return Columns(
            kind,
            phase,
            steps,
            batch_loss=_points(steps, [row.get("batch_loss") for row in found]),
            logs=_known(steps, zip(metrics, values, strict=True)),
        )


def _alike(found: Sequence[Any]) -> Iterable[Sequence[Any]]:
    """Group rows by phase and kind."""
    # Phases never decrease, so comparing the first and the last row is enough.
    if found[0].phase == found[-1].phase and len(set(map(type, found))) == 1:
        return [found]  # the usual case
    runs: dict[tuple[int, type], list[Any]] = {}
    for row in found:
        runs.setdefault((row.phase, type(row)), []).append(row)
    return runs.values()


def _known(steps: Numbers, values: Iterable[tuple[str, list[Any]]]) -> dict[str, Points]:
    found = ((name, _points(steps, column)) for name, column in values)
    return {name: points for name, points in found if points is not None}


def _points(steps: Numbers, values: list[Any]) -> Points | None:
    """Return the numbers among `values`, spelled ones included; None if there are none."""
    if values[0] is None and values.count(None) == len(values):
        return None
    try:
        numbers = np.fromiter(values, float, len(values))  # None becomes NaN
        if not np.isnan(numbers).any():
            return Points(steps, numbers)
    except (TypeError, ValueError, OverflowError):
        pass
    there = [_is_number(value) or _is_spelled(value) for value in values]
    numbers = np.array([float(value) for value in compress(values, there)], float)
    return Points(steps[there], numbers) if len(numbers) else None


def _is_number(value: Any) -> bool:
    """Return whether `float` accepts it: JSON integers can have any size."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _HUGE)


def _is_spelled(value: Any) -> bool:
    return isinstance(value, str) and value in _SPELLED


def _last(names: Iterable[str | None]) -> str | None:
    return next(reversed(list(filter(None, names))), None)


def _decoder(metrics: dict[str, list[str]]) -> Callable[[bytes], list[Any]]:
    place = [("phase", int, 0), ("step", int, 0)]
    kinds: list[Any] = [
        msgspec.defstruct(
            "Phase", [*place, ("name", str | None, None)], tag_field="kind", tag="phase", gc=False
        )
    ]
    for kind, names in metrics.items():
        fields = _fields(names)
        logs = msgspec.defstruct(
            "Logs",
            [(name, Value, None) for name in fields],
            rename=dict(zip(fields, names, strict=True)),
            forbid_unknown_fields=True,
            frozen=True,
            gc=False,
        )
        values = [("batch_loss", Value, None), ("logs", logs, logs())]
        kinds.append(
            msgspec.defstruct(kind, [*place, *values], tag_field="kind", tag=kind, gc=False)
        )
    return msgspec.json.Decoder(reduce(or_, kinds)).decode_lines


def _fields(metrics: Sequence[str]) -> list[str]:
    return [f"metric_{index}" for index in range(len(metrics))]
