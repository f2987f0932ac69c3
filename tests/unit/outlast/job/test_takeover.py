"""Who may take over a job, and when."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from outlast.errors import JobBusy
from outlast.job import process_identity, spool_settings, stop_note, takeover
from outlast.job import spec as specs
from outlast.job.events import Claimed, Ended, Launched, Reached, Started, StopRequested, Submitted
from outlast.job.heartbeat import Beat
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from outlast.job.process_identity import Identity
from outlast.job.spec import JobSpec
from outlast.job.stop_note import StopNote
from outlast_checkpoints.format import layout, lineage
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.lineage import Origin
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from tests.support.away import Bucket

SPEC = JobSpec(job="j", heartbeat_every=1.0, lost_after=30.0, grace=10.0)
ELSEWHERE = Identity(host="elsewhere", pid=7, boot_id="other", start=1)


class Clock:
    """Time that passes only while somebody sleeps; `during` happens at given moments."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.during: list[tuple[float, object]] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.during and self.now >= self.during[0][0]:
            happen = self.during.pop(0)[1]
            assert callable(happen)
            happen()


@pytest.mark.parametrize("ended", [None, 75])
def test_the_owner_says_whether_a_job_is_left_alone(ended: int | None) -> None:
    here, dead = process_identity.here(), ended_process()
    mine = {"attempt": 1, "host": here.host, "boot_id": here.boot_id}
    orphan = Beat(pid=here.pid, process_start=here.start, ended=ended, **mine)
    lost = Beat(pid=dead.pid, process_start=dead.start, ended=ended, **mine)
    for beat in (None, orphan, lost):
        assert not takeover.is_gone(None, beat)
        assert not takeover.is_gone(here, beat)
        assert takeover.is_gone(dead, beat), "it has saved and left, but nobody goes on"
        seen = beat is lost and ended is None
        assert takeover.is_gone(ELSEWHERE, beat) is seen


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = open_storage(tmp_path / "j")
    storage.create(layout.SPEC, specs.encode(SPEC))
    return storage


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def owned(storage: Storage, owner: Identity, *, started: bool = True) -> Journal:
    journal = Journal(storage)
    journal.append(Submitted())
    journal.append(Claimed(attempt=1, owner=owner))
    if started:
        journal.append(Launched(attempt=1, handle={}))
        journal.append(Started(attempt=1))
    return journal


def beat(storage: Storage, count: int, **more: object) -> None:
    found = Beat(attempt=1, count=count, **more)  # type: ignore[arg-type]
    storage.replace(layout.heartbeat(1), msgspec.json.encode(found))


def ended_process() -> Identity:
    process = subprocess.Popen([sys.executable, "-c", ""])
    who = process_identity.of_process(process.pid)
    process.wait()
    return who


def take(storage: Storage, journal: Journal, clock: Clock) -> list[str]:
    waited: list[str] = []
    takeover.free(storage, journal, SPEC, clock=clock, sleep=clock.sleep, on_wait=waited.append)
    return waited


def test_a_job_without_an_owner_is_free_immediately(storage: Storage) -> None:
    journal, clock = Journal(storage), Clock()
    journal.append(Submitted())
    assert take(storage, journal, clock) == []
    assert clock.now == 1000.0


def test_a_living_local_owner_is_named_immediately(
    storage: Storage, child: subprocess.Popen[bytes]
) -> None:
    who = process_identity.of_process(child.pid)
    journal, clock = owned(storage, who), Clock()
    with pytest.raises(JobBusy) as caught:
        take(storage, journal, clock)
    assert str(child.pid) in str(caught.value)
    assert who.host in str(caught.value)
    assert caught.value.exit_code == 5
    assert clock.now == 1000.0


@pytest.mark.parametrize("started", [True, False])
def test_a_dead_local_owner_is_written_off_immediately(storage: Storage, started: bool) -> None:
    journal, clock = owned(storage, ended_process(), started=started), Clock()
    assert take(storage, journal, clock) == []
    assert clock.now == 1000.0
    job = journal.existing_job()
    assert (job.state, job.owner, job.outcome) == (State.PENDING, None, Outcome.LOST)
    assert job.failures == 1


