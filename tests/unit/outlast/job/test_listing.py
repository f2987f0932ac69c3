"""The list of all jobs below a root, whatever else is there, also with very many of them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from outlast.job import heartbeat, listing, process_identity
from outlast.job import spec as specs
from outlast.job.events import Ended, Launched, Reached, Released, Resumed, StopRequested, Submitted
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage


@pytest.fixture(params=["file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    where = tmp_path / "root" if request.param == "file" else f"memory://{uuid.uuid4().hex}/root"
    return open_storage(where)


def submit(root: Storage, name: str) -> Storage:
    job = root.sub(name)
    job.create(layout.SPEC, specs.encode(JobSpec(job=name, script="train.py", created=1e9)))
    Journal(job).append(Submitted())
    return job


def test_a_missing_root_has_no_jobs(root: Storage) -> None:
    assert listing.listed(root) == []


def test_each_job_is_listed_with_its_newest_event_and_last_heartbeat(root: Storage) -> None:
    submit(root, "b")
    job = submit(root, "a")
    for attempt in (1, 2):
        Journal(job).claim(process_identity.here())
        status = heartbeat.Status()
        status.step = attempt * 100
        heartbeat.HeartbeatWriter(job, attempt, status, 60.0).stop(0)
        if attempt == 1:
            Journal(job).append(
                Ended(attempt=1, outcome=Outcome.KILLED, reason="", advanced=True, signal=9)
            )
    a, b = listing.listed(root)
    assert (a.name, b.name) == ("a", "b")
    assert a.entry is not None
    assert a.beat is not None
    assert (a.entry.attempt, a.beat.step) == (2, 200)
    assert b.entry is not None
    assert (b.entry.state, b.beat) == (State.PENDING, None)


def test_an_ended_job_is_listed_from_one_event(root: Storage) -> None:
    reached = Reached(phase=0, step=300, total_steps=300, epochs=3, logs={"loss": 0.5})
    for name, told in (("new", reached), ("old", None)):  # as earlier versions wrote it
        job = submit(root, name)
        Journal(job).claim(process_identity.here())
        status = heartbeat.Status()
        status.step = 299
        heartbeat.HeartbeatWriter(job, 1, status, 60.0).stop(0)
        Journal(job).append(Ended(attempt=1, outcome=Outcome.COMPLETED, reached=told))
    new, old = listing.listed(root)
    assert (new.beat, new.reached) == (None, reached)
    assert old.reached == Reached(step=299)
    Journal(root.sub("new")).append(Resumed())
    Journal(root.sub("new")).claim(process_identity.here())
    assert listing.listed(root)[0].reached is None  # the next attempt has not said anything yet


def test_who_has_a_job(root: Storage) -> None:
    storage, here = submit(root, "a"), process_identity.here()
    journal = Journal(storage)

    def owner() -> object:
        (found,) = listing.listed(root)
        assert found.owner == journal.existing_job().owner
        return found.owner

    assert owner() is None
    journal.claim(here)
    assert owner() == here
    journal.append(Launched(attempt=1))
    journal.append(StopRequested(by="somebody"))
    assert owner() == here
    journal.append(Ended(attempt=1, outcome=Outcome.PREEMPTED))
    assert owner() is None
    journal.append(Resumed())
    journal.claim(here)
    journal.append(Ended(attempt=2, outcome=Outcome.PREEMPTED))
    assert owner() == here
    journal.append(Released(reason="left"))
    assert owner() is None


def test_other_folders_are_omitted_and_damaged_jobs_are_not(root: Storage) -> None:
    root.create("a file", b"of somebody's")
    root.create("folder/file", b"of somebody's")
    root.create("notes/journal/00000001.json", b"of somebody's own journal")
    root.create(f"new/{layout.SPEC}", b"{}")
    root.create(f"damaged/{layout.SPEC}", b"{}")
    root.create(f"damaged/{layout.journal_event(1)}", b"no JSON")
    damaged, new = listing.listed(root)
    assert (damaged.name, damaged.entry) == ("damaged", None)
    assert "00000001.json" in damaged.problem
    assert new == listing.Listed("new", problem="no journal")


def test_many_jobs_are_listed_in_order(root: Storage) -> None:
    made = submit(root, "job-0000")
    event = made.read(layout.journal_event(1))
    names = [f"job-{number:04d}" for number in range(300)]
    for name in names[1:]:
        root.replace(f"{name}/{layout.journal_event(1)}", event, durable=False)
    found = listing.listed(root)
    assert [job.name for job in found] == names
    assert all(job.entry is not None for job in found)
