"""Curves: every row of a history in bounded memory, and none of it lost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from outlast.plotting import curves
from outlast.plotting.curves import MOST_SPANS, Curve, Curves, of_epochs
from outlast_checkpoints.history.columns import ColumnReader, Columns
from outlast_checkpoints.history.row import Row, encode


def columns(rows: list[Row]) -> list[Columns]:
    return ColumnReader().read(b"".join(encode(row) + b"\n" for row in rows), 1, 0)


def step(number: int, phase: int = 0, own: float | None = None, **logs: Any) -> Row:
    row: Row = {"kind": "step", "phase": phase, "step": number, "logs": logs}
    return row if own is None else {**row, "batch_loss": own}


def test_few_values_are_kept_unchanged() -> None:
    curve = Curve()
    assert not curve
    places = np.arange(1.0, MOST_SPANS)
    curve.add(places, 1 / places)
    assert curve
    assert curve.exact
    for numbers in (curve.y, curve.low, curve.high):
        assert np.array_equal(numbers, 1 / places)
    assert np.array_equal(curve.x, places)


@pytest.mark.parametrize("sizes", [[50_000], [7, 10_000, 1, 30_000], [1] * 3000 + [9000]])
def test_many_values_become_minimum_mean_and_maximum_of_spans(sizes: list[int]) -> None:
    count = sum(sizes)
    generator = np.random.default_rng(1)
    values = generator.normal(size=count)
    values[generator.integers(0, count, 50)] = np.inf
    places = np.arange(1.0, count + 1)
    curve = Curve()
    at = 0
    for size in sizes:
        curve.add(places[at : at + size], values[at : at + size])
        at += size
    assert not curve.exact
    assert MOST_SPANS / 2 <= len(curve.x) <= MOST_SPANS
    length = 2.0 ** math.ceil(math.log2((count + 1) / MOST_SPANS))
    spans = (places // length).astype(int)
    parts = [np.flatnonzero(spans == span) for span in np.unique(spans)]
    finite = [values[part][np.isfinite(values[part])] for part in parts]
    assert curve.x == pytest.approx([places[part].mean() for part in parts])
    for found, wanted in ((curve.y, np.mean), (curve.low, np.min), (curve.high, np.max)):
        assert found == pytest.approx([wanted(part) for part in finite])


def test_values_that_are_not_finite_leave_a_gap() -> None:
    curve = Curve()
    curve.add(np.array([1.0, 2.0, 3.0]), np.array([1.0, np.nan, 3.0]))
    for numbers in (curve.y, curve.low, curve.high):
        assert np.array_equal(numbers, [1, np.nan, 3], equal_nan=True)
    curve.add(np.array([1e9]), np.array([-np.inf]))
    assert curve.y == pytest.approx([2, np.nan], nan_ok=True)


def test_values_added_in_pieces_give_the_same_curve() -> None:
    generator = np.random.default_rng(2)
    places, values = np.arange(20_000.0), generator.normal(size=20_000)
    whole, pieces = Curve(), Curve()
    whole.add(places, values)
    for part in np.array_split(generator.permutation(20_000), 77):
        pieces.add(places[part], values[part])
    pieces.add(np.array([]), np.array([]))
    assert np.array_equal(whole.x, pieces.x)
    assert whole.y == pytest.approx(pieces.y)
    assert np.array_equal(whole.low, pieces.low)
    assert np.array_equal(whole.high, pieces.high)


def test_rows_become_panels() -> None:
    rows = [
        {"kind": "phase", "phase": 0, "step": 0, "name": "warm up", "params": {"loss": 9}},
        step(1, own=5.0, loss=4.0, accuracy=0.25),
        step(2, own=3.0, loss=3.5, accuracy=math.nan),
        {"kind": "epoch", "phase": 0, "step": 2, "logs": {"loss": 3.5, "val_loss": 3.25}},
        {"kind": "phase", "phase": 1, "step": 0, "name": None},
        step(1, phase=1, own=2.0, loss=2.0, lr=1e-3, note="words", much=[1, 2]),
    ]
    found = Curves.of([*columns(rows[:3]), *columns(rows[3:])], [(2, 0, 1), (3, 1, 1), (4, 7, 1)])
    assert list(found.panels) == ["loss", "accuracy", "lr"]
    loss = found.panels["loss"]
    assert (list(loss.own.x), list(loss.own.y)) == ([1, 2, 3], [5, 3, 2])
    assert (list(loss.epoch.x), list(loss.epoch.y)) == ([2], [3.5])
    assert (list(loss.validation.x), list(loss.validation.y)) == ([2], [3.25])
    accuracy = found.panels["accuracy"].running
    assert np.array_equal(accuracy.y, [0.25, np.nan], equal_nan=True)
    assert list(found.panels["lr"].running.x) == [3]
    assert found.phases == [(0, "warm up"), (2, "phase 1")]
    assert found.restarts == [(1, 2), (3, 3)]


def test_steps_without_a_batch_loss_show_the_running_mean() -> None:
    found = Curves.of(columns([step(1, loss=4.0), step(2), step(3, loss=2.0)]))
    assert list(found.panels["loss"].running.x) == [1, 3]
    assert not found.panels["loss"].own


def test_curves_by_epoch() -> None:
    found = of_epochs({"loss": [3.0, 2.0], "val_loss": [1.0], "matrix": [[1], [2]]}, [4, 5])
    assert list(found.panels) == ["loss"]
    assert (list(found.panels["loss"].epoch.x), list(found.panels["loss"].epoch.y)) == (
        [5, 6],
        [3, 2],
    )
    assert list(found.panels["loss"].validation.y) == [1]
    assert of_epochs({}, []).panels == {}


def test_curves_of_any_length_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from outlast.plotting.plot import draw

    monkeypatch.setattr(curves, "MOST_SPANS", 64)
    rows = [step(n, own=1 / n, loss=1 / n, accuracy=n / 500) for n in range(1, 500)]
    ends = [
        {"kind": "epoch", "phase": 0, "step": n, "logs": {"val_loss": 1 / n}} for n in range(1, 500)
    ]
    found = Curves.of([*columns(rows), *columns(ends)])
    assert not found.panels["loss"].own.exact
    assert not found.panels["loss"].validation.exact
    assert len(found.panels["loss"].own.x) <= 64
    png = draw(found, title="many")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert draw(found, title="many") == png
