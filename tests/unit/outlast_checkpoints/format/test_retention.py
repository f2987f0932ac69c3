"""Retention, rule by rule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.retention import Best, Item, Keep, plan


def item(step: int, phase: int = 0, stage: Stage = Stage.STEP, **metrics: float) -> Item:
    return Item(CheckpointId(phase, step, stage, 1), metrics)


def steps(items: list[Item], keep: Keep) -> list[int]:
    return sorted(found.step for found in plan(items, keep))


def test_last() -> None:
    items = [item(step) for step in range(10)]
    assert steps(items, Keep(last=3)) == [7, 8, 9]
    assert steps(items, Keep(last=1)) == [9]
    assert steps(items, Keep(last=99)) == list(range(10))
    assert steps(items, Keep(last=None)) == list(range(10))
    assert steps([], Keep()) == []


def test_the_order_given_does_not_matter() -> None:
    items = [item(step) for step in (5, 1, 9, 3)]
    assert steps(items, Keep(last=2)) == [5, 9]


def test_every_keeps_the_first_of_each_interval_of_each_phase() -> None:
    items = [item(step, phase) for phase in (0, 1) for step in (0, 40, 100, 130, 260, 290)]
    kept = plan(items, Keep(last=1, every=100))
    assert sorted((found.phase, found.step) for found in kept) == [
        (0, 0),
        (0, 100),
        (0, 260),
        (1, 0),
        (1, 100),
        (1, 260),
        (1, 290),
    ]


def test_one_for_a_rollback() -> None:
    items = [item(step) for step in range(0, 100, 10)]
    assert steps(items, Keep(last=1, back=1)) == [80, 90]
    assert steps(items, Keep(last=1, back=10)) == [80, 90]
    assert steps(items, Keep(last=2, back=35)) == [50, 80, 90]
    assert steps(items, Keep(last=1, back=500)) == [0, 90]  # a rollback may go back to the start
    later = [*items, item(0, phase=1), item(5, phase=1)]
    kept = plan(later, Keep(last=1, back=10))
    assert sorted(found.place[:2] for found in kept) == [(1, 0), (1, 5)]


@given(
    saved=st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True),
    back=st.integers(1, 200),
)
def test_a_rollback_always_finds_its_checkpoint(saved: list[int], back: int) -> None:
    """However often checkpoints were pruned before, one is there from which it can begin."""
    kept = [item(0)]
    for step in sorted(saved):
        kept = [*kept, item(step)] if step else kept
        wanted = plan(kept, Keep(last=1, back=back))
        kept = [one for one in kept if one.id in wanted]
        assert any(one.id.step <= max(0, step - back) for one in kept)


def test_best_by_either_direction() -> None:
    items = [item(step, val_loss=loss) for step, loss in enumerate([3.0, 1.0, 2.0, 4.0])]
    assert steps(items, Keep(last=1, best=Best("val_loss", "min"))) == [1, 3]
    assert steps(items, Keep(last=1, best=Best("val_loss", "max"))) == [3]
    assert steps(items, Keep(last=1, best=Best("val_loss", "min", 2))) == [1, 2, 3]


def test_best_skips_missing_metrics_and_prefers_the_older_of_equals() -> None:
    items = [item(0, m=math.nan), item(1), item(2, m=1.0), item(3, m=1.0), item(4, m=math.inf)]
    assert steps(items, Keep(last=1, best=Best("m", "min"))) == [2, 4]
    assert steps([item(0, m=math.nan), item(1)], Keep(last=1, best=Best("m"))) == [1]


@pytest.mark.parametrize(
    ("metric", "bigger"),
    [
        ("loss", False),
        ("val_loss", False),
        ("acc", True),
        ("val_accuracy", True),
        ("sparse_categorical_accuracy", True),
        ("binary_accuracy_1", True),
        ("auc", True),
        ("val_auc_2", True),
        ("f1_score", True),
        ("mean_absolute_error", False),
        ("acceleration_error", False),
    ],
)
def test_auto_direction(metric: str, bigger: bool) -> None:
    assert Best(metric).bigger is bigger


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        (3, Keep(last=3)),
        ("5", Keep(last=5)),
        ("all", Keep(last=None)),
        ("last:2", Keep(last=2)),
        ("last:all", Keep(last=None)),
        ("every:1000", Keep(last=3, every=1000)),
        ("last:3,every:1000", Keep(last=3, every=1000)),
        ("best:val_loss", Keep(best=Best("val_loss"))),
        ("best:val_loss:2", Keep(best=Best("val_loss", "auto", 2))),
        ("best:val_loss:min", Keep(best=Best("val_loss", "min"))),
        (
            "last:3, every:1000, best:val_loss:min:2",
            Keep(last=3, every=1000, best=Best("val_loss", "min", 2)),
        ),
        (Keep(last=9), Keep(last=9)),
    ],
)
def test_parse(text: str | int | Keep, keep: Keep) -> None:
    assert Keep.parse(text) == keep
    assert Keep.parse(str(keep)) == keep


REFUSED = """
    0 -1 last last: last:0 last:x last:³ last:1,last:2 last:1, every:0 every:1.5 newest:3
    best best: best:m:most best:m:min:0 best:m:min:1:2 best:m:1:min
"""


@pytest.mark.parametrize("text", ["", *REFUSED.split()])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="keep"):
        Keep.parse(text)
