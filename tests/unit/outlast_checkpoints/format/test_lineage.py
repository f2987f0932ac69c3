"""The lineage decides from origins alone which checkpoints and rows count."""

from __future__ import annotations

import pytest

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.lineage import Lineage, Origin, decode, encode
from outlast_checkpoints.format.manifest import HistoryMark
from tests.support.checkpoints import at


def origin(attempt: int, step: int | None = None, of: int = 0, mark: int | None = None) -> Origin:
    if step is None:
        return Origin(attempt=attempt)
    history = None if mark is None else HistoryMark(of, mark)
    return Origin(attempt=attempt, checkpoint=str(at(step, of)), history=history)


def test_nothing_counts_before_the_first_attempt() -> None:
    line = Lineage.of([])
    assert not line.accepts(at(0, 1))
    assert line.history_parts() == []
    assert line.newest is None


def test_a_single_attempt_counts_completely() -> None:
    line = Lineage.of([origin(1)])
    assert line.accepts(at(0, 1))
    assert line.accepts(at(10**9, 1))
    assert not line.accepts(at(0, 2))
    assert line.history_parts() == [(1, None)]


def test_late_commits_of_a_superseded_attempt_do_not_count() -> None:
    line = Lineage.of([origin(1), origin(2, 100, of=1, mark=5000)])
    assert line.accepts(at(100, 1))
    assert not line.accepts(at(100, 1, Stage.EPOCH))
    assert not line.accepts(at(101, 1))
    assert not line.accepts(at(0, 1, phase=1))
    assert line.accepts(at(101, 2))
    assert line.history_parts() == [(1, 5000), (2, None)]


def test_skipped_attempts_do_not_count() -> None:
    # 3 fell back to a checkpoint of 1: nothing of 2 is part of the training.
    line = Lineage.of([origin(1), origin(2, 100, 1, 10), origin(3, 50, 1, 5), origin(5, 70, 3, 9)])
    assert line.attempts == [5, 3, 1]
    assert not line.accepts(at(100, 2))
    assert line.accepts(at(50, 1))
    assert not line.accepts(at(100, 1))
    assert line.history_parts() == [(1, 5), (3, 9), (5, None)]


def test_starting_over_drops_everything_before() -> None:
    line = Lineage.of([origin(1), origin(2)])
    assert not line.accepts(at(0, 1))
    assert line.history_parts() == [(2, None)]


def test_a_checkpoint_without_history_has_no_rows() -> None:
    line = Lineage.of([origin(1), origin(2, 100, of=1)])
    assert line.history_parts() == [(1, 0), (2, None)]


def test_a_missing_origin_breaks_the_lineage_and_is_reported() -> None:
    line = Lineage.of([origin(1), origin(3, 200, 2, 9)])
    assert line.missing == 2
    assert line.accepts(at(200, 2))
    assert not line.accepts(at(201, 2))
    assert not line.accepts(at(0, 1))
    line = Lineage.of([origin(1)], unknown=[2])
    assert line.missing == 2
    assert line.accepts(at(10**6, 2))


def test_round_trip() -> None:
    for one in (origin(1), origin(2, 100, 1, 5000), origin(2, 100, 1)):
        assert decode(encode(one), "o") == one


def test_damage_is_found() -> None:
    data = encode(origin(2, 100, 1, 5000))
    for index in range(len(data)):
        spoilt = bytearray(data)
        spoilt[index] ^= 1
        with pytest.raises(FormatError):
            decode(bytes(spoilt), "o")


def test_an_attempt_cannot_resume_from_its_own_future() -> None:
    with pytest.raises(FormatError):
        decode(encode(origin(2, 100, of=2)), "o")
    with pytest.raises(FormatError):
        decode(encode(Origin(attempt=2, checkpoint="latest")), "o")
