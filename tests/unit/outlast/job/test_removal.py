"""A job is deleted whole, and what a deletion that was cut short leaves behind is known as such."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlast.errors import InvalidTransition, JobNotEnded, JobUnknown
from outlast.job import process_identity
from outlast.job.events import Ended, Removed, Resumed
from outlast.job.journal import Journal
from outlast.job.listing import listed
from outlast.job.outcome import Outcome
from outlast.job.removal import is_half_removed, remove
from outlast.job.spec import JobSpec
from outlast.job.submission import request_stop, resume, submit
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.testing import Died, FaultyStorage


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    """A root with a job "a" that has ended, and files of every kind in it."""
    storage = open_storage(tmp_path / "jobs")
    submit(storage, JobSpec(job="a", script="train.py"))
    journal = Journal(storage.sub("a"))
    journal.claim(process_identity.here())
    journal.append(Ended(attempt=1, outcome=Outcome.COMPLETED))
    for path in ("checkpoints/x/manifest.json", "attempts/0001/log.jsonl", "machine.json"):
        storage.sub("a").create(path, b"{}")
    return storage


def test_nothing_is_left(root: Storage) -> None:
    remove(root, "a")
    assert root.list("") == []
    assert not root.exists("a")
    with pytest.raises(JobUnknown):
        remove(root, "a")


def test_a_job_that_has_not_ended_is_refused(root: Storage) -> None:
    submit(root, JobSpec(job="b", script="train.py"))
    with pytest.raises(JobNotEnded, match="'b' is pending and has not ended"):
        remove(root, "b")
    request_stop(root.sub("b"))
    remove(root, "b")
    assert root.list("") == ["a"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_after_any_interruption_nothing_resumes_and_a_repetition_deletes(
    root: Storage, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty = FaultyStorage(root.sub("a"), f"any@{cut}:die-before")
    monkeypatch.setattr(root, "sub", lambda name: faulty)
    try:
        remove(root, "a")
    except Died:
        monkeypatch.undo()
        (left,) = listed(root)
        assert left.entry is not None
        if cut > 1:  # the event stands
            assert left.entry.state == "removed"
            assert is_half_removed(root.sub("a"))
            with pytest.raises(JobUnknown):
                resume(root.sub("a"))
        remove(root, "a")
    else:
        assert cut > 7
        monkeypatch.undo()
    assert root.list("") == []
    assert not root.exists("a")


def test_a_resume_at_the_same_moment_wins_or_is_refused(root: Storage) -> None:
    submit(root, JobSpec(job="b", script="train.py"))
    request_stop(root.sub("b"))
    late = Journal(root.sub("b"))
    late.read()
    Journal(root.sub("b")).append(Resumed())
    with pytest.raises(JobNotEnded):
        remove(root, "b")
    request_stop(root.sub("b"))
    Journal(root.sub("b")).append(Removed())
    with pytest.raises(InvalidTransition, match="resumed is not allowed while the job is removed"):
        late.append(Resumed())
