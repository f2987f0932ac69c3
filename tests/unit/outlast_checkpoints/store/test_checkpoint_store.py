"""Begin, save and fence: what is committed comes back, and a superseded attempt commits nothing."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from outlast_checkpoints.arrays import page_cache
from outlast_checkpoints.errors import (
    AlreadyExists,
    NoCheckpoint,
    Superseded,
    UsageError,
)
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import Stage
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.checkpoints import assert_holds, at, begun


def test_a_saved_snapshot_is_loaded_unchanged(storage: Storage) -> None:
    store = begun(storage, writer={"keras": "3"})
    snapshot = sample_snapshot(12, metrics={"loss": 0.5, "val_loss": math.nan})
    made = store.save(snapshot, reason="step", history=HistoryMark(1, 99), held_ms=1.5)
    assert made.checkpoint == "00-000000000012.0-0001"
    assert made.parent is None
    assert made.history == HistoryMark(1, 99)
    assert (made.reason, made.held_ms, made.writer) == ("step", 1.5, {"keras": "3"})
    reader = CheckpointStore(storage)
    found, damages = reader.latest()
    assert damages == []
    assert found is not None
    assert found.checkpoint == made.checkpoint
    assert found.files == made.files
    assert_holds(reader.load(found.id), snapshot)
    assert reader.verify(found.id) == []


def test_a_place_is_saved_once(storage: Storage) -> None:
    store = begun(storage)
    first = store.save(sample_snapshot(1), reason="step")
    again = store.save(sample_snapshot(1, salt=9), reason="epoch")
    assert again is first
    assert_holds(store.load(first.id), sample_snapshot(1))


def test_parents_form_a_chain_over_attempts(storage: Storage) -> None:
    one = begun(storage)
    first = one.save(sample_snapshot(1), reason="step")
    second = one.save(sample_snapshot(2), reason="step")
    third = begun(storage, 2).save(sample_snapshot(3), reason="step")
    parents = (first.parent, second.parent, third.parent)
    assert parents == (None, first.checkpoint, second.checkpoint)


def test_begin_records_the_origin(storage: Storage) -> None:
    store = CheckpointStore(storage, attempt=1)
    assert store.begin() == (None, [])
    store.save(sample_snapshot(5), reason="step", history=HistoryMark(1, 77))
    successor = CheckpointStore(storage, attempt=2)
    found, damages = successor.begin()
    assert found is not None
    assert (found.id, damages) == (at(5), [])
    assert b'"mark": 77' in storage.read(layout.origin(2))
    again, _ = successor.begin()
    assert again == found


def test_an_attempt_begins_only_once(storage: Storage) -> None:
    begun(storage, 3)
    with pytest.raises(Superseded):
        begun(storage, 3)
    with pytest.raises(Superseded, match="Attempt 2 was superseded by attempt 3"):
        begun(storage, 2)


def test_a_store_that_has_not_begun_or_only_reads_does_not_save(storage: Storage) -> None:
    with pytest.raises(UsageError, match="before begin"):
        CheckpointStore(storage, attempt=1).save(sample_snapshot(1), reason="step")
    with pytest.raises(UsageError, match="read-only"):
        CheckpointStore(storage).save(sample_snapshot(1), reason="step")
    with pytest.raises(UsageError, match="read-only"):
        CheckpointStore(storage).begin()


@pytest.mark.parametrize(
    ("files", "documents"),
    [
        ({"../x.h5": ArrayFile({})}, {}),
        ({"x": ArrayFile({})}, {}),
        ({}, {"manifest.json": b""}),
        ({}, {"x.h5": b""}),
        ({"x.h5": ArrayFile({"a": "text"})}, {}),
    ],
)
def test_bad_snapshots_leave_nothing(
    storage: Storage, files: dict[str, ArrayFile], documents: dict[str, bytes]
) -> None:
    store = begun(storage)
    bad = Snapshot(Progress(phase=0, step=1, epoch=0, batch=0), files, documents)
    with pytest.raises(ValueError, match=r"x\.h5|x'|manifest|a has dtype"):
        store.save(bad, reason="step")
    assert store.orphans() == []
    with pytest.raises(UsageError, match="reason"):
        store.save(sample_snapshot(1), reason="because")


def test_an_empty_store(storage: Storage) -> None:
    store = CheckpointStore(storage)
    assert store.latest() == (None, [])
    assert (store.ids(), store.orphans(), store.finished_phases()) == ([], [], {})
    for read in (store.load, store.manifest, store.verify):
        with pytest.raises(NoCheckpoint):
            read(at(1))


def test_order_is_by_place_and_stage(storage: Storage) -> None:
    store = begun(storage)
    places = [(0, 9, 0), (0, 10, 0), (0, 10, 1), (0, 10, 2), (1, 0, 0), (1, 2, 0)]
    for phase, step, stage in places:
        store.save(sample_snapshot(step, phase=phase, stage=stage), reason="step")
    assert [found.place for found in store.ids()] == places
    assert store.finished_phases() == {0: at(10, stage=Stage.END)}
    found, _ = store.latest()
    assert found is not None
    assert found.id == at(2, phase=1)


def test_only_the_newest_checkpoint_stays_in_memory(
    local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_away: list[str] = []

    def advise(file: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        if (start, length) == (0, 0):  # of a whole file; else the disk is to begin to write
            put_away.append(Path(f"/proc/self/fd/{file}").readlink().parent.name)

    monkeypatch.setattr(page_cache, "WORTHWHILE", 1 << 20)
    monkeypatch.setattr(page_cache.os, "posix_fadvise", advise)
    store = begun(local)
    for step in (1, 2, 3):
        store.save(sample_snapshot(step, numbers=1 << 18), reason="step")
        assert put_away == [str(at(before)) for before in range(1, step)]
    store.delete(at(3))
    store.save(sample_snapshot(4, numbers=1 << 18), reason="step")  # what is gone needs no hint
    assert put_away == [str(at(1)), str(at(2))]


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_large_checkpoint_has_the_same_bytes_however_it_is_written(
    local: Storage, monkeypatch: pytest.MonkeyPatch, past_cache: bool
) -> None:
    monkeypatch.setattr(page_cache, "WORTHWHILE", 1 << 20)
    snapshot = sample_snapshot(1, numbers=(5 << 20) + 1)
    begun(local, past_cache=past_cache).save(snapshot, reason="step")
    store = CheckpointStore(local)
    assert store.verify(at(1)) == []
    assert_holds(store.load(at(1)), snapshot)


def test_an_attempt_does_not_begin_if_its_successor_has_begun_meanwhile(storage: Storage) -> None:
    """Otherwise it would claim to resume from its successor's checkpoint."""

    class Overtaken(FaultyStorage):
        looks = 0

        def list(self, folder: str) -> list[str]:
            self.looks += folder == layout.ATTEMPTS
            if self.looks == 2:
                self.looks += 1
                begun(storage, 2).save(sample_snapshot(3), reason="step")
            return super().list(folder)

    with pytest.raises(Superseded):
        CheckpointStore(Overtaken(storage), attempt=1).begin()
    assert not storage.exists(layout.origin(1))
    assert CheckpointStore(storage).ids() == [at(3, 2)]


