"""How long a retry waits."""

from __future__ import annotations

import pytest

from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.supervisor.backoff import delay

SPEC = JobSpec(job="a", backoff=1.0, backoff_max=60.0)


@pytest.mark.parametrize(
    ("fruitless", "low", "high"),
    [(1, 1, 2), (2, 2, 3), (3, 4, 5), (6, 32, 33), (7, 60, 60), (500, 60, 60)],
)
def test_it_doubles_up_to_the_limit_with_jitter(fruitless: int, low: float, high: float) -> None:
    found = {delay(SPEC, fruitless, Outcome.CRASHED) for _ in range(50)}
    assert all(low <= seconds <= high for seconds in found)
    assert len(found) > 1 or low == high


def test_an_attempt_with_progress_is_restarted_immediately() -> None:
    assert delay(SPEC, 0, Outcome.KILLED) == 0


def test_a_preempted_attempt_is_restarted_immediately_unless_earlier_ones_made_no_progress() -> (
    None
):
    assert delay(SPEC, 0, Outcome.PREEMPTED) == 0
    assert delay(SPEC, 1, Outcome.PREEMPTED) == 0
    assert 1 <= delay(SPEC, 2, Outcome.PREEMPTED) <= 2
    assert delay(SPEC, 100, Outcome.PREEMPTED) == 60


def test_no_backoff_is_no_wait() -> None:
    assert delay(JobSpec(job="a", backoff=0), 5, Outcome.CRASHED) == 0
