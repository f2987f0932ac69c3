"""The spool: checkpoints are kept, sent in order, never twice, and within the limit.

The store is a folder behind a double that disappears, hangs or dies on demand. Everything else is
what a training uses.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from outlast_checkpoints.errors import StorageError, StorageFull, Superseded, UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store import transfer
from outlast_checkpoints.store.background_writer import Writer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.store.spool_sender import Sender
from outlast_checkpoints.testing import Died, FaultyStorage, sample_snapshot
from tests.support.away import Bucket

SOON = (0.001, 0.01)  # seconds between two tries
LARGE = 1 << 40


class Machine:
    """An attempt as its training uses it: it begins, logs rows, saves and sends."""

    def __init__(
        self,
        folder: Path,
        bucket: Bucket,
        attempt: int = 1,
        *,
        keep: str = "last:3",
        limit: int = LARGE,
        fence: Callable[[], None] | None = None,
        disk: str = "",
    ) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.spool = Spool(folder / "spool" / "job" / "life", limit)
        self.spool.storage = self.disk = FaultyStorage(self.spool.storage, disk)
        self.store = CheckpointStore(bucket, attempt=attempt, fence=fence)
        self.newest, _ = self.store.begin()
        self.sender = Sender(
            self.spool,
            self.store,
            attempt,
            keep=Keep.parse(keep),
            on_event=lambda event, fields: self.events.append((event, fields)),
            pauses=SOON,
        )
        self.history = HistoryWriter(self.spool.storage, attempt)
        self.writer = Writer(
            self.store.beside(self.spool.storage),
            history_sync=self.history.sync,
            sender=self.sender,
            on_event=lambda event, fields: self.events.append((event, fields)),
        )
        self.step = 0 if self.newest is None else self.newest.progress.step

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.step += 1
            self.history.append(
                {"kind": "step", "phase": 0, "step": self.step, "epoch": 0, "logs": {}}
            )

    def save(self, *, stage: int = Stage.STEP, **options: Any) -> None:
        """Save the current state, and wait until it is durable on this machine."""
        snapshot = sample_snapshot(self.step, stage=stage, **options)
        self.writer.submit(snapshot, "step", self.history.mark())
        self.writer.wait()

    def settled(self, within: float = 60.0) -> bool:
        """Wait until everything is sent; wait for an unreachable store at most `within` seconds."""
        until = time.monotonic() + within
        return self.sender.settle(lambda: until - time.monotonic())

    def told(self, event: str) -> list[str]:
        return [fields["checkpoint"] for name, fields in self.events if name == event]

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def die(self) -> None:
        """Disappear as after SIGKILL: only durable files stay."""
        self.writer.wait()
        self.sender.close()
        if self.sender._thread is not None:
            self.sender._thread.join(60)  # a dead process sends nothing more


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket.at(tmp_path / "bucket")


@pytest.fixture
def make(tmp_path: Path, bucket: Bucket) -> Iterator[Callable[..., Machine]]:
    yield from machines(tmp_path, bucket)


def machines(tmp_path: Path, bucket: Bucket) -> Iterator[Callable[..., Machine]]:
    """Yield a function that makes machines; their senders are closed at the end."""
    made: list[Machine] = []

    def make(*arguments: Any, **options: Any) -> Machine:
        made.append(Machine(tmp_path, bucket, *arguments, **options))
        return made[-1]

    yield make
    for machine in made:
        machine.sender.close()


def steps_of(bucket: Bucket) -> list[int]:
    """Return the steps of the history, read from the store."""
    return [row["step"] for row in HistoryReader(open_storage(bucket.root)).rows()]


def committed(bucket: Bucket) -> list[str]:
    """Return the good checkpoints of the store."""
    store = CheckpointStore(open_storage(bucket.root))
    assert [store.verify(found) for found in store.ids()] == [[]] * len(store.ids())
    return [f"{found.step}.{int(found.stage)}" for found in store.ids()]


# -- while all is well ----------------------------------------------------------------------------


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


def test_saving_the_place_again_that_was_sent_is_no_work(
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


def test_a_save_waits_for_the_one_that_is_being_sent_but_not_for_a_store_that_hangs(
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


def test_a_spool_on_another_file_system_than_temporary_files_is_sent_as_well(
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


# -- while the store is away ----------------------------------------------------------------------


def test_the_training_goes_on_while_the_store_is_away(
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
    assert machine.names().count("store_away") == machine.names().count("store_back") == 1
    assert len(machine.told("spooled")) == len(machine.told("sent")) == 4
    # the newest is the first to be safe
    tried_first = machine.told("sent")[0]
    assert tried_first in (str(CheckpointId(0, 2, Stage.STEP, 1)), machine.told("spooled")[-1])
    assert machine.sender.backlog().away_since is None


def test_the_end_of_a_phase_goes_first_and_then_the_newest(
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


def test_what_retention_would_delete_is_not_sent(
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


def test_what_is_damaged_in_the_spool_is_told_and_does_not_stop_the_others(
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


# -- superseded -----------------------------------------------------------------------------------


def test_a_superseded_attempt_sends_nothing_more_and_its_training_is_told(
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


# -- faults at every call of a sending ------------------------------------------------------------

_SENDING = 24  # more calls than a sending has


@pytest.mark.parametrize("fault", ["fail", "lost", "full"])
def test_an_error_at_any_call_neither_loses_nor_doubles(tmp_path: Path, fault: str) -> None:
    for call in range(1, _SENDING):
        folder = tmp_path / str(call)
        bucket = Bucket.at(folder / "bucket")
        machine = Machine(folder, bucket)
        bucket.calls.clear()
        _fail_at(bucket, call, fault)
        for _ in range(3):
            machine.train()
            machine.save()
            assert machine.settled()
        assert machine.writer.take_error() is None
        assert committed(bucket) == ["1.0", "2.0", "3.0"]
        assert steps_of(bucket) == [1, 2, 3]
        machine.die()
    assert len(bucket.calls) > 3  # the last faults came after the first sending


def test_a_death_at_any_call_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    for when in ("die-before", "die-after"):
        for call in range(1, _SENDING):
            folder = tmp_path / when / str(call)
            bucket = Bucket.at(folder / "bucket")
            machine = Machine(folder, bucket)
            _fail_at(bucket, call, when)
            saved = _save_twice(machine)
            assert _step_after(folder) in (saved, saved + 1)


def test_a_death_at_any_change_of_the_spool_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    for when in ("die-before", "die-after"):
        for call in range(1, 2 * _SENDING):
            folder = tmp_path / when / str(call)
            machine = Machine(folder, Bucket.at(folder / "bucket"), disk=f"any@{call}:{when}")
            saved = _save_twice(machine)
            assert _step_after(folder) in (saved, saved + 1)
    assert not machine.disk.dead  # the last faults came after the second save


def _save_twice(machine: Machine) -> int:
    """Return how many saves were reported as successful; one more may have succeeded."""
    saved = 0
    with suppress(Died):
        for _ in range(2):
            machine.train()
            machine.save()
            machine.writer.close()
            saved += 1
    with suppress(Died):
        machine.settled()
    machine.die()
    return saved


def _fail_at(bucket: Bucket, call: int, fault: str) -> None:
    """Make the k-th call from now fail, whatever it is."""
    left = [call]

    def count(operation: str, path: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            bucket._rules[operation, bucket._counts[operation] + 1] = fault

    bucket.on_call = count


def _step_after(folder: Path) -> int:
    """Run the first steps of the next attempt on this machine; return where it resumes.

    Its history has every step up to there once.
    """
    bucket = Bucket.at(folder / "bucket")
    spool = Spool(folder / "spool" / "job" / "life", LARGE)
    store = CheckpointStore(bucket, attempt=2)
    Sender(spool, store, 1).send_all()
    newest, damages = store.begin()
    assert damages == []
    step = 0 if newest is None else newest.progress.step
    assert steps_of(bucket) == list(range(1, step + 1))
    assert spool.waiting() == []
    return step


# -- the next attempt -----------------------------------------------------------------------------


def test_the_next_attempt_sends_what_was_left_and_goes_on_from_there(
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


# -- where it is ----------------------------------------------------------------------------------


def test_a_job_on_this_machine_has_no_spool(tmp_path: Path) -> None:
    assert Spool.of(open_storage(tmp_path), "life") is None
    assert Spool.of(open_storage(f"memory://{tmp_path.name}"), "life") is None


def test_each_life_of_a_job_has_a_spool_of_its_own(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAST_SPOOL", str(tmp_path / "sp ool"))
    monkeypatch.setenv("OUTLAST_SPOOL_LIMIT", "1.5 GB")
    assert Spool.found(bucket) is None
    one, other = Spool.of(bucket, "1"), Spool.of(bucket, "2")
    again, elsewhere = Spool.of(bucket, "1"), Spool.of(Bucket.at(tmp_path / "b" / "bucket"), "1")
    assert one is not None
    assert other is not None
    assert again is not None
    assert elsewhere is not None
    assert len({one.path, other.path, elsewhere.path}) == 3
    assert one.path == again.path
    assert one.limit == 3 << 29
    one.make()
    assert Path(one.path).stat().st_mode & 0o777 == 0o700
    found = Spool.found(bucket)
    assert found is not None
    assert found.path == one.path


def test_by_default_it_is_in_the_cache_and_takes_half_of_what_is_free(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTLAST_SPOOL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spool = Spool.of(bucket, "life")
    assert spool is not None
    assert spool.path.startswith(f"{tmp_path}/cache/outlast/spool/bucket-")
    assert 0 < spool.limit <= 20 << 30


def test_a_limit_that_is_no_size_is_refused(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAST_SPOOL_LIMIT", "plenty")
    with pytest.raises(UsageError, match=r"OUTLAST_SPOOL_LIMIT.*plenty"):
        Spool.of(bucket, "life")


def test_a_spool_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="create the spool"):
        Spool(tmp_path / "file" / "job" / "life", 0).make()


def test_what_is_old_is_told_by_when_it_was_written(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.train()
    machine.save()
    assert not machine.spool.is_old(1)
    for folder in [*Path(machine.spool.path).rglob("*")]:
        os.utime(folder, (1, 1))
    assert machine.spool.is_old(1)
