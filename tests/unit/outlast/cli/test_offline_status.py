"""What this machine knows of a job whose storage does not answer, and how it is stopped then."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from outlast.cli import offline_status
from outlast.cli.job_status import newest_beat
from outlast.job import process_identity, stop_note
from outlast.job.heartbeat import Beat, Status
from outlast.job.spec import JobSpec
from outlast.job.spool_settings import existing_spool, spool_of
from outlast.job.stop_note import StopNote
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from tests.support.away import Bucket

SPEC = JobSpec(job="j", script="train.py", created=1e9)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("OUTLAST_SPOOL", str(tmp_path / "spool"))
    made = Bucket.at(tmp_path / "jobs" / "j")
    monkeypatch.setattr("outlast_checkpoints.storage.open_storage", lambda url: made)
    return made


def write(storage: Storage, count: int, **values: object) -> Beat:
    beat = Status().beat(1, count, process_identity.here())
    beat = msgspec.structs.replace(beat, **values)
    storage.replace(layout.heartbeat(1), msgspec.json.encode(beat))
    return beat


def test_the_newest_heartbeat_is_shown_wherever_it_is(bucket: Bucket) -> None:
    assert newest_beat(bucket, SPEC, 0) is None
    old = write(bucket, 3)
    assert existing_spool(bucket, SPEC) is None
    assert newest_beat(bucket, SPEC, 1) == old
    spool = spool_of(bucket, SPEC)
    assert spool is not None
    assert newest_beat(bucket, SPEC, 1) == old
    new = write(spool.storage, 9, away_since=1e9)
    assert newest_beat(bucket, SPEC, 1) == new
    write(spool.storage, 9, pid=1)  # of another machine's attempt of this number
    assert newest_beat(bucket, SPEC, 1) == old
    write(spool.storage, 2)
    assert newest_beat(bucket, SPEC, 1) == old


def test_a_supervisor_of_this_machine_is_asked_through_the_spool(bucket: Bucket) -> None:
    assert offline_status.ask_to_stop("s3://b/jobs", "j", by="me", now=False) is None
    spool = spool_of(bucket, SPEC)
    assert spool is not None
    beat = write(spool.storage, 1, process_start=1)
    assert beat.process.gone()
    assert offline_status.ask_to_stop("s3://b/jobs", "j", by="me", now=False) is None
    write(spool.storage, 2)
    asked = offline_status.ask_to_stop("s3://b//jobs/", "j", by="me", now=True)
    assert asked is not None
    assert (asked["url"], asked["attempt"]) == ("s3://b/jobs/j", 1)
    assert stop_note.take(spool.storage, 1) == StopNote(by="me", now=True)
    assert stop_note.take(spool.storage, 1) is None
    spool.storage.replace(layout.stop_note(1), b"no JSON")
    assert stop_note.take(spool.storage, 1) is None
