"""The limit counts the time of all attempts since the job was last resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlast.job import process_identity
from outlast.job.events import Ended, Resumed, StopRequested, Submitted
from outlast.job.journal import Entry, Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.supervisor.time_limit import TimeLimit, spent
from outlast_checkpoints.storage import open_storage


def entry(at: float, event: object) -> Entry:
    return Entry(
        seq=1, event=event, state=State.PENDING, attempt=1, at=at, by=process_identity.here()
    )  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    found = Journal(open_storage(tmp_path / "a"))
    found.append(Submitted())
    found.claim(process_identity.here())
    return found


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_asks_once_when_the_running_attempt_takes_too_long(journal: Journal) -> None:
    clock = Clock()
    limit = TimeLimit(10.0, clock)
    assert limit.look(journal) is None
    clock.now += 9.9
    assert limit.look(journal) is None
    clock.now += 0.1
    note = limit.look(journal)
    assert note is not None
    assert note.by == "--max-duration 10 s"
    assert not note.now
    assert limit.look(journal) is None


def test_there_is_none_by_default(journal: Journal) -> None:
    clock = Clock()
    limit = TimeLimit(0.0, clock)
    clock.now += 1e9
    assert limit.look(journal) is None


def test_waiting_between_attempts_does_not_count(journal: Journal) -> None:
    journal.append(Ended(attempt=1, outcome=Outcome.CRASHED, delay=60.0))
    clock = Clock()
    limit = TimeLimit(10.0, clock)
    clock.now += 1000.0
    assert limit.look(journal) is None


def test_ended_attempts_count_until_a_resume(journal: Journal) -> None:
    ended = Ended(attempt=1, outcome=Outcome.CRASHED)
    journal.append(ended)
    claimed = journal.entry(2).event
    first = [entry(0.0, Submitted()), entry(5.0, claimed), entry(12.0, ended)]
    second = [entry(20.0, claimed), entry(23.0, ended), entry(24.0, StopRequested())]
    assert spent(first) == 7.0
    assert spent(first + second) == 10.0
    assert spent([*first, *second, entry(30.0, Resumed()), *first]) == 7.0
