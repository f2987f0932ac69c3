"""How often an automatic schedule saves, from measured costs and failures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.job import failure_stats as failures
from outlast.job import process_identity
from outlast.job.events import Claimed, Ended, Launched, Started, Submitted
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.save_interval import (
    ASSUMED_UPTIME,
    LONGEST,
    UNMEASURED,
    Failures,
    SaveCost,
    daly,
    first,
    interval,
)
from outlast_checkpoints.storage import open_storage

seconds = st.floats(1e-4, 1e5)


def waste(between: float, cost: float, mean_time: float) -> float:
    """Daly's expected time, over the useful time, of a training with a restart at no cost."""
    return mean_time / between * (math.exp((between + cost) / mean_time) - 1)


@pytest.mark.parametrize("cost", [0.01, 0.3, 5.0, 60.0])
@pytest.mark.parametrize("mean_time", [120.0, 3600.0, 1e6])
def test_dalys_formula_minimizes_the_waste(cost: float, mean_time: float) -> None:
    best = waste(daly(cost, mean_time), cost, mean_time)
    tried = [waste(daly(cost, mean_time) * k / 50, cost, mean_time) for k in range(5, 500)]
    assert best <= min(tried) * 1.002


def test_for_a_small_cost_it_is_youngs_formula() -> None:
    assert daly(0.01, 3600.0) == pytest.approx(math.sqrt(2 * 0.01 * 3600), rel=0.01)


def cost_of(held: float, writing: float, *, measured: bool = True) -> SaveCost:
    """Return a cost of `held` seconds, written in so many others."""
    cost = SaveCost()
    cost.steps(1, 1.0, writing=False)
    cost.held(held)
    if measured:
        cost.steps(1, 1.0, writing=True)
    cost.written(writing)
    return cost


@given(seconds, seconds, st.integers(0, 100), seconds, st.floats(0.001, 1))
def test_saves_never_take_more_than_their_share(
    cost: float, writing: float, failures: int, uptime: float, overhead: float
) -> None:
    chosen = interval(cost_of(cost, writing), Failures(failures, uptime), overhead)
    assert cost / chosen <= overhead * (1 + 1e-9)
    assert chosen >= 2 * writing
    assert chosen <= max(LONGEST, cost / overhead, 2 * writing)


def test_the_cost_of_a_save_is_learned_quickly() -> None:
    assert interval(cost_of(0.3, 1.0, measured=False), Failures(), 0.01) == UNMEASURED
    assert interval(cost_of(0.3, 1.0), Failures(), 0.01) == pytest.approx(30.0)


def test_short_attempts_still_make_progress() -> None:
    lives = (500.0, 21.0, 19.0, 20.0, 300.0)
    found = Failures(5, sum(lives), lives)
    assert interval(cost_of(0.5, 1.0), found, 0.01) == daly(0.5, 21.0) < 21.0 / 4
    assert interval(cost_of(0.01, 0.02), found, 0.01) == daly(0.01, 860 / 6 + 100) > 1
    assert interval(cost_of(5.0, 1.0), found, 0.01) == 21.0 / 4
    assert interval(cost_of(0.5, 1.0, measured=False), found, 0.01) == UNMEASURED


def test_many_failures_save_more_often_than_few() -> None:
    def chosen(count: int, hours: float) -> float:
        return interval(cost_of(0.05, 0.3), Failures(count, hours * 3600), 0.01)

    assert Failures().mean_time_between == ASSUMED_UPTIME
    assert chosen(20, 1) < chosen(0, 0) < chosen(1, 10) < chosen(0, 100)


def test_the_cost_of_a_save_is_the_held_time_and_the_slower_steps() -> None:
    cost = SaveCost()
    cost.held(0.002)
    cost.written(0.5)
    assert cost.seconds == pytest.approx(0.502)  # nothing was measured yet
    for _ in range(5):
        cost.steps(10, 1.0, writing=False)
    cost.held(0.003)
    cost.steps(10, 1.2, writing=True)
    cost.steps(1, 0.15, writing=True)
    cost.written(0.4)
    assert cost.seconds == pytest.approx(0.003 + 0.2 + 0.05)
    assert cost.writing == 0.4
    cost.held(0.003)
    cost.steps(10, 0.9, writing=True)  # faster, by chance: a save gives nothing back
    cost.written(0.4)
    assert cost.seconds == pytest.approx(0.7 * 0.253 + 0.3 * 0.003)


def test_failures_are_counted_from_the_journal(tmp_path: Path) -> None:
    journal = Journal(open_storage(tmp_path))
    journal.append(Submitted())
    for attempt, outcome in enumerate([Outcome.KILLED, Outcome.PREEMPTED, Outcome.STOPPED], 1):
        journal.append(Claimed(attempt=attempt, owner=process_identity.here()))
        journal.append(Launched(attempt=attempt))
        journal.append(Started(attempt=attempt))
        journal.append(Ended(attempt=attempt, outcome=outcome, advanced=True))
    entries = journal.read()
    found = failures.seen_in(entries)
    assert found.count == len(found.lives) == 2
    started = [e.at for e in entries if isinstance(e.event, Started)]
    ended = [e.at for e in entries if isinstance(e.event, Ended)]
    assert found.seconds == pytest.approx(sum(b - a for a, b in zip(started, ended, strict=True)))


def test_the_first_save_is_soon_but_not_immediate() -> None:
    assert first(Failures()) == UNMEASURED
    assert first(Failures(1, 20.0, (20.0,))) == UNMEASURED
    assert first(Failures(3, 12.0, (4.0, 2.0, 6.0))) == 1.0
