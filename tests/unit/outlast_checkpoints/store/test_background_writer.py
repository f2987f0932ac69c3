"""The background writer: one write at a time, each error raised once, memory released."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from outlast_checkpoints.arrays import hdf5_file
from outlast_checkpoints.errors import StorageError, StorageFull, Superseded
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.background_writer import Writer
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.checkpoints import begun


class Gated(FaultyStorage):
    """A storage whose uploads wait until the gate opens."""

    def __init__(self, inner: Storage, faults: str = "") -> None:
        super().__init__(inner, faults)
        self.entered = threading.Event()
        self.gate = threading.Event()

    @contextmanager
    def stage(self, path: str, *, over: bool = False) -> Iterator[Path]:
        self.entered.set()
        assert self.gate.wait(60)
        with super().stage(path, over=over) as local:
            yield local


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "job")


def tracked(step: int) -> tuple[Snapshot, weakref.ref[Any]]:
    array = np.zeros(1000)
    progress = Progress(phase=0, step=step, epoch=0, batch=step)
    return Snapshot(progress, {"state.h5": ArrayFile({"a": array})}), weakref.ref(array)


def test_it_writes_while_the_training_continues(storage: Storage) -> None:
    gated = Gated(storage)
    writer = Writer(begun(gated))
    assert not writer.busy
    writer.submit(sample_snapshot(1), "step", held_ms=2.5)
    assert gated.entered.wait(60)
    assert writer.busy
    assert writer.last is None
    assert writer.wait(timeout=0.001) is False
    gated.gate.set()
    assert writer.wait() is True
    assert not writer.busy
    assert writer.last is not None
    assert writer.last.held_ms == 2.5
    writer.close()
    assert CheckpointStore(storage).latest()[0] == writer.last


def test_at_most_one_write_is_in_flight(storage: Storage) -> None:
    gated = Gated(storage)
    writer = Writer(begun(gated))
    writer.submit(sample_snapshot(1), "step")
    assert gated.entered.wait(60)
    second = threading.Thread(target=writer.submit, args=(sample_snapshot(2), "step"))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    staged = [path for operation, path in gated.calls if operation == "stage"]
    assert not any("000000000002" in path for path in staged)
    gated.gate.set()
    second.join(60)
    writer.close()
    assert [found.step for found in CheckpointStore(storage).ids()] == [1, 2]


def test_the_snapshot_is_freed_as_soon_as_it_is_written(storage: Storage) -> None:
    gated = Gated(storage)
    writer = Writer(begun(gated))
    snapshot, array = tracked(1)
    writer.submit(snapshot, "step")
    del snapshot
    assert gated.entered.wait(60)
    assert array() is not None
    gated.gate.set()
    writer.wait()
    assert array() is None


@pytest.mark.parametrize("faults", ["stage@1:fail", "create@2:full create@3:full"])
def test_a_failed_snapshot_is_freed_too(storage: Storage, faults: str) -> None:
    writer = Writer(begun(FaultyStorage(storage, faults)))
    snapshot, array = tracked(1)
    writer.submit(snapshot, "step")
    del snapshot
    writer.wait()
    assert array() is None, "at once: no cycle keeps it until the garbage is collected"
    error = writer.take_error()
    assert isinstance(error, StorageError)
    assert error.__traceback__ is not None


@pytest.mark.parametrize("release_written", [False, True])
def test_a_written_array_is_released_while_the_next_one_is_written(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, release_written: bool
) -> None:
    """In every file, even if the caller still holds the snapshot."""
    arrays = {name: np.full(hdf5_file._PIECE // 8 + 1, ord(name), "float64") for name in "abc"}
    there = [weakref.ref(array) for array in arrays.values()]
    files = {
        "model.weights.h5": ArrayFile({name: arrays[name] for name in "ab"}),
        "state.h5": ArrayFile({"c": arrays["c"]}),
    }
    del arrays
    snapshot = Snapshot(
        Progress(phase=0, step=1, epoch=0, batch=1), files, release_written=release_written
    )
    held: list[int] = []
    write = hdf5_file._PlainWriter.write

    def note(self: Any, data: Any) -> None:
        held.append(sum(one() is not None for one in there))
        write(self, data)

    monkeypatch.setattr(hdf5_file._PlainWriter, "write", note)
    store = begun(storage)
    writer = Writer(store)
    writer.submit(snapshot, "step")
    writer.close()
    assert writer.last is not None
    assert store.verify(writer.last.id) == []
    loaded = store.load(writer.last.id).files
    assert [loaded["model.weights.h5"][name][-1] for name in "ab"] == [ord("a"), ord("b")]
    assert loaded["state.h5"]["c"][-1] == ord("c")
    assert snapshot.size == (0 if release_written else 3 * (hdf5_file._PIECE + 8))
    assert held[0] == 3
    assert sorted(set(held)) == ([0, 1, 2, 3] if release_written else [3])


@pytest.mark.parametrize("free", ["much", "little", "unknown"])
def test_no_array_is_released_if_a_second_try_may_need_it(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, free: str
) -> None:
    """If pruning frees nothing, the save on a full disk fails, once."""

    def disk_usage(folder: Path) -> Any:
        if free == "unknown":
            raise OSError(errno.EIO, "broken")
        return SimpleNamespace(free={"much": 1 << 40, "little": 100}[free])

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    begun(storage)
    orphan = CheckpointId(0, 7, Stage.STEP, 1)
    with storage.stage(layout.checkpoint_file(orphan, "state.h5")) as path:
        path.write_bytes(b"half")
    store = begun(FaultyStorage(storage, "stage@2:full"), 2)
    writer = Writer(store, None, Keep())
    writer.submit(replace(sample_snapshot(1), release_written=True), "step")
    writer.wait()
    assert store.orphans() == [], "there is room for the next one in any case"
    error = writer.take_error()
    assert (error is None) == (free != "much")
    assert [found.step for found in store.ids()] == ([] if free == "much" else [1])
    writer.submit(replace(sample_snapshot(2), release_written=True), "step")
    writer.close()
    assert store.ids()[-1].step == 2
    assert [damage for found in store.ids() for damage in store.verify(found)] == []


def test_the_writing_thread_does_not_preempt_compute_threads(storage: Storage) -> None:
    seen: list[int] = []
    writer = Writer(begun(storage), lambda mark: seen.append(os.sched_getscheduler(0)))
    writer.submit(sample_snapshot(1), "step", HistoryMark(1, 0))
    writer.close()
    assert seen == [os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_system_that_forbids_the_scheduling_policy_still_saves(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: Any) -> None:
        raise PermissionError(errno.EPERM, "not here")

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    writer = Writer(begun(storage))
    writer.submit(sample_snapshot(1), "step")
    writer.close()
    assert [found.step for found in CheckpointStore(storage).ids()] == [1]


def test_an_error_is_raised_once_at_the_next_call(storage: Storage) -> None:
    store = begun(FaultyStorage(storage, "stage@1:full"))
    writer = Writer(store)
    writer.submit(sample_snapshot(1), "step")
    with pytest.raises(StorageFull, match=r"model\.weights\.h5"):
        writer.submit(sample_snapshot(2), "step")
    assert store.ids() == [], "the second was not taken"
    writer.submit(sample_snapshot(3), "step")
    writer.close()
    assert [found.step for found in store.ids()] == [3]


def test_close_raises_pending_errors(storage: Storage) -> None:
    writer = Writer(begun(FaultyStorage(storage, "stage@1:fail")))
    writer.submit(sample_snapshot(1), "step")
    with pytest.raises(StorageError):
        writer.close()
    writer.close()
    assert writer.take_error() is None


def test_being_superseded_is_raised_too(storage: Storage) -> None:
    def fence() -> None:
        raise Superseded(attempt=1, by=2)

    writer = Writer(begun(storage, fence=fence))
    writer.submit(sample_snapshot(1), "step")
    with pytest.raises(Superseded):
        writer.close()


def test_history_is_durable_before_the_commit(storage: Storage) -> None:
    faulty = FaultyStorage(storage)
    store = begun(faulty)
    history = HistoryWriter(faulty, 1)
    history.append({"kind": "step", "phase": 0, "step": 1})
    mark = history.mark()
    history.append({"kind": "step", "phase": 0, "step": 2})
    writer = Writer(store, history.sync)
    writer.submit(sample_snapshot(1), "step", mark)
    writer.close()
    assert writer.last is not None
    assert writer.last.history == mark
    operations = [operation for operation, _ in faulty.calls]
    commit = faulty.calls.index(("create", layout.manifest(writer.last.id)))
    assert operations.index("append") < operations.index("sync") < commit
    history.close()
    begun(storage, 2)
    assert [row["step"] for row in HistoryReader(storage).rows()] == [1]


def test_without_its_history_a_checkpoint_is_not_committed(storage: Storage) -> None:
    store = begun(storage)

    def sync(mark: HistoryMark) -> None:
        raise StorageFull(action="append to", path="history", reason="full")

    writer = Writer(store, sync)
    writer.submit(sample_snapshot(1), "step", HistoryMark(1, 10))
    with pytest.raises(StorageFull):
        writer.close()
    assert store.ids() == []


def test_events_and_pruning(storage: Storage) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    writer = Writer(begun(storage), None, Keep(last=2), lambda *event: events.append(event))
    for step in (1, 2, 3):
        writer.submit(sample_snapshot(step), "step")
    writer.close()
    assert [event for event, _ in events] == ["saved", "saved", "saved", "pruned"]
    fields = events[2][1]
    assert fields["checkpoint"] == "00-000000000003.0-0001"
    assert (fields["reason"], fields["size"]) == ("step", writer.last.size if writer.last else 0)
    assert fields["seconds"] > 0
    assert events[3][1] == {"checkpoints": ["00-000000000001.0-0001"]}


def test_a_failing_prune_does_no_harm(storage: Storage) -> None:
    events: list[str] = []
    faulty = FaultyStorage(storage, "delete@1:fail")
    writer = Writer(begun(faulty), None, Keep(last=1), lambda event, _: events.append(event))
    for step in (1, 2, 3):
        writer.submit(sample_snapshot(step), "step")
    writer.close()
    assert events == ["saved", "saved", "prune_failed", "saved", "pruned"]
    assert [found.step for found in CheckpointStore(storage).ids()] == [3]


def test_leftovers_are_deleted_on_a_full_disk_and_the_save_is_retried(storage: Storage) -> None:
    begun(storage)
    orphan = CheckpointId(0, 7, Stage.STEP, 1)
    with storage.stage(layout.checkpoint_file(orphan, "state.h5")) as path:
        path.write_bytes(b"half")
    store = begun(FaultyStorage(storage, "stage@1:full"), 2)
    writer = Writer(store, None, Keep())
    writer.submit(sample_snapshot(1), "step")
    writer.close()
    assert store.orphans() == []
    assert [found.step for found in store.ids()] == [1]


def test_a_write_is_finished_when_the_script_ends(tmp_path: Path) -> None:
    script = """
        import sys
        from outlast_checkpoints.storage import open_storage
        from outlast_checkpoints.store.checkpoint_store import CheckpointStore
        from outlast_checkpoints.testing import sample_snapshot
        from outlast_checkpoints.store.background_writer import Writer

        store = CheckpointStore(open_storage(sys.argv[1]), attempt=1)
        store.begin()
        Writer(store).submit(sample_snapshot(1, numbers=500_000), "step")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "job")]
    subprocess.run(command, check=True, timeout=120)
    store = CheckpointStore(open_storage(tmp_path / "job"))
    found, damages = store.latest()
    assert found is not None
    assert damages == []
    assert store.load(found.id).files["model.weights.h5"]["layers/dense/vars/1"] == 1
