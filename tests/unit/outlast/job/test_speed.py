"""The speed that a person sees is that of the wall clock."""

from __future__ import annotations

import pytest

from outlast.job.speed import EVERY, LOOKS, Speed


def test_time_between_the_steps_counts() -> None:
    speed = Speed()
    assert speed.steps_per_second is None
    speed.note(10.0, 1, 1, 0.01)
    assert speed.steps_per_second == pytest.approx(100)
    for step in range(2, 200):
        speed.note(10.0 + 0.2 * step, step, 1, 0.01)
    assert speed.steps_per_second == pytest.approx(5, rel=0.02)


def test_it_is_measured_over_the_last_seconds() -> None:
    speed = Speed()
    for step in range(1, 1000):
        speed.note(0.01 * step, step, 1, 0.01)
    for at in range(1, int(2 * LOOKS * EVERY)):
        speed.note(10.0 + at, 1000 + at, 1, 1.0)
    assert speed.steps_per_second == pytest.approx(1)
