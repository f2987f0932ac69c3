"""How the time of a job was spent."""

from __future__ import annotations

import time

import pytest

from outlast.job import process_identity
from outlast.job.goodput import Life, measure
from outlast.job.heartbeat import Beat, Status


def beat(phase: int, step: int, done: int, restored: str | None = None, **spent: float) -> Beat:
    return Beat(
        attempt=1, phase=phase, step=step, steps_done=done, restored_from=restored, spent=spent
    )


def life(began: float, ended: float | None, beat: Beat | None, on_purpose: bool = False) -> Life:
    return Life(began=began, ended=ended, on_purpose=on_purpose, beat=beat)


def test_repeated_steps_do_not_count() -> None:
    first = beat(0, 100, 100, importing=3.0, training=50.0, saving=1.0)
    again = beat(0, 150, 70, "00-000000000080.0-0001", importing=3.0, restoring=1.0, training=35.0)
    lives = [life(0, 56, first), life(58, 100, again, on_purpose=True)]
    found = measure(lives, now=1e9)
    assert (found.steps, found.repeated_steps) == (150, 20)
    assert found.total == 100
    assert found.repeated == pytest.approx(10)
    assert found.training == pytest.approx(75)
    assert (found.getting_ready, found.saving) == (7, 1)
    assert found.down == pytest.approx(7)  # 4 s that no beat has told, 2 s between, 1 s told late
    assert found.share == pytest.approx(0.75)


def test_an_attempt_without_a_checkpoint_is_repeated_from_the_start() -> None:
    lives = [
        life(0, 10, beat(0, 8, 8, training=8.0)),
        life(10, 20, beat(0, 9, 9, training=9.0)),
    ]
    found = measure(lives, now=20)
    assert (found.steps, found.repeated_steps, found.repeated) == (9, 8, 8.0)


def test_a_death_in_a_later_phase_repeats_that_phases_steps_only() -> None:
    first = beat(1, 30, 130, training=130.0)
    second = beat(1, 50, 50, "00-000000000100.2-0001", training=50.0)
    found = measure([life(0, 130, first), life(130, 180, second)], now=180)
    assert (found.steps, found.repeated_steps, found.repeated) == (150, 30, 30.0)


def test_the_time_while_a_job_is_stopped_is_not_counted() -> None:
    lives = [
        life(0, 10, beat(0, 10, 10, training=10.0), on_purpose=True),
        life(5000, None, beat(0, 20, 10, "00-000000000010.0-0001", training=10.0)),
    ]
    found = measure(lives, now=5010)
    assert found.total == 20
    assert found.share == 1.0


def test_an_attempt_without_a_heartbeat_counts_as_down() -> None:
    found = measure([life(0, 5, None)], now=5)
    assert (found.total, found.down, found.share) == (5, 5, 0)
    assert measure([], now=5).share == 0


def test_each_activity_has_its_time() -> None:
    began = time.monotonic()
    status = Status()
    for activity in ("importing", "training", "validating", "training"):
        status.activity = activity
    status.move(0.25, "saving")
    status.steps_done = 3
    told = status.beat(1, 1, process_identity.here())
    assert told.steps_done == 3
    assert set(told.spent) == {"starting", "importing", "training", "validating", "saving"}
    assert told.spent["saving"] == 0.25
    assert sum(told.spent.values()) <= time.monotonic() - began + 0.01
