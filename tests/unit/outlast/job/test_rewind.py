"""A rewind is an attempt that trains nothing, whatever state the job was in."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlast.errors import JobBusy
from outlast.job import process_identity
from outlast.job.events import Ended
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.rewind import rewind
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.errors import CheckpointDamaged, NoCheckpoint, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import Died, FaultyStorage, sample_snapshot
from tests.support.checkpoints import at, begun


@pytest.fixture
def job(tmp_path: Path) -> Storage:
    """A job whose first attempt saved steps 1 to 3 and is still at work."""
    root = open_storage(tmp_path / "jobs")
    submit(root, JobSpec(job="a", script="train.py"))
    storage = root.sub("a")
    Journal(storage).claim(process_identity.here())
    store = begun(storage)
    for step in (1, 2, 3):
        store.save(sample_snapshot(step), reason="step")
    return storage


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.DIVERGED, Outcome.STOPPED])
def test_a_job_that_has_ended_is_pending_again(job: Storage, outcome: Outcome) -> None:
    Journal(job).append(Ended(attempt=1, outcome=outcome))
    rewind(job, at(2))
    found = Journal(job).existing_job()
    assert (found.state, found.attempt, found.owner) == (State.PENDING, 2, None)
    assert (found.outcome, found.failures) == (Outcome.REWOUND, 0)
    assert found.reason == f"the job continues from {at(2)}"
    assert CheckpointStore(job).ids() == [at(1), at(2)]
    assert Journal(job).claim(process_identity.here())[0].attempt == 3


def test_a_job_at_work_is_refused(job: Storage) -> None:
    with pytest.raises(JobBusy):
        rewind(job, at(2))
    assert CheckpointStore(job).ids() == [at(1), at(2), at(3)]


def test_a_missing_checkpoint_changes_nothing(job: Storage) -> None:
    Journal(job).append(Ended(attempt=1, outcome=Outcome.COMPLETED))
    with pytest.raises(NoCheckpoint):
        rewind(job, at(9))
    assert Journal(job).existing_job().state is State.SUCCEEDED


def test_a_damaged_checkpoint_changes_nothing(job: Storage) -> None:
    Journal(job).append(Ended(attempt=1, outcome=Outcome.COMPLETED))
    job.replace(layout.checkpoint_file(at(2), "state.h5"), b"damaged")
    with pytest.raises(CheckpointDamaged):
        rewind(job, at(2))
    assert Journal(job).existing_job().state is State.SUCCEEDED


def test_a_storage_that_fails_leaves_the_job_free(job: Storage) -> None:
    Journal(job).append(Ended(attempt=1, outcome=Outcome.COMPLETED))
    faulty = FaultyStorage(job, "create@3:fail create@4:fail")  # the origin, twice
    with pytest.raises(StorageError):
        rewind(faulty, at(2))
    found = Journal(job).existing_job()
    assert (found.state, found.owner) == (State.PENDING, None)
    assert found.reason.startswith("the rewind failed: ")
    assert CheckpointStore(job).ids() == [at(1), at(2), at(3)]


@pytest.mark.parametrize("cut", range(1, 5))
def test_after_a_death_it_is_whole_or_has_no_effect(job: Storage, cut: int) -> None:
    Journal(job).append(Ended(attempt=1, outcome=Outcome.COMPLETED))
    with pytest.raises(Died):
        rewind(FaultyStorage(job, f"any@{cut}:die-before"), at(2))
    whole = [at(1), at(2), at(3)]
    assert CheckpointStore(job).ids() == (whole if cut < 4 else whole[:2])
