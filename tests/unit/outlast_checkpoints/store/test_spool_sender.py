"""The sender: checkpoints are sent in order, once each, and wait while the store is unreachable."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from outlast_checkpoints.errors import StorageFull, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.manifest import Manifest
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store import transfer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.store.spool_sender import Sender
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.away import Bucket
from tests.support.spooled_training import LARGE, Machine, committed, steps_of


def test_a_checkpoint_goes_through_the_spool_to_the_store_unchanged(
    make: Callable[..., Machine], bucket: Bucket, tmp_path: Path
) -> None:
    machine = make()
    waiting: list[bytes] = []

    def look(operation: str, path: str) -> None:
        if operation == "create" and path.endswith("manifest.json"):
            assert steps_of(bucket) == [1, 2]  # its rows are there before it is
            waiting.append(machine.spool.storage.read(path))

    bucket.on_call = look
    machine.train(2)
    machine.save()
    assert machine.settled()
    assert committed(bucket) == ["2.0"]
    (checkpoint,) = CheckpointStore(open_storage(bucket.root)).ids()
    assert bucket.read(layout.manifest(checkpoint)) == waiting[0]
    assert machine.names() == ["saved"]
    assert machine.events[0][1]["seconds"] > 0
    assert machine.spool.waiting() == []
    assert machine.sender.backlog().size == 0
    machine.spool.forget(1)
    assert list((tmp_path / "spool").iterdir()) == []


def test_saving_a_sent_place_again_does_nothing(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make()
    machine.train()
    machine.save()
    assert machine.settled()
    machine.save()
    assert machine.settled()
    assert machine.names() == ["saved"]
    assert machine.spool.waiting() == []


def test_what_was_sent_takes_no_memory_on_this_machine(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make(keep="last:2")

    def known() -> int:
        gc.collect()
        # By the type itself: to ask for the class wakes what libraries have deprecated.
        return sum(type(one) in (CheckpointId, Manifest) for one in gc.get_objects())

    counts = []
    for _ in range(12):
        machine.train()
        machine.save()
        assert machine.settled()
        machine.events.clear()
        counts.append(known())
    assert counts[5] == counts[11]


def test_a_save_waits_for_a_send_in_progress_but_not_for_a_hanging_store(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    now = [0.0]
    machine = make()
    machine.sender._clock = lambda: now[0]
    assert not machine.writer.busy
    bucket.answers.clear()
    machine.train()
    machine.save()
    assert machine.writer.busy  # the writer waits, as for a slow disk
    now[0] = 60.0
    assert not machine.writer.busy  # for a while
    machine.train()
    machine.save()
    assert machine.told("spooled") == [str(CheckpointId(0, 2, Stage.STEP, 1))]
    bucket.answers.set()
    assert machine.settled()
    assert committed(bucket) == ["1.0", "2.0"]
    assert [name for name in machine.names() if name != "pruned"] == ["spooled", "saved", "sent"]


def test_a_spool_on_another_file_system_than_temporary_files_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    for job in (open_storage(f"memory://{tmp_path.name}"), open_storage(tmp_path / "job")):
        store = CheckpointStore(job, attempt=1)
        store.begin()
        spool = Spool(tmp_path / "spool", LARGE)
        made = store.beside(spool.storage).save(sample_snapshot(1), reason="step")
        with monkeypatch.context() as patch:
            patch.setattr(transfer, "os", SimpleNamespace(link=link))
            store.adopt(made, spool.storage)
        spool.forget(1)
        assert store.verify(made.id) == []


def test_the_training_continues_while_the_store_is_away(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make(keep="all")
    machine.train()
    machine.save()
    assert machine.settled()
    bucket.away = True
    for _ in range(4):
        machine.train()
        machine.save()
    assert not machine.settled(0.0)
    left = machine.sender.backlog()
    assert (left.count, left.path) == (4, machine.spool.path)
    assert left.size == sum(machine.spool.manifest(one).size for one in machine.spool.waiting())
    assert left.away_since is not None
    assert "nobody there" in left.reason
    assert not machine.writer.busy
    assert committed(bucket) == ["1.0"]
    bucket.away = False
    assert machine.settled()
    assert committed(bucket) == ["1.0", "2.0", "3.0", "4.0", "5.0"]
    assert steps_of(bucket) == [1, 2, 3, 4, 5]
    assert machine.names().count("store_lost") == machine.names().count("store_recovered") == 1
    assert len(machine.told("spooled")) == len(machine.told("sent")) == 4
    # the newest is the first to be safe
    tried_first = machine.told("sent")[0]
    assert tried_first in (str(CheckpointId(0, 2, Stage.STEP, 1)), machine.told("spooled")[-1])
    assert machine.sender.backlog().away_since is None


def test_the_end_of_a_phase_is_sent_first_and_then_the_newest(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make(keep="last:2")
    bucket.away = True
    machine.train()
    machine.save()
    machine.save(stage=Stage.END)
    for step in (1, 2, 3, 4):
        machine.writer.submit(sample_snapshot(step, phase=1), "step", machine.history.mark())
        machine.writer.wait()
    bucket.away = False
    assert machine.settled()
    phases = [CheckpointId.parse(name) for name in machine.told("sent")]
    assert [(one.phase, one.step) for one in phases if one] == [(0, 1), (1, 4), (1, 3)]
    assert committed(bucket) == ["1.2", "3.0", "4.0"]


def test_checkpoints_that_retention_would_delete_are_not_sent(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make(keep="last:1,best:loss:min:1")
    bucket.away = True
    for loss in (0.5, 0.1, 0.4, 0.3):
        machine.train()
        machine.save(metrics={"loss": loss})
    bucket.away = False
    assert machine.settled()
    assert committed(bucket) == ["2.0", "4.0"]
    trimmed = [fields["checkpoints"] for name, fields in machine.events if name == "spool_trimmed"]
    assert len([name for names in trimmed for name in names]) == 2
    assert steps_of(bucket) == [1, 2, 3, 4]


def test_the_spool_is_bounded_and_the_newest_is_never_dropped(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make(keep="all")
    bucket.away = True
    machine.train()
    machine.save(numbers=1000)
    assert not machine.settled(0.0)
    one = machine.sender.backlog().size
    machine.spool.limit = int(2.5 * one)
    for _ in range(5):
        machine.train()
        machine.save(numbers=1000)
        machine.settled(0.0)
        assert machine.sender.backlog().size <= machine.spool.limit + one  # one may be being sent
    machine.spool.limit = 1
    machine.train()
    machine.save(numbers=1000)
    machine.settled(0.0)
    assert max(found.step for found in machine.spool.waiting()) == 7
    assert len(machine.spool.waiting()) <= 2
    bucket.away = False
    assert machine.settled()
    assert committed(bucket)[-1] == "7.0"
    assert steps_of(bucket) == [1, 2, 3, 4, 5, 6, 7]


def test_a_full_disk_makes_room_and_then_fails_the_save_with_the_newest_kept(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make(keep="all")
    bucket.away = True
    for _ in range(3):
        machine.train()
        machine.save()
    machine.settled(0.0)
    spool = FaultyStorage(machine.spool.storage, "stage@1:full stage@5:full stage@6:full")
    machine.writer._store = machine.store.beside(spool)
    machine.train()
    machine.save()  # the older ones had to go
    assert machine.writer.take_error() is None
    assert [found.step for found in machine.spool.waiting()][-1] == 4
    machine.train()
    machine.save()
    assert isinstance(machine.writer.take_error(), StorageFull)
    assert [found.step for found in machine.spool.waiting()][-1] == 4
    bucket.away = False
    assert machine.settled()
    assert committed(bucket)[-1] == "4.0"


def test_a_damaged_waiting_checkpoint_is_reported_and_does_not_block_others(
    make: Callable[..., Machine], bucket: Bucket, tmp_path: Path
) -> None:
    machine = make(keep="all")
    bucket.away = True
    for _ in range(2):
        machine.train()
        machine.save()
    machine.settled(0.0)
    lost = Path(machine.spool.path) / layout.checkpoint_file(
        CheckpointId(0, 2, Stage.STEP, 1), "state.h5"
    )
    lost.unlink()
    bucket.away = False
    assert machine.settled()
    assert committed(bucket) == ["1.0"]
    assert machine.told("spool_lost") == [str(CheckpointId(0, 2, Stage.STEP, 1))]


def test_a_superseded_attempt_sends_nothing_more_and_its_training_gets_the_error(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    newest = [1]

    def fence() -> None:
        if newest[0] > 1:
            raise Superseded(attempt=1, by=newest[0])

    machine = make(fence=fence)
    machine.train()
    machine.save()
    assert machine.settled()
    bucket.away = True
    machine.train(3)
    machine.save()
    machine.settled(0.0)
    newest[0] = 2  # on another machine, from what was sent
    CheckpointStore(open_storage(bucket.root), attempt=2).begin()
    bucket.away = False
    assert not machine.settled()
    assert isinstance(machine.writer.take_error(), Superseded)
    assert committed(bucket) == ["1.0"]
    assert steps_of(bucket) == [1]
    assert [found.step for found in machine.spool.waiting()] == [4]


def test_the_next_attempt_sends_what_was_left_and_resumes_from_there(
    make: Callable[..., Machine], bucket: Bucket
) -> None:
    machine = make()
    machine.train()
    machine.save()
    assert machine.settled()
    bucket.away = True
    machine.train(2)
    machine.save()
    machine.train()  # lost: never saved
    machine.history.flush()
    machine.die()
    bucket.away = False
    store = CheckpointStore(bucket, attempt=2)
    sent = Sender(machine.spool, store, 1).send_all()
    assert [found.step for found in sent] == [3]
    assert Sender(machine.spool, store, 1).send_all() == []
    second = make(2)
    assert second.step == 3
    second.train(2)
    second.save()
    assert second.settled()
    assert steps_of(bucket) == [1, 2, 3, 4, 5]
