"""Columns hold the same numbers as the rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.manifest import number_from_json
from outlast_checkpoints.history.columns import ColumnReader, Columns, Points
from outlast_checkpoints.history.row import Row, decode, encode

NUMBERS = st.floats() | st.integers(-(2**53), 2**53)
NAMES = ["loss", "val loss", "ü", "kind", "", 'a"b', "a\\b", "\n\x00"]
LOGS = st.dictionaries(st.sampled_from(NAMES), NUMBERS, max_size=4)
ROWS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["step", "epoch", "phase", "other"]),
        "phase": st.integers(0, 3),
        "step": st.integers(0, 10**9),
    },
    optional={
        "logs": LOGS | st.just({"loss": [1, 2], "note": "words"}),
        "batch_loss": NUMBERS | st.none(),
        "name": st.none() | st.text(),
        "params": st.just({"loss": 3}),
    },
)
# A phase never goes back from row to row.
BLOCKS = st.lists(ROWS, min_size=1, max_size=12).map(lambda rows: sorted(rows, key=phase_of))


def phase_of(row: Row) -> int:
    return int(row["phase"])


def lines(rows: list[Row]) -> bytes:
    return b"".join(encode(row) + b"\n" for row in rows)


def number(value: Any) -> float | None:
    plain = number_from_json(value)
    return float(plain) if isinstance(plain, (int, float)) else None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(BLOCKS, min_size=1, max_size=4))
def test_columns_hold_the_numbers_of_the_rows(blocks: list[list[Row]]) -> None:
    reader = ColumnReader()
    for block in blocks:
        data = lines(block)
        rows = [decode(text, 1, 0) for text in data.splitlines()]
        found = reader.read(data, 1, 0)
        assert [columns.phase for columns in found] == sorted(columns.phase for columns in found)
        wanted = {(row["phase"], row["kind"]) for row in rows}
        assert len(found) == len(wanted)
        for columns in found:
            wanted.remove((columns.phase, columns.kind))
            same(
                columns,
                [r for r in rows if (r["phase"], r["kind"]) == (columns.phase, columns.kind)],
            )
        assert not wanted


def same(columns: Columns, rows: list[Row]) -> None:
    assert list(columns.steps) == [row["step"] for row in rows]
    if columns.kind not in ("step", "epoch"):
        names = [row["name"] for row in rows if row.get("name")]
        assert columns.name == (names[-1] if names else None)
        return
    same_points(columns.batch_loss, rows, [row.get("batch_loss") for row in rows])
    logs = [row.get("logs", {}) for row in rows]
    for name in {name for log in logs for name in log}:
        same_points(columns.logs.get(name), rows, [log.get(name) for log in logs])
    assert columns.logs.keys() <= {name for log in logs for name in log}


def same_points(found: Points | None, rows: list[Row], values: list[Any]) -> None:
    wanted = [
        (row["step"], number(value))
        for row, value in zip(rows, values, strict=True)
        if number(value) is not None
    ]
    if found is None:
        assert not wanted
        return
    assert wanted
    assert np.array_equal(np.column_stack(found), np.array(wanted, float), equal_nan=True)


def test_the_second_block_of_a_training_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    block = lines(
        [{"kind": "step", "phase": 0, "step": n, "logs": {"a b": n, "c": math.nan}} for n in (1, 2)]
        + [{"kind": "epoch", "phase": 0, "step": 2, "logs": {"val_a": 1.5}}]
    )
    reader = ColumnReader()
    reader.read(block, 1, 0)
    monkeypatch.setattr(
        "outlast_checkpoints.history.row.decode", lambda *_: pytest.fail("row by row")
    )
    steps, epochs = reader.read(block, 1, len(block))
    assert list(steps.logs["a b"].numbers) == [1, 2]
    assert np.array_equal(steps.logs["c"].numbers, [math.nan] * 2, equal_nan=True)
    assert (epochs.kind, list(epochs.logs["val_a"].numbers)) == ("epoch", [1.5])


@pytest.mark.parametrize("spoiled", [b"{", b"", b'{"kind":1,"step":"x"', b"\xff{}"])
def test_damage_is_named_by_its_byte(spoiled: bytes) -> None:
    good = lines([{"kind": "step", "phase": 0, "step": 1, "logs": {"a": 1.0}}])
    reader = ColumnReader()
    reader.read(good, 1, 0)
    with pytest.raises(FormatError, match=f"attempt 3: it is damaged at byte {100 + len(good)}"):
        reader.read(good + spoiled + b"\n" + good, 3, 100)