def test_a_dead_owner_between_two_attempts_is_written_off_immediately(storage: Storage) -> None:
    journal = owned(storage, ended_process())
    journal.append(Ended(attempt=1, outcome=Outcome.CRASHED, delay=50))
    assert journal.existing_job().state is State.WAITING
    take(storage, journal, Clock())
    assert journal.existing_job().state is State.PENDING


@pytest.mark.parametrize(
    ("ended", "state"), [(0, State.SUCCEEDED), (75, State.PENDING), (3, State.FAILED)]
)
def test_the_last_heartbeat_of_the_attempt_decides_the_outcome(
    storage: Storage, ended: int, state: State
) -> None:
    journal = owned(storage, ended_process())
    beat(storage, 9, ended=ended, step=7, logs={"loss": 0.5})
    take(storage, journal, Clock())
    assert journal.existing_job().state is state
    assert journal.existing_job().exit_code == ended
    (end,) = [entry.event for entry in journal.read() if isinstance(entry.event, Ended)]
    assert end.reached == Reached(step=7, logs={"loss": 0.5})


def test_a_changed_heartbeat_of_a_remote_owner_means_that_it_is_running(storage: Storage) -> None:
    journal, clock = owned(storage, ELSEWHERE), Clock()
    beat(storage, 1)
    clock.during = [(1005.0, lambda: beat(storage, 2))]
    with pytest.raises(JobBusy, match="elsewhere"):
        take(storage, journal, clock)
    assert clock.now < 1006.0


def test_a_remote_owner_is_gone_after_the_limit_of_silence(storage: Storage) -> None:
    journal, clock = owned(storage, ELSEWHERE), Clock()
    beat(storage, 1, at=1e12)  # what its clock says is of no interest
    waited = take(storage, journal, clock)
    assert 1030.0 <= clock.now < 1031.0
    assert "waiting 30 s for a sign of life" in waited[0]
    assert journal.existing_job().outcome is Outcome.LOST


def test_a_waiting_remote_owner_gets_its_delay_in_addition(storage: Storage) -> None:
    journal, clock = owned(storage, ELSEWHERE), Clock()
    journal.append(Ended(attempt=1, outcome=Outcome.CRASHED, delay=50.0))
    take(storage, journal, clock)
    assert 1080.0 <= clock.now < 1081.0


def test_a_stopped_local_process_is_watched_like_a_remote_owner(
    storage: Storage, child: subprocess.Popen[bytes]
) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    journal, clock = owned(storage, process_identity.of_process(child.pid)), Clock()
    beat(storage, 1)
    take(storage, journal, clock)
    assert 1030.0 <= clock.now < 1031.0


def test_an_orphan_gets_the_grace_to_save(storage: Storage, child: subprocess.Popen[bytes]) -> None:
    orphan = process_identity.of_process(child.pid)
    journal, clock = owned(storage, ended_process()), Clock()
    its = {
        "host": orphan.host,
        "pid": orphan.pid,
        "boot_id": orphan.boot_id,
        "process_start": orphan.start,
    }
    beat(storage, 1, **its)

    def leave() -> None:
        beat(storage, 2, ended=75, **its)
        child.kill()
        child.wait()

    clock.during = [(1004.0, leave)]
    waited = take(storage, journal, clock)
    assert "to save and leave" in waited[0]
    assert 1004.0 <= clock.now < 1005.0
    assert journal.existing_job().outcome is Outcome.PREEMPTED


def test_a_stop_that_the_owner_could_not_record_is_recorded(tmp_path: Path) -> None:
    bucket = Bucket.at(tmp_path / "bucket")
    journal, clock = owned(bucket, ended_process()), Clock()
    spool = spool_settings.spool_of(bucket, SPEC)
    assert spool is not None
    stop_note.leave(spool.storage, 1, StopNote(by="somebody"))
    job = takeover.free(bucket, journal, SPEC, clock=clock, sleep=clock.sleep)
    assert (job.state, job.owner) == (State.STOPPED, None)
    events = [entry.event for entry in journal.read()]
    assert StopRequested(by="somebody") in events
    assert stop_note.take(spool.storage, 1) is None


