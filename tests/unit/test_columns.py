"""Columns: the numbers of many rows side by side, the same as row by row."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.columns import ColumnReader
from checkpoints.errors import FormatError
from checkpoints.manifest import unspell
from checkpoints.rows import Row, decode, encode

NUMBERS = st.floats() | st.integers(-(2**53), 2**53)
LOGS = st.dictionaries(st.sampled_from(["loss", "val loss", "ü", "kind", ""]), NUMBERS, max_size=4)
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


def lines(rows: list[Row]) -> bytes:
    return b"".join(encode(row) + b"\n" for row in rows)


def number(value: Any) -> float | None:
    plain = unspell(value)
    return float(plain) if isinstance(plain, (int, float)) else None


@given(st.lists(st.lists(ROWS, min_size=1, max_size=4), min_size=1, max_size=4))
def test_columns_hold_the_numbers_of_the_rows(blocks: list[list[Row]]) -> None:
    reader = ColumnReader()
    for block in blocks:
        data = lines(block)
        rows = [decode(text, 1, 0) for text in data.splitlines()]
        found = reader.read(data, 1, 0)
        assert found.kinds == [row["kind"] for row in rows]
        assert found.phases == [row["phase"] for row in rows]
        assert found.steps == [row["step"] for row in rows]
        phases = [i for i, kind in enumerate(found.kinds) if kind == "phase"]
        assert [found.names[i] for i in phases] == [rows[i].get("name") for i in phases]
        same(found.batch_loss, [row.get("batch_loss") for row in rows])
        for name in {name for row in rows for name in row.get("logs", {})}:
            same(found.logs[name], [row.get("logs", {}).get(name) for row in rows])
        parts = list(found.by_phase())
        assert [one for part in parts for one in part.steps] == found.steps
        assert all(len(set(part.phases)) == 1 for part in parts)
        for kind in ("step", "phase", "none such"):
            alike = found.of_kind(kind)
            places = [i for i, one in enumerate(found.kinds) if one == kind]
            assert alike.steps == [found.steps[i] for i in places]
            assert alike.batch_loss == pytest.approx(
                [found.batch_loss[i] for i in places], nan_ok=True
            )


def same(found: list[Any], wanted: list[Any]) -> None:
    for one, other in zip(found, map(number, wanted), strict=True):
        value = number(one)
        assert value == other or (value is not None and other is not None and math.isnan(other))


def test_the_second_block_of_a_training_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    block = lines(
        [{"kind": "step", "phase": 0, "step": n, "logs": {"a b": n, "c": math.nan}} for n in (1, 2)]
    )
    reader = ColumnReader()
    first = reader.read(block, 1, 0)
    monkeypatch.setattr("checkpoints.rows.decode", lambda *_: pytest.fail("row by row"))
    second = reader.read(block, 1, len(block))
    assert second.logs["a b"] == first.logs["a b"] == [1, 2]
    assert [unspell(value) for value in second.logs["c"]] == pytest.approx(
        [math.nan] * 2, nan_ok=True
    )


@pytest.mark.parametrize("spoiled", [b"{", b"", b'{"kind":1,"step":"x"', b"\xff{}"])
def test_damage_is_named_by_its_byte(spoiled: bytes) -> None:
    good = lines([{"kind": "step", "phase": 0, "step": 1, "logs": {"a": 1.0}}])
    reader = ColumnReader()
    reader.read(good, 1, 0)
    with pytest.raises(FormatError, match=f"attempt 3: it is damaged at byte {100 + len(good)}"):
        reader.read(good + spoiled + b"\n" + good, 3, 100)
