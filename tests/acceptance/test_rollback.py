"""Jobs that roll back before a loss that is not finite, under the real command line."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outlast.job.events import Ended
from outlast.job.outcome import Outcome
from tests.acceptance.jobs import Training, assert_same, outlast

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(600)]

FAULTS = "0:5,17,24 1:7 2:1 3:1,30"
# What the default policy leaves out, by phase: the batch before a fault and the faulty one; of
# executions of three steps the whole ones. Phase 2 shuffles.
LEFT_OUT = {
    0: [4, 5, 16, 17, 23, 24],
    1: [4, 5, 6, 7, 8, 9],
    2: [5, 6, 36, 37],  # the second one is the first batch of the second epoch
    3: [1, 29, 30],
}
ROLLED_BACK = 8  # attempts; the shuffled phase meets its faulty batch in each of its two epochs
OPTIONS = "--save-every 5 --on-nan rollback"
Diverging = Callable[..., Training]


def rollbacks(training: Training) -> int:
    job = training.journal.job()
    return 0 if job is None else len(job.rollbacks)


def has_rolled_back(training: Training, times: int) -> bool:
    return rollbacks(training) >= times


def left_out(training: Training) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for row in training.rows():
        if row["kind"] == "left_out":
            found.setdefault(row["phase"], []).append(row["step"])
    return found


@pytest.fixture
def diverging(train: Callable[..., Training]) -> Diverging:
    """Return a function that makes a job of the script "diverging"."""

    def make(faults: str = FAULTS, options: str = "") -> Training:
        training = train("diverging", options=f"{OPTIONS} {options}", forked=True)
        (training.control / "faults").write_text(faults)
        return training

    return make


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Training]:
    """A training with rollbacks that nobody kills."""
    folder = tmp_path_factory.mktemp("steady")
    training = Training(folder, "diverging", digits, options=OPTIONS, forked=True)
    (training.control / "faults").write_text(FAULTS)
    training.start()
    training.end()
    yield training
    training.close()


def test_faulty_batches_are_left_out_and_nothing_else(steady: Training) -> None:
    assert left_out(steady) == LEFT_OUT
    events = [entry.event for entry in steady.journal.read()]
    ends = [event for event in events if isinstance(event, Ended)]
    back = [end for end in ends if end.outcome is Outcome.ROLLED_BACK]
    assert len(back) == ROLLED_BACK == rollbacks(steady)
    assert {end.exit_code for end in back} == {65}
    assert ends[-1].outcome is Outcome.COMPLETED
    logged = [row for n in range(1, ROLLED_BACK + 2) for row in steady.log(n)]
    assert sum(row["event"] == "loss_not_finite" for row in logged) == ROLLED_BACK
    assert any(row["event"] == "batches_left_out" and row["step"] == 16 for row in logged)


def test_what_it_says(steady: Training) -> None:
    at = ("--root", steady.root, steady.script)
    status = outlast("status", *at).stdout
    assert "steps 4 to 5, 16 to 17, 23 to 24, 6 to 7, 5 to 6, 36 to 37, 1, 29 to 30" in status
    assert len(json.loads(outlast("status", "--json", *at).stdout)["rollbacks"]) == ROLLED_BACK
    events = outlast("events", *at).stdout
    assert (
        "attempt 1 rolled-back, the loss became nan at step 5 (epoch 0, batch 4); the job "
        "continues before it and leaves out steps 4 to 5" in events
    )
    assert outlast("history", "--csv", *at).stdout.count("left_out") == sum(
        map(len, LEFT_OUT.values())
    )
    assert outlast("verify", *at).returncode == 0
    audit = outlast("audit", "--json", "--at", "phase:3", *at)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert json.loads(audit.stdout)["exact"]


# A kill of each attempt; many of the attempts end by themselves before.
KILLS = "2,4,30+0.01,12,1,9+0.02,1,6,5+0.05,3,11+0.01,2,1"


def test_killed_at_any_point_it_ends_the_same(
    diverging: Diverging, steady: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILLED_AFTER", KILLS)
    training = diverging()
    training.start()
    training.end()
    assert rollbacks(training) == ROLLED_BACK
    assert training.job().attempt > ROLLED_BACK + 5
    assert_same(training, steady)


def test_supervisors_that_are_killed_change_nothing(diverging: Diverging, steady: Training) -> None:
    training = diverging()
    training.start()
    for count in (1, 2, 4, 6):
        training.until("a rollback", functools.partial(has_rolled_back, training, count))
        training.kill_supervisor()
        training.resume()
    training.end()
    assert rollbacks(training) == ROLLED_BACK
    assert_same(training, steady)


def test_one_more_fault_at_one_place_ends_the_job(diverging: Diverging) -> None:
    training = diverging("0:5,6,7,8,9,20", "--rollback back:0,max:3")
    training.start()
    training.end(65)
    job = training.job()
    assert (job.state, rollbacks(training)) == ("failed", 3)
    assert job.reason == (
        "the loss became nan at step 8 (epoch 0, batch 7); 3 rollbacks at this place were allowed, "
        "and left out steps 5 to 7"
    )