def test_a_superseded_attempt_prunes_nothing_that_its_successor_is_about_to_resume_from(
    storage: Storage,
) -> None:
    """Its last commit and pruning happen between the next attempt's search and its origin."""
    claimed = [1]

    def fence() -> None:
        if claimed[-1] > 1:
            raise Superseded(attempt=1, by=claimed[-1])

    before = begun(storage, fence=fence)
    before.save(sample_snapshot(1), reason="step")

    class InBetween(FaultyStorage):
        def create(self, path: str, data: bytes) -> None:
            if path == layout.origin(2):
                claimed[:] = [1]  # it was asked before the claim, and stood still since
                before.save(sample_snapshot(2), reason="step")
                claimed.append(2)
                with pytest.raises(Superseded):
                    before.prune(Keep(last=1))
            super().create(path, data)

    claimed.append(2)
    after = CheckpointStore(InBetween(storage), attempt=2)
    found, _ = after.begin()
    assert found is not None
    assert found.id == at(1)
    assert_holds(after.load(found.id), sample_snapshot(1))


def test_the_fence_is_checked_after_the_files_and_before_the_manifest(storage: Storage) -> None:
    seen: list[list[str]] = []

    def fence() -> None:
        seen.append(storage.list(layout.checkpoint_dir(at(1))))

    begun(storage, fence=fence).save(sample_snapshot(1), reason="step")
    assert seen == [["model.json", "model.weights.h5", "state.h5"]]


def test_a_superseded_attempt_commits_nothing(storage: Storage) -> None:
    def fence() -> None:
        raise Superseded(attempt=1, by=2)

    store = begun(storage, fence=fence)
    with pytest.raises(Superseded):
        store.save(sample_snapshot(1), reason="step")
    assert (store.ids(), store.orphans()) == ([], [])


def test_a_checkpoint_committed_by_another_process_is_not_touched(storage: Storage) -> None:
    manifest = layout.manifest(at(1))
    store = begun(storage, fence=lambda: storage.create(manifest, b"of somebody else"))
    with pytest.raises(AlreadyExists):
        store.save(sample_snapshot(1), reason="step")
    assert storage.read(manifest) == b"of somebody else"
    assert len(storage.list(layout.checkpoint_dir(at(1)))) == 4


def test_a_zombies_late_commit_is_never_read(storage: Storage) -> None:
    zombie = begun(storage)
    zombie.save(sample_snapshot(10), reason="step")
    successor = begun(storage, 2)
    late = zombie.save(sample_snapshot(11, salt=1), reason="step")
    assert CheckpointStore(storage).ids() == [at(10)]
    successor.save(sample_snapshot(11), reason="step")
    assert successor.ids() == [at(10), at(11, 2)]
    assert successor.orphans() == [late.checkpoint]
    found, _ = CheckpointStore(storage).latest()
    assert found is not None
    assert_holds(successor.load(found.id), sample_snapshot(11))
    assert successor.prune(Keep(last=9)) == [late.checkpoint]
