"""A fork is a job of its own, complete or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlast.errors import JobExists, JobUnknown
from outlast.job import process_identity
from outlast.job.events import Ended
from outlast.job.fork import fork
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.job.submission import load_spec, resume, submit
from outlast_checkpoints.errors import PlaceTaken
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import Died, FaultyStorage, sample_snapshot
from tests.support.checkpoints import at, begun

SPEC = JobSpec(job="b", script="train.py", max_retries=7)


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    """A root with a job "a" whose second attempt trains and has saved step 2."""
    found = open_storage(tmp_path / "jobs")
    submit(found, JobSpec(job="a", script="train.py"))
    journal = Journal(found.sub("a"))
    for attempt in (1, 2):
        journal.claim(process_identity.here())
        begun(found.sub("a"), attempt).save(sample_snapshot(attempt), reason="step")
        if attempt == 1:
            journal.append(Ended(attempt=1, outcome=Outcome.CRASHED))
    return found


def test_its_attempts_are_counted_on_from_the_checkpoint(root: Storage) -> None:
    fork(root.sub("a"), root, SPEC, at(2, 2))
    journal = Journal(root.sub("b"))
    job = journal.existing_job()
    assert (job.state, job.attempt, job.max_retries) == (State.PENDING, 2, 7)
    assert job.checkpoint == str(at(2, 2))
    assert resume(root.sub("b")).state is State.PENDING
    assert journal.claim(process_identity.here())[0].attempt == 3
    found, _ = CheckpointStore(root.sub("b"), attempt=3).begin()
    assert found is not None
    assert found.id == at(2, 2)
    assert Journal(root.sub("a")).existing_job().attempt == 2  # untouched


def test_a_name_that_is_taken_is_refused(root: Storage) -> None:
    fork(root.sub("a"), root, SPEC, at(1))
    with pytest.raises(JobExists):
        fork(root.sub("a"), root, SPEC, at(1))
    root.create("c/notes.txt", b"mine")
    with pytest.raises(PlaceTaken, match="it is not empty"):
        fork(root.sub("a"), root, JobSpec(job="c", script="train.py"), at(1))
    assert root.read("c/notes.txt") == b"mine"


def test_it_is_complete_or_no_job_and_a_repetition_completes_it(
    root: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cut in range(1, 60):
        faulty = FaultyStorage(root.sub("b"), f"any@{cut}:die-before")
        with monkeypatch.context() as patch:
            patch.setattr(root, "sub", lambda name, to=faulty: to)
            try:
                fork(open_storage(f"{root.root}/a"), root, SPEC, at(2, 2))
            except Died:
                pass
            else:
                break
        if not root.exists("b/spec.json"):
            with pytest.raises(JobUnknown):
                load_spec(root.sub("b"))
            fork(root.sub("a"), root, SPEC, at(2, 2))
        assert Journal(root.sub("b")).existing_job().attempt == 2
        assert CheckpointStore(root.sub("b")).verify(at(2, 2)) == []
        root.delete_tree("b")
    assert cut > 10
