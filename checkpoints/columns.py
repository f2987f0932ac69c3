"""The numbers of many rows side by side, read several times as fast as row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from operator import attrgetter, itemgetter
from typing import Any, Literal

import msgspec

from checkpoints import rows
from checkpoints.rows import Row

Value = float | str | None
Kind = Literal["step", "epoch", "phase"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows in order, turned on their side: lists of one length, an element a row.

    kinds, phases, steps: as in the rows. names: a phase's. batch_loss, and logs by name: numbers,
    those that JSON has no word for still by name ("NaN"), None where a row has none.
    """

    kinds: list[str]
    phases: list[int]
    steps: list[int]
    names: list[str | None]
    batch_loss: list[Value]
    logs: dict[str, list[Value]]

    def by_phase(self) -> Iterator[Columns]:
        """Give the runs of rows of one phase each."""
        if self.phases.count(self.phases[0] if self.phases else 0) == len(self.phases):
            yield self  # as a rule
            return
        end = 0
        for _, run in groupby(self.phases):
            part = slice(end, end + sum(1 for _ in run))
            yield self._each(itemgetter(part))
            end = part.stop

    def of_kind(self, kind: str) -> Columns:
        """Return the rows of a kind."""
        count = self.kinds.count(kind)
        if count == len(self.kinds):
            return self
        if not count:
            return self._each(lambda _: [])
        is_one = [found == kind for found in self.kinds]
        return self._each(lambda column: list(compress(column, is_one)))

    def _each(self, change: Callable[[list[Any]], list[Any]]) -> Columns:
        return Columns(
            kinds=change(self.kinds),
            phases=change(self.phases),
            steps=change(self.steps),
            names=change(self.names),
            batch_loss=change(self.batch_loss),
            logs={name: change(column) for name, column in self.logs.items()},
        )


class ColumnReader:
    """Reads blocks of rows as columns.

    The rows of a training are alike: a decoder made for the metrics seen so far reads only what
    is wanted, straight into place. A block that has anything else is read row by row.
    """

    def __init__(self) -> None:
        self._metrics: list[str] = []
        self._decode = _decoder([])

    def read(self, lines: bytes, attempt: int, at: int) -> Columns:
        """Return the columns of whole lines, the first at byte `at`. Raises `FormatError`."""
        try:
            found = self._decode(lines)
            if len(found) == lines.count(b"\n"):
                return self._columns(found)
        except msgspec.MsgspecError:
            pass  # damage, a metric not seen before, or more than numbers
        decoded = []
        for text in lines.split(b"\n")[:-1]:
            decoded.append(rows.decode(text, attempt, at))
            at += len(text) + 1
        return self._one_by_one(decoded)

    def _columns(self, found: Sequence[Any]) -> Columns:
        logs = [row.logs for row in found]
        kinds = [row.kind for row in found]
        return Columns(
            kinds=kinds,
            phases=[row.phase for row in found],
            steps=[row.step for row in found],
            names=[row.name for row in found] if "phase" in kinds else [None] * len(kinds),
            batch_loss=[row.batch_loss for row in found],
            logs={
                metric: list(map(attrgetter(field), logs))
                for metric, field in zip(self._metrics, _fields(self._metrics), strict=True)
            },
        )

    def _one_by_one(self, found: Sequence[Row]) -> Columns:
        logs = [row.get("logs", {}) for row in found]
        metrics = dict.fromkeys([*self._metrics, *(name for log in logs for name in log)])
        if len(metrics) > len(self._metrics):
            self._metrics = list(metrics)
            self._decode = _decoder(self._metrics)
        return Columns(
            kinds=[str(row.get("kind", "step")) for row in found],
            phases=[int(row.get("phase", 0)) for row in found],
            steps=[int(row.get("step", 0)) for row in found],
            names=[row.get("name") for row in found],
            batch_loss=[_number(row.get("batch_loss")) for row in found],
            logs={metric: [_number(log.get(metric)) for log in logs] for metric in metrics},
        )


def _decoder(metrics: Sequence[str]) -> Callable[[bytes], list[Any]]:
    fields = _fields(metrics)
    logs = msgspec.defstruct(
        "Logs",
        [(field, Value, None) for field in fields],
        rename=dict(zip(fields, metrics, strict=True)),
        forbid_unknown_fields=True,
        frozen=True,
        gc=False,
    )
    row = msgspec.defstruct(
        "Numbers",
        [
            ("kind", Kind, "step"),
            ("phase", int, 0),
            ("step", int, 0),
            ("name", str | None, None),
            ("batch_loss", Value, None),
            ("logs", logs, logs()),
        ],
        gc=False,
    )
    return msgspec.json.Decoder(row).decode_lines


def _fields(metrics: Sequence[str]) -> list[str]:
    return [f"metric_{index}" for index in range(len(metrics))]


def _number(value: Any) -> Value:
    return value if isinstance(value, (int, float)) else None
