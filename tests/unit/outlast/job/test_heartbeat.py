"""Heartbeats, and how long they have been missing."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from outlast.job import heartbeat, process_identity
from outlast.job.heartbeat import Beat, HeartbeatWriter, Status, Watch
from outlast_checkpoints.errors import StorageError, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.testing import FaultyStorage
from tests.support.away import Bucket


def test_the_first_heartbeat_is_immediate_and_the_last_has_the_exit_code(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    status = Status()
    writer = HeartbeatWriter(storage, 3, status, every=60.0)
    assert heartbeat.read(storage, 3) is None
    writer.start()
    first = heartbeat.read(storage, 3)
    assert first is not None
    assert (first.attempt, first.count, first.pid, first.ended) == (3, 1, os.getpid(), None)
    me = process_identity.here()
    assert (first.host, first.boot_id, first.process_start) == (me.host, me.boot_id, me.start)
    status.step, status.epoch, status.activity = 12, 1, "training"
    status.logs = {"loss": 0.5, "bad": float("nan"), "worse": float("inf")}
    status.error = "ValueError: x"
    writer.stop(1)
    last = heartbeat.read(storage, 3)
    assert last is not None
    assert (last.count, last.step, last.epoch, last.activity) == (2, 12, 1, "training")
    assert last.logs == {"loss": 0.5, "bad": None, "worse": None}
    assert (last.ended, last.error) == (1, "ValueError: x")
    json.loads(storage.read(layout.heartbeat(3)), parse_constant=pytest.fail)  # strict JSON


def test_heartbeats_continue_in_the_background(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    beaten = threading.Semaphore(0)
    writer = HeartbeatWriter(storage, 1, Status(), every=0.01, on_beat=beaten.release)
    writer.start()
    for _ in range(3):
        assert beaten.acquire(timeout=60)
    writer.stop()
    beat = heartbeat.read(storage, 1)
    assert beat is not None
    assert beat.count >= 3


def test_a_superseded_attempt_is_notified_once_and_writes_no_more_heartbeats(
    tmp_path: Path,
) -> None:
    storage = open_storage(tmp_path)
    told: list[Superseded] = []
    rounds = threading.Semaphore(0)

    def fence() -> None:
        raise Superseded(attempt=1, by=2)

    writer = HeartbeatWriter(
        storage, 1, Status(), 0.01, told.append, fence=fence, on_beat=rounds.release
    )
    writer.start()
    for _ in range(5):
        assert rounds.acquire(timeout=60)
    writer.stop()
    beat = heartbeat.read(storage, 1)
    assert beat is not None
    assert beat.count == 1
    assert [error.fields["by"] for error in told] == [2]


def test_an_unreachable_storage_does_not_end_the_heartbeats(tmp_path: Path) -> None:
    inner = open_storage(tmp_path)
    rounds = threading.Semaphore(0)

    def fence() -> None:
        raise StorageError(action="list", path="journal", reason="gone")

    writer = HeartbeatWriter(
        FaultyStorage(inner, "replace@1:fail replace@2:full"),
        1,
        Status(),
        0.01,
        fence=fence,
        on_beat=rounds.release,
    )
    writer.start()
    assert heartbeat.read(inner, 1) is None
    for _ in range(5):
        assert rounds.acquire(timeout=60)
    writer.stop(0)
    beat = heartbeat.read(inner, 1)
    assert beat is not None
    assert beat.ended == 0
    assert writer.last_error is not None


def test_a_heartbeat_that_the_store_rejects_is_written_aside(tmp_path: Path) -> None:
    bucket, aside = Bucket.at(tmp_path / "bucket"), open_storage(tmp_path / "spool")
    beaten = threading.Semaphore(0)
    writer = HeartbeatWriter(bucket, 1, Status(), 0.01, on_beat=beaten.release, aside=aside)
    writer.start()
    assert heartbeat.read(aside, 1) is None
    bucket.away = True
    for _ in range(4):
        assert beaten.acquire(timeout=60)
    writer.stop(75)
    stored, beat = heartbeat.read(bucket.inner, 1), heartbeat.read(aside, 1)
    assert stored is not None
    assert beat is not None
    assert beat.count > stored.count
    assert (beat.ended, stored.ended) == (75, None)


def test_the_end_does_not_wait_forever_for_a_hanging_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "LAST_BEAT_TIMEOUT", 0.1)
    bucket = Bucket.at(tmp_path)
    hanging = threading.Event()
    writer = HeartbeatWriter(bucket, 1, Status(), 0.01)
    writer.start()
    bucket.answers.clear()
    bucket.on_call = lambda operation, path: hanging.set()
    assert hanging.wait(60)
    writer.stop(0)
    bucket.answers.set()


@pytest.mark.parametrize("data", [b"", b"{", b'{"attempt": "x"}', b"\xff"])
def test_an_unreadable_heartbeat_counts_as_none(tmp_path: Path, data: bytes) -> None:
    storage = open_storage(tmp_path)
    storage.replace(layout.heartbeat(1), data)
    assert heartbeat.read(storage, 1) is None


def test_silence_is_measured_by_the_clock_of_the_observer() -> None:
    watch = Watch(now=100.0)
    assert watch.observe(None, 103.0) == (3.0, 3.0)
    assert watch.observe(Beat(attempt=1, count=1, progress=0), 105.0) == (0.0, 0.0)
    # it beats, but makes no progress: a hang
    assert watch.observe(Beat(attempt=1, count=2, progress=0), 110.0) == (0.0, 5.0)
    assert watch.observe(Beat(attempt=1, count=3, progress=1), 112.0) == (0.0, 0.0)
    # what its own clock says is of no interest
    assert watch.observe(Beat(attempt=1, count=3, progress=1, at=1e12), 120.0) == (8.0, 8.0)
    # the next attempt starts to count anew
    assert watch.observe(Beat(attempt=2, count=3, progress=1), 121.0) == (0.0, 0.0)


def test_every_field_of_the_status_is_in_the_heartbeat() -> None:
    status = Status()
    for name, value in vars(status).items():
        if value is None and name in ("phase", "epochs", "ended", "total_steps"):
            setattr(status, name, 1)
    status.tick()
    beat = status.beat(1, 1, process_identity.here())
    told = {name: value for name, value in vars(status).items() if not name.startswith("_")}
    for name, value in {**told, "activity": status.activity}.items():
        assert getattr(beat, name) == value, name
