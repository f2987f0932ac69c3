"""The slot of a process in a cluster. A newer slot of the same job takes over."""

from __future__ import annotations

from pathlib import Path

import pytest

from outlast.errors import InvalidTransition, JobBusy
from outlast.job import cluster_slot, process_identity, takeover
from outlast.job import spec as specs
from outlast.job.cluster_slot import Slot
from outlast.job.events import Launched, Queued, Resumed, Started, StopRequested, Submitted
from outlast.job.journal import Journal
from outlast.job.lifecycle import State, describe
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

SPEC = JobSpec(job="j", lost_after=30.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = open_storage(tmp_path / "j")
    storage.create(layout.SPEC, specs.encode(SPEC))
    return storage


def place(start: int = 0, number: str = "7") -> Slot:
    return Slot(engine="slurm", id=number, start=start)


def test_the_slot_is_read_from_the_variables_of_slurm() -> None:
    assert cluster_slot.here({}) is None
    assert cluster_slot.here({"SLURM_JOB_ID": ""}) is None
    assert cluster_slot.here({"SLURM_JOB_ID": "7"}) == place()
    assert cluster_slot.here({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}) == place(2)


def test_each_task_of_an_array_has_its_own_slot() -> None:
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "8"}
    assert cluster_slot.here(task) == place(number="7_1")
    last = {**task, "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "3"}
    assert cluster_slot.here(last) == place(3, "7_2")


def test_only_a_later_start_of_the_same_job_follows() -> None:
    assert place(1).follows(place(0))
    assert not place(1).follows(place(1))
    assert not place(0).follows(place(1))
    assert not place(1).follows(place(0, "8"))
    assert not place(1).follows(None)


@pytest.mark.parametrize("there", ["0", "1", "another job", None])
def test_a_later_start_takes_the_job_from_a_running_owner(
    there: str | None, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(storage)
    journal.append(Submitted())
    slots = {"0": place(0), "1": place(1), "another job": place(0, "8"), None: None}
    journal.claim(process_identity.here(), slots[there])  # the owner, this process, is alive
    journal.append(Launched(attempt=1))
    journal.append(Started(attempt=1))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    if there != "0":
        with pytest.raises(JobBusy):
            takeover.free(storage, Journal(storage), SPEC)
        return
    job = takeover.free(storage, Journal(storage), SPEC)
    assert (job.owner, job.outcome) == (None, Outcome.LOST)
    assert job.state in (State.PENDING, State.WAITING)


def test_a_queued_job_shows_its_queue_until_it_is_resumed(storage: Storage) -> None:
    journal = Journal(storage)
    journal.append(Submitted())
    job = journal.append(Queued(engine="slurm", handle={"id": "7"}))
    assert describe(job) == "pending: queued in slurm as 7"
    job = journal.append(StopRequested(by="me"))
    with pytest.raises(InvalidTransition):
        journal.append(Queued(engine="slurm", handle={"id": "8"}))
    assert job.queued is not None
    assert journal.append(Resumed()).queued is None
