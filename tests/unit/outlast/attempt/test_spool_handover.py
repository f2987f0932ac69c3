"""How an attempt handles its spool at its start and at its end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outlast import exit_codes
from outlast.attempt import bare as bare_script
from outlast.attempt import context, spool_handover
from outlast.attempt.context import AttemptContext
from outlast.attempt.signals import StopFlag
from outlast.job import spool_settings
from outlast.job.heartbeat import Status
from outlast.job.journal import Journal
from outlast.job.logs import LogFile, make_logger
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import Superseded, UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.away import Bucket
from tests.support.spooled_training import Machine, committed, machines, steps_of


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket.at(tmp_path / "bucket")


@pytest.fixture
def make(tmp_path: Path, bucket: Bucket) -> Iterator[Callable[..., Machine]]:
    yield from machines(tmp_path, bucket)


class Attempt:
    """An attempt's context, and what its log says."""

    def __init__(self, bucket: Bucket, machine: Machine, number: int = 1, **options: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        log = LogFile(bucket, layout.attempt_log(number), echo=self.rows.append)
        self.context = AttemptContext(
            storage=bucket,
            spec=JobSpec(job="j", **options),
            attempt=number,
            stop=StopFlag(),
            status=Status(),
            log=make_logger(log),
            fence=lambda: None,
            supervised=True,
            local_dir=None,
            spool=machine.spool,
        )

    def said(self) -> list[str]:
        return [row["event"] for row in self.rows]


def stranded(machine: Machine, bucket: Bucket) -> None:
    """Save once, and once more while the store is away."""
    machine.train()
    machine.save()
    assert machine.settled()
    bucket.away = True
    machine.train(2)
    machine.save()


def test_a_process_that_has_sent_everything_keeps_its_exit_code(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make()
    attempt = Attempt(bucket, machine)
    machine.train()
    machine.save()
    assert (
        spool_handover.settle(attempt.context, machine.sender, exit_codes.DONE) == exit_codes.DONE
    )
    assert committed(bucket) == ["1.0"]
    assert attempt.said() == []


def test_a_finished_training_that_cannot_be_sent_exits_with_74_and_says_where_it_is(
    make: Callable[..., Machine],
    bucket: Bucket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OUTLAST_SPOOL_WAIT", "0.2")
    machine = make()
    attempt = Attempt(bucket, machine)
    stranded(machine, bucket)
    code = spool_handover.settle(attempt.context, machine.sender, exit_codes.DONE)
    assert code == exit_codes.STORAGE_FAILED
    said = capsys.readouterr().err
    for part in (machine.spool.path, "outlast resume j", "nobody there", bucket.root):
        assert part in said
    assert attempt.said() == ["send_failed"]
    assert attempt.context.status.error is not None
    assert [one.step for one in machine.spool.waiting()] == [3]


def test_a_stopped_process_leaves_within_the_grace_with_75(
    make: Callable[..., Machine], bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = make()
    attempt = Attempt(bucket, machine, grace=0.5)
    stranded(machine, bucket)
    attempt.context.stop.request("SIGTERM")
    code = spool_handover.settle(attempt.context, machine.sender, exit_codes.RESUMABLE)
    assert code == exit_codes.RESUMABLE
    assert machine.spool.path in capsys.readouterr().err
    assert attempt.said() == ["send_failed"]


def test_a_finished_process_waits_for_a_store_that_recovers_in_time(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make()
    attempt = Attempt(bucket, machine)
    stranded(machine, bucket)
    tried = [0]

    def come_back(operation: str, path: str) -> None:
        tried[0] += 1
        bucket.away = tried[0] < 5

    bucket.on_call = come_back
    assert (
        spool_handover.settle(attempt.context, machine.sender, exit_codes.DONE) == exit_codes.DONE
    )
    assert committed(bucket) == ["1.0", "3.0"]


def test_a_send_in_progress_may_take_longer_than_the_wait_for_a_store(
    make: Callable[..., Machine], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAST_SPOOL_WAIT", "0")
    machine = make()
    attempt = Attempt(bucket, machine)
    sending = threading.Event()
    bucket.on_call = lambda operation, path: sending.set()
    bucket.answers.clear()
    machine.train()
    machine.save()
    assert sending.wait(60)
    codes: list[int] = []

    def settle() -> None:
        codes.append(spool_handover.settle(attempt.context, machine.sender, exit_codes.DONE))

    waiting = threading.Thread(target=settle)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    bucket.answers.set()
    waiting.join(60)
    assert codes == [exit_codes.DONE]
    assert committed(bucket) == ["1.0"]


def test_an_attempt_that_is_superseded_while_it_waits_says_so(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    late = [False]

    def fence() -> None:
        if late[0]:
            raise Superseded(attempt=1, by=2)

    machine = make(fence=fence)
    attempt = Attempt(bucket, machine)
    stranded(machine, bucket)
    late[0], bucket.away = True, False
    code = spool_handover.settle(attempt.context, machine.sender, exit_codes.DONE)
    assert code == exit_codes.SUPERSEDED
    assert committed(bucket) == ["1.0"]


def test_an_invalid_wait_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_SPOOL_WAIT", "long")
    with pytest.raises(UsageError, match="OUTLAST_SPOOL_WAIT"):
        spool_settings.wait_at_end()


def test_checkpoints_of_the_previous_attempt_are_sent_first(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make()
    stranded(machine, bucket)
    machine.die()
    bucket.away = False
    store = CheckpointStore(bucket, attempt=2)
    attempt = Attempt(bucket, machine, 2)
    spool_handover.send_left(attempt.context, machine.spool, store)
    newest, _ = store.begin()
    assert newest is not None
    assert newest.progress.step == 3
    assert steps_of(bucket) == [1, 2, 3]
    assert attempt.said() == ["sent"]
    assert machine.spool.attempts() == []


def test_the_newest_intact_waiting_checkpoint_counts(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make()
    stranded(machine, bucket)
    machine.train()
    machine.save()
    machine.die()
    bucket.away = False
    newest = machine.spool.waiting()[-1]
    file = Path(machine.spool.path) / layout.checkpoint_file(newest, "state.h5")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    store = CheckpointStore(bucket, attempt=2)
    attempt = Attempt(bucket, machine, 2)
    spool_handover.send_left(attempt.context, machine.spool, store)
    assert committed(bucket) == ["1.0", "3.0"]
    assert attempt.said() == ["spool_lost", "sent"]


def test_an_abandoned_spool_is_reported_and_deleted_when_it_is_old(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make()
    stranded(machine, bucket)
    machine.die()
    bucket.away = False
    CheckpointStore(bucket, attempt=2).begin()  # on another machine, from what was sent
    for age, left in ((False, [1]), (True, [])):
        if age:
            for folder in Path(machine.spool.path).rglob("*"):
                os.utime(folder, (1, 1))
        attempt = Attempt(bucket, machine, 3)
        spool_handover.send_left(attempt.context, machine.spool, CheckpointStore(bucket, attempt=3))
        assert attempt.said() == ["spool_abandoned"]
        assert machine.spool.attempts() == left
    assert committed(bucket) == ["1.0"]


# -- a script without a supervisor ----------------------------------------------------------------


@pytest.fixture
def bare(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AttemptContext]:
    """The attempt of a bare script, whose job is elsewhere."""
    monkeypatch.setenv("OUTLAST_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr(bare_script, "open_storage", lambda url: bucket)
    found = bare_script.open_bare("far away")
    yield found
    bucket.away = False
    bare_script.close_bare(found)


def test_a_bare_script_whose_store_is_away_at_the_end_says_so(
    bare: AttemptContext, bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bare.spool is not None
    bucket.away = True
    bare_script.close_bare(bare, exit_codes.RESUMABLE)
    assert "nobody there" in capsys.readouterr().err
    assert context.current() is None


def test_a_bare_script_exits_with_the_result_of_sending(
    bare: AttemptContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    bare.before_exit = lambda code: exit_codes.STORAGE_FAILED
    bare_script._bare[bare.storage.root]._at_exit()
    assert left == [exit_codes.STORAGE_FAILED]
    assert Journal(bare.storage).existing_job().exit_code == exit_codes.STORAGE_FAILED


def test_a_bare_script_that_has_sent_everything_keeps_its_exit_code(
    bare: AttemptContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    bare_script._bare[bare.storage.root]._at_exit()
    assert left == []
    assert Journal(bare.storage).existing_job().outcome is Outcome.COMPLETED
    assert list((tmp_path / "spool").iterdir()) == []
