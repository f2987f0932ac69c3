"""The journal: events on storage, appended by compare-and-swap."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from outlast.errors import InvalidTransition, JobUnknown
from outlast.job.events import Claimed, Ended, Launched, Started, StopRequested, Submitted
from outlast.job.journal import Journal
from outlast.job.lifecycle import State, StopAttempt
from outlast.job.outcome import Outcome
from outlast.job.process_identity import Identity, here
from outlast_checkpoints.errors import FormatError, FormatTooNew, StorageError, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.testing import FaultyStorage

ME = Identity(host="a", pid=1, boot_id="x", start=1)


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "job")
    return open_storage(f"memory://{tmp_path}/job")


def test_each_event_is_one_file_and_every_reader_sees_the_same_job(storage: Storage) -> None:
    journal = Journal(storage)
    journal.append(Submitted())
    journal.append(Claimed(attempt=1, owner=ME))
    journal.append(Launched(attempt=1, handle={"pid": 4}))
    job = journal.append(Started(attempt=1))
    assert storage.list(layout.JOURNAL) == [f"{seq:08d}.json" for seq in range(1, 5)]
    other = Journal(storage)
    assert other.job() == job
    assert [entry.state for entry in other.read()] == [
        State.PENDING,
        State.PENDING,
        State.PENDING,
        State.RUNNING,
    ]
    newest = Journal(storage).newest()
    assert newest is not None
    assert (newest.seq, newest.state, newest.attempt, newest.by) == (4, State.RUNNING, 1, here())


def test_an_empty_folder_is_not_a_job(storage: Storage) -> None:
    journal = Journal(storage)
    assert journal.job() is None
    assert journal.newest() is None
    assert journal.latest_attempt() == 0
    with pytest.raises(JobUnknown):
        journal.existing_job()


def test_a_reader_sees_events_of_others(storage: Storage) -> None:
    writer, reader = Journal(storage), Journal(storage)
    writer.append(Submitted())
    assert len(reader.read()) == 1
    writer.append(Claimed(attempt=1, owner=ME))
    writer.append(StopRequested(by="x"))
    job = reader.existing_job()
    assert job.state is State.STOPPING
    assert reader.actions_after(3) == (StopAttempt(1, now=False),)
    assert reader.job_after(2).state is State.PENDING


def test_the_loser_of_a_race_applies_its_event_to_the_new_state(storage: Storage) -> None:
    first, second = Journal(storage), Journal(storage)
    first.append(Submitted())
    second.read()
    first.append(Claimed(attempt=1, owner=ME))
    # second's view is old; its event still fits, as event 3
    assert second.append(StopRequested(by="x")).state is State.STOPPING
    with pytest.raises(InvalidTransition) as caught:
        first.append(Claimed(attempt=2, owner=ME))
    assert "3 stop-requested -> stopping" in str(caught.value)  # the story


def test_of_many_claims_at_once_one_wins(storage: Storage) -> None:
    Journal(storage).append(Submitted())
    ready = threading.Barrier(16)
    won: list[int] = []
    lost: list[int] = []

    def claim(number: int) -> None:
        journal = Journal(storage)
        journal.read()
        ready.wait()
        try:
            journal.claim(Identity(host="h", pid=number, boot_id="b"))
            won.append(number)
        except InvalidTransition:
            lost.append(number)

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 15)
    owner = Journal(storage).existing_job().owner
    assert owner is not None
    assert owner.pid == won[0]


def test_the_fence_admits_only_the_newest_attempt(storage: Storage) -> None:
    writer, fenced = Journal(storage), Journal(storage)
    writer.append(Submitted())
    writer.append(Claimed(attempt=1, owner=ME))
    fenced.fence(1)
    writer.append(Ended(attempt=1, outcome=Outcome.LOST))
    fenced.fence(1)
    writer.append(Claimed(attempt=2, owner=ME))
    with pytest.raises(Superseded) as caught:
        fenced.fence(1)
    assert caught.value.exit_code == 76
    fenced.fence(2)


@pytest.mark.parametrize("fault", ["fail", "lost"])
def test_an_append_whose_answer_is_lost_counts_once(tmp_path: Path, fault: str) -> None:
    inner = open_storage(tmp_path)
    Journal(inner).append(Submitted())
    journal = Journal(FaultyStorage(inner, f"create@1:{fault}"))
    if fault == "fail":  # it was not written: the caller is told, and can try again
        with pytest.raises(StorageError):
            journal.append(Claimed(attempt=1, owner=ME))
        assert len(Journal(inner).read()) == 1
    job = journal.append(Claimed(attempt=1, owner=ME))
    assert job.attempt == 1
    assert Journal(inner).job() == job
    assert len(Journal(inner).read()) == 2


@pytest.mark.parametrize("data", [b"", b"{}", b'{"seq": 2', b'{"seq": 7}'])
def test_a_damaged_event_is_named(tmp_path: Path, data: bytes) -> None:
    storage = open_storage(tmp_path)
    Journal(storage).append(Submitted())
    storage.create(layout.journal_event(2), data)
    with pytest.raises(FormatError, match=r"journal/00000002\.json"):
        Journal(storage).read()


def test_an_event_that_is_not_allowed_is_damage_too(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    journal = Journal(storage)
    journal.append(Submitted())
    journal.append(Claimed(attempt=1, owner=ME))
    second = json.loads(storage.read(layout.journal_event(2)))
    storage.create(layout.journal_event(3), json.dumps({**second, "seq": 3}).encode())
    with pytest.raises(FormatError, match="Event claimed is not allowed while the job is pending"):
        Journal(storage).read()
    storage.delete(layout.journal_event(3))
    storage.create(layout.journal_event(3), json.dumps({**second, "seq": 4}).encode())
    with pytest.raises(FormatError, match="it has the number 4"):
        Journal(storage).read()


def test_a_newer_format_says_that_it_is_newer(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    storage.create(layout.journal_event(1), b'{"format": 2, "seq": 1, "event": {"kind": "new"}}')
    with pytest.raises(FormatTooNew):
        Journal(storage).read()


def test_an_event_that_arrives_late_is_found_by_the_next_try(
    storage: Storage,
) -> None:
    faulty = FaultyStorage(storage, "create@3:late")
    journal = Journal(faulty)
    journal.append(Submitted())
    journal.append(Claimed(attempt=1, owner=ME))
    with pytest.raises(StorageError):
        journal.append(Launched(attempt=1, handle={"pid": 4}))
    faulty.deliver()
    job, actions = journal.act(Launched(attempt=1, handle={"pid": 4}))
    assert (job.handle, actions) == ({"pid": 4}, ())
    assert len(Journal(storage).read()) == 3
    with pytest.raises(InvalidTransition):
        journal.append(Launched(attempt=1, handle={"pid": 4}))


def test_a_late_event_is_not_confused_with_that_of_another_process(storage: Storage) -> None:
    faulty = FaultyStorage(storage, "create@2:late")
    journal = Journal(faulty)
    journal.append(Submitted())
    with pytest.raises(StorageError):
        journal.append(StopRequested(by="me"))
    Journal(storage).append(StopRequested(by="you"))
    faulty.deliver()
    with pytest.raises(InvalidTransition):  # the job is stopped: theirs was first
        journal.append(StopRequested(by="me"))
    assert [entry.event for entry in journal.read()] == [Submitted(), StopRequested(by="you")]


def test_a_late_event_may_arrive_at_any_moment_of_the_next_try(storage: Storage) -> None:
    for delay in range(1, 6):
        job = storage.sub(f"after{delay}")

        class Arriving(FaultyStorage):
            left = delay

            def read(self, path: str) -> bytes:
                self.left -= bool(self.late)
                if self.late and self.left == 0:
                    self.deliver()
                return super().read(path)

        faulty = Arriving(job, "create@3:late")
        journal = Journal(faulty)
        journal.append(Submitted())
        journal.append(Claimed(attempt=1, owner=ME))
        while True:
            try:
                found = journal.append(Launched(attempt=1, handle={"pid": 4}))
                break
            except StorageError:
                continue
        assert found.handle == {"pid": 4}
        faulty.deliver()
        assert len(Journal(job).read()) == 3


def test_the_end_of_an_attempt_is_recorded_once_even_if_reported_differently(
    storage: Storage,
) -> None:
    faulty = FaultyStorage(storage, "create@4:late")
    journal = Journal(faulty)
    for event in (Submitted(), Claimed(attempt=1, owner=ME), Launched(attempt=1)):
        journal.append(event)
    with pytest.raises(StorageError):
        journal.append(Ended(attempt=1, outcome=Outcome.CRASHED, delay=1.25))
    faulty.deliver()
    job = journal.append(Ended(attempt=1, outcome=Outcome.CRASHED, delay=1.5))
    assert (job.state, job.delay, len(Journal(storage).read())) == (State.WAITING, 1.25, 4)