@pytest.mark.parametrize("pid", [os.getpid(), 1], ids=["mine", "1"])
def test_an_owner_on_another_host_of_this_name_is_watched_and_not_looked_up_here(
    storage: Storage, pid: int
) -> None:
    """Its process id means nothing here, even if a process has the same one."""
    here = process_identity.of_process(pid)
    other = msgspec.structs.replace(here, boot_id="another boot/pid:[1]")
    journal, clock = owned(storage, other), Clock()
    clock.during = [(1010.0, lambda: beat(storage, 2, host=other.host, pid=pid))]
    beat(storage, 1, host=other.host, pid=pid, boot_id=other.boot_id, process_start=other.start)
    with pytest.raises(JobBusy):
        take(storage, journal, clock)
    assert 1010.0 <= clock.now < 1011.0, "it beats"
    clock.during = []
    waited = take(storage, journal, clock)
    assert f"{other} has the job" in waited[0]
    assert 1040.0 <= clock.now < 1042.0, "silent for so long"
    assert journal.existing_job().outcome is Outcome.LOST


def test_an_orphan_that_stays_is_written_off_after_the_grace(
    storage: Storage, child: subprocess.Popen[bytes]
) -> None:
    orphan = process_identity.of_process(child.pid)
    journal, clock = owned(storage, ended_process()), Clock()
    beat(
        storage,
        1,
        host=orphan.host,
        pid=orphan.pid,
        boot_id=orphan.boot_id,
        process_start=orphan.start,
    )
    take(storage, journal, clock)
    assert 1010.0 <= clock.now < 1011.0
    assert journal.existing_job().outcome is Outcome.LOST


def test_an_orphan_may_save_longer_than_the_grace_while_it_beats(
    storage: Storage, child: subprocess.Popen[bytes]
) -> None:
    orphan = process_identity.of_process(child.pid)
    journal, clock = owned(storage, ended_process()), Clock()
    its = {
        "host": orphan.host,
        "pid": orphan.pid,
        "boot_id": orphan.boot_id,
        "process_start": orphan.start,
        "activity": "saving",
    }
    beat(storage, 1, **its)
    clock.during = [
        (1000.0 + 2 * n, functools.partial(beat, storage, n + 1, **its)) for n in range(1, 21)
    ]
    take(storage, journal, clock)
    assert 1070.0 <= clock.now < 1071.0  # 30 s after its last beat at 1040
    assert journal.existing_job().outcome is Outcome.LOST


def test_an_owner_that_records_the_end_is_running(storage: Storage) -> None:
    """Its attempt just ended: the heartbeat is still, but the journal goes on."""
    journal, clock = owned(storage, ELSEWHERE), Clock()
    beat(storage, 1)
    theirs = Journal(storage)
    clock.during = [
        (1029.0, lambda: theirs.append(Ended(attempt=1, outcome=Outcome.CRASHED, delay=5.0)))
    ]
    take(storage, journal, clock)
    assert clock.now >= 1029.0 + 35.0  # watched anew from its last sign


def commit(storage: Storage, name: CheckpointId) -> str:
    storage.create(layout.manifest(name), b"{}")
    return str(name)


def test_a_new_checkpoint_is_one_beyond_where_the_attempt_started(storage: Storage) -> None:
    assert takeover.new_checkpoint(storage, 1) is None
    commit(storage, CheckpointId(0, 0, Stage.STEP, 1))  # the "start" checkpoint is no progress
    assert takeover.new_checkpoint(storage, 1) is None
    first = commit(storage, CheckpointId(0, 100, Stage.STEP, 1))
    assert takeover.new_checkpoint(storage, 1) == first
    origin = Origin(attempt=2, checkpoint=first)
    storage.create(layout.origin(2), lineage.encode(origin))
    commit(storage, CheckpointId(0, 100, Stage.STEP, 2))
    assert takeover.new_checkpoint(storage, 2) is None
    storage.create(  # not committed: no manifest
        layout.checkpoint_file(CheckpointId(0, 300, Stage.STEP, 2), "state.h5"), b"x"
    )
    assert takeover.new_checkpoint(storage, 2) is None
    further = commit(storage, CheckpointId(0, 100, Stage.EPOCH, 2))
    assert takeover.new_checkpoint(storage, 2) == further


def test_an_unreadable_origin_shows_no_progress(storage: Storage) -> None:
    storage.create(layout.origin(1), b"damaged")
    commit(storage, CheckpointId(0, 100, Stage.STEP, 1))
    assert takeover.new_checkpoint(storage, 1) is None
