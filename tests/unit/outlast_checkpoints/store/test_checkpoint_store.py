"""The commit protocol and loading: damage, lost answers, full disks, fences, zombies."""

from __future__ import annotations

import errno
import math
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from outlast_checkpoints.arrays import page_cache
from outlast_checkpoints.errors import (
    AlreadyExists,
    CheckpointDamaged,
    CommitUnknown,
    FormatTooNew,
    NoCheckpoint,
    StorageError,
    StorageFull,
    Superseded,
    UsageError,
)
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.format.retention import Best, Keep
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Capabilities, Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded
from outlast_checkpoints.testing import Died, FaultyStorage, sample_snapshot


@pytest.fixture(params=["file", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    where = tmp_path / "job" if request.param == "file" else f"memory://{uuid.uuid4().hex}/job"
    return open_storage(where)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "job")


def begun(storage: Storage, attempt: int = 1, **options: object) -> CheckpointStore:
    store = CheckpointStore(storage, attempt=attempt, **options)  # type: ignore[arg-type]
    store.begin()
    return store


def at(step: int, attempt: int = 1, stage: Stage = Stage.STEP, phase: int = 0) -> CheckpointId:
    return CheckpointId(phase, step, stage, attempt)


def assert_holds(loaded: Loaded, snapshot: Snapshot) -> None:
    assert loaded.manifest.progress == snapshot.progress
    assert loaded.documents == snapshot.documents
    assert sorted(loaded.files) == sorted(snapshot.files)
    for name, file in snapshot.files.items():
        assert sorted(loaded.files[name]) == sorted(file.arrays)
        for path, array in file.arrays.items():
            found = loaded.files[name][path]
            assert found.dtype == np.asarray(array).dtype
            assert found.tobytes() == np.asarray(array).tobytes()
        assert loaded.attributes[name] == file.group_attributes


def test_what_is_saved_comes_back(storage: Storage) -> None:
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


def test_begin_says_what_it_resumes_from(storage: Storage) -> None:
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


def test_nothing_there(storage: Storage) -> None:
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


# Damage


def flip(at_byte: int) -> Callable[[bytes], bytes]:
    return lambda data: (
        data[:at_byte] + bytes([data[at_byte] ^ (1 << at_byte % 8)]) + data[at_byte + 1 :]
    )


def test_every_flipped_byte_of_every_file_is_found(local: Storage) -> None:
    store = begun(local)
    store.save(sample_snapshot(1, numbers=2), reason="step")
    made = store.save(sample_snapshot(2, numbers=2), reason="step")
    for name in ["manifest.json", *(entry.name for entry in made.files)]:
        path = local.local_path(layout.checkpoint_file(made.id, name))
        assert path is not None
        whole = path.read_bytes()
        # Every byte of the small ones; of the larger ones every byte near the ends and each 7th.
        places = [i for i in range(len(whole)) if len(whole) < 2000 or i % 7 == 0 or i < 100]
        with path.open("r+b", buffering=0) as file:
            for place in [*places, len(whole) - 1]:
                os.pwrite(file.fileno(), flip(place)(whole)[place : place + 1], place)
                assert [damage.file for damage in store.verify(made.id)] == [name], place
                os.pwrite(file.fileno(), whole[place : place + 1], place)
    assert store.verify(made.id) == []


@pytest.mark.parametrize("name", ["manifest.json", "model.weights.h5", "state.h5", "model.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "delete"])
def test_a_damaged_checkpoint_is_named_and_the_next_older_used(
    local: Storage, name: str, damage: str
) -> None:
    store = begun(local)
    for step in (1, 2, 3):
        store.save(sample_snapshot(step), reason="step", history=HistoryMark(1, step))
    path = local.local_path(layout.checkpoint_file(at(3), name))
    assert path is not None
    data = path.read_bytes()
    path.unlink()
    if damage != "delete":
        spoilt = {"flip": flip(len(data) // 2)(data), "cut": data[:-1], "grow": data + b"\n"}
        path.write_bytes(spoilt.get(damage, b""))
    reader = CheckpointStore(local)
    found, damages = reader.latest()
    assert found is not None
    assert found.id == at(2)
    if name == "manifest.json" and damage == "delete":
        assert damages == []  # not a checkpoint any more
        assert reader.orphans() == [str(at(3))]
    else:
        assert [(one.checkpoint, one.file) for one in damages] == [(str(at(3)), name)]
        assert str(at(3)) in str(damages[0])
        with pytest.raises(CheckpointDamaged, match=name):
            reader.load(at(3))
    successor = CheckpointStore(local, attempt=2)
    resumed, _ = successor.begin()
    assert resumed is not None
    assert resumed.id == at(2)
    assert at(3) not in successor.ids(), "it is out of the lineage once somebody resumed before it"
    assert_holds(successor.load(resumed.id), sample_snapshot(2))


def test_two_files_swapped_are_found(local: Storage) -> None:
    store = begun(local)
    for step in (1, 2):
        store.save(sample_snapshot(step), reason="step")
    one, two = (local.local_path(layout.checkpoint_dir(at(step))) for step in (1, 2))
    assert one is not None
    assert two is not None
    (two / "manifest.json").write_bytes((one / "manifest.json").read_bytes())
    (damage,) = CheckpointStore(local).verify(at(2))
    assert "it belongs to 00-000000000001.0-0001" in damage.reason


def test_no_good_checkpoint_left_is_not_a_reason_to_start_over(local: Storage) -> None:
    store = begun(local)
    store.save(sample_snapshot(1), reason="step")
    path = local.local_path(layout.checkpoint_file(at(1), "state.h5"))
    assert path is not None
    path.write_bytes(b"")
    with pytest.raises(CheckpointDamaged, match=r"state\.h5"):
        CheckpointStore(local, attempt=2).begin()
    assert not local.exists(layout.origin(2))
    store.delete(at(1))
    assert CheckpointStore(local, attempt=2).begin() == (None, [])


def test_a_newer_format_is_not_passed_over(local: Storage) -> None:
    import msgspec

    from outlast_checkpoints.format import manifest

    store = begun(local)
    made = store.save(sample_snapshot(1), reason="step")
    path = local.local_path(layout.manifest(made.id))
    assert path is not None
    path.write_bytes(manifest.encode(msgspec.structs.replace(made, format=manifest.FORMAT + 1)))
    with pytest.raises(FormatTooNew):
        CheckpointStore(local, attempt=2).begin()


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_lost_origin_is_put_together_again(local: Storage, damage: str) -> None:
    one = begun(local)
    for step in (1, 2):
        one.save(sample_snapshot(step), reason="step", history=HistoryMark(1, step * 10))
    two = begun(local, 2)
    one.save(sample_snapshot(3), reason="step")  # a zombie's
    two.save(sample_snapshot(3, salt=1), reason="step", history=HistoryMark(2, 10))
    before = CheckpointStore(local).ids()
    path = local.local_path(layout.origin(2))
    assert path is not None
    data = path.read_bytes()
    path.unlink()
    if damage == "flip":
        path.write_bytes(flip(100)(data))
    reader = CheckpointStore(local)
    assert reader.ids() == before == [at(1), at(2), at(3, 2)]
    found, damages = reader.latest()
    assert found is not None
    assert found.id == at(3, 2)
    assert [(one.checkpoint, one.file) for one in damages] == [("attempts/0002", "origin.json")]


# Failing storage


SAVE_CALLS = 5  # three stages, the manifest, and one more


@pytest.mark.parametrize("fault", ["fail", "full"])
def test_a_failure_anywhere_loses_only_that_save(storage: Storage, fault: str) -> None:
    for call in range(1, SAVE_CALLS):
        base = storage.sub(f"{fault}{call}")
        begun(base).save(sample_snapshot(1), reason="step")
        faulty = FaultyStorage(base)
        store = begun(faulty, 2)
        faulty._rules = {("any", faulty._counts["any"] + call): fault}
        # The manifest is tried twice, so that one failing answer does not matter.
        persistent = {("create", 2): fault, ("create", 3): fault}
        if call == SAVE_CALLS - 1:
            faulty._rules = persistent
        kind = StorageFull if fault == "full" else StorageError
        with pytest.raises(kind) as caught:
            store.save(sample_snapshot(2), reason="step")
        assert base.root in str(caught.value)
        faulty._rules = {}
        assert store.ids() == [at(1)]
        assert store.verify(at(1)) == []
        assert store.orphans() == [], "what it took up is free again"
        store.save(sample_snapshot(2), reason="step")
        assert_holds(store.load(at(2, 2)), sample_snapshot(2))


def test_a_lost_answer_counts_as_committed(storage: Storage) -> None:
    faulty = FaultyStorage(storage, "create@2:lost")
    store = begun(faulty)
    made = store.save(sample_snapshot(1), reason="step")
    assert CheckpointStore(storage).ids() == [made.id]
    assert store.save(sample_snapshot(2), reason="step").parent == made.checkpoint


def test_a_lost_answer_to_the_origin_is_looked_up(storage: Storage) -> None:
    store = begun(FaultyStorage(storage, "create@1:lost"))
    store.save(sample_snapshot(1), reason="step")
    with pytest.raises(StorageError):
        begun(FaultyStorage(storage, "create@1:fail create@2:fail"), 2)
    assert not storage.exists(layout.origin(2))


def test_an_unknown_outcome_is_kept_and_found_out_later(storage: Storage) -> None:
    faulty = FaultyStorage(storage, "create@2:lost create@3:fail")
    store = begun(faulty)
    with pytest.raises(CommitUnknown):
        store.save(sample_snapshot(1), reason="step")
    assert CheckpointStore(storage).ids() == [at(1)], "it was committed after all"
    files = [path for operation, path in faulty.calls if operation == "stage"]
    store.save(sample_snapshot(1), reason="step")
    assert [path for operation, path in faulty.calls if operation == "stage"] == files
    assert store.verify(at(1)) == []


def test_files_that_an_unknown_commit_may_name_are_never_deleted(local: Storage) -> None:
    class Bucket(FaultyStorage):
        capabilities = open_storage("memory://x").capabilities  # type: ignore[assignment]

    Bucket.capabilities = type(local.capabilities)(True, False, False, False)
    faulty = Bucket(local, "create@2:fail create@3:fail")
    store = begun(faulty)
    with pytest.raises(CommitUnknown):
        store.save(sample_snapshot(1), reason="step")
    store.save(sample_snapshot(2), reason="step")
    assert store.prune(Keep(last=1)) == []
    assert store.orphans() == [str(at(1))]
    store.save(sample_snapshot(1), reason="step")
    assert store.verify(at(1)) == []


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
def test_a_large_checkpoint_is_the_same_however_it_is_written(
    local: Storage, monkeypatch: pytest.MonkeyPatch, past_cache: bool
) -> None:
    monkeypatch.setattr(page_cache, "WORTHWHILE", 1 << 20)
    snapshot = sample_snapshot(1, numbers=(5 << 20) + 1)
    begun(local, past_cache=past_cache).save(snapshot, reason="step")
    store = CheckpointStore(local)
    assert store.verify(at(1)) == []
    assert_holds(store.load(at(1)), snapshot)


def test_what_is_checked_at_the_begin_is_read_once(local: Storage) -> None:
    """The checked bytes are used, even if the file changes afterwards."""
    begun(local).save(sample_snapshot(1), reason="step")
    store = begun(local, attempt=2)
    Path(local.root, layout.checkpoint_file(at(1), layout.WEIGHTS_FILE)).unlink()
    assert_holds(store.load(at(1)), sample_snapshot(1))
    with pytest.raises(CheckpointDamaged, match="missing"):
        store.load(at(1))


def test_what_was_read_ahead_is_not_read_again(local: Storage) -> None:
    begun(local).save(sample_snapshot(1), reason="step")
    ahead = CheckpointStore(local).read_ahead()
    file = Path(local.root, layout.checkpoint_file(at(1), layout.WEIGHTS_FILE))
    file.rename(file.with_suffix(".aside"))
    store = begun(local, attempt=2, ahead=lambda: ahead)
    assert_holds(store.load(at(1)), sample_snapshot(1))


def test_what_was_read_ahead_and_is_no_longer_the_newest_is_let_go(local: Storage) -> None:
    first = begun(local)
    assert first.read_ahead() is None
    first.save(sample_snapshot(1), reason="step")
    ahead = CheckpointStore(local).read_ahead()
    first.save(sample_snapshot(2), reason="step")
    store = begun(local, attempt=2, ahead=lambda: ahead)
    assert_holds(store.load(at(2)), sample_snapshot(2))
    assert_holds(store.load(at(1)), sample_snapshot(1))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_was_committed_with_an_unknown_outcome_and_pruned_comes_back_whole(
    local: Storage, tmp_path: Path, elsewhere: bool
) -> None:
    """Its manifest is not created again for files that are gone."""
    spool = open_storage(tmp_path / "spool")
    made = begun(spool).save(sample_snapshot(1), reason="step")
    faulty = (Elsewhere if elsewhere else FaultyStorage)(local, "create@2:lost create@3:fail")
    store = begun(faulty)
    with pytest.raises(CommitUnknown):
        store.adopt(made, spool)
    newer = begun(open_storage(tmp_path / "other")).save(sample_snapshot(2), reason="step")
    store.adopt(newer, open_storage(tmp_path / "other"))
    pruned = store.prune(Keep(last=1))
    assert pruned == ([] if elsewhere else [str(at(1))])
    CheckpointStore(local).delete(at(1))  # somebody else's prune: `outlast prune`
    store.adopt(made, spool)
    assert store.verify(at(1)) == []


@pytest.mark.parametrize("fault", ["die-before", "die-after"])
def test_death_at_any_call_leaves_a_good_job(storage: Storage, fault: str) -> None:
    for call in range(1, SAVE_CALLS):
        base = storage.sub(f"{fault}{call}")
        begun(base).save(sample_snapshot(1), reason="step")
        faulty = FaultyStorage(base, f"any@{call + 1}:{fault}")
        store = begun(faulty, 2)
        with pytest.raises(Died):
            store.save(sample_snapshot(2), reason="step")
        successor = CheckpointStore(base, attempt=3)
        found, damages = successor.begin()
        assert damages == []
        assert found is not None
        assert_holds(successor.load(found.id), sample_snapshot(found.id.step))
        committed = fault == "die-after" and call == SAVE_CALLS - 1
        assert found.id == (at(2, 2) if committed else at(1))
        successor.save(sample_snapshot(5), reason="step")
        successor.prune(Keep(last=9))
        assert successor.orphans() == []


class Elsewhere(FaultyStorage):
    """A remote storage: requests that were given up on may arrive later."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(exclusive_create=True, append=False, local=False, in_process=False)


def test_what_arrives_late_takes_nothing_from_the_next_try(storage: Storage) -> None:
    """Two requests of a save are given up on and arrive after the next try has committed."""
    for call in range(2, 7):
        for other in range(call, call + 4):
            base = storage.sub(f"late{call}{other}")
            faulty = Elsewhere(base, f"any@{call}:late any@{other}:late")
            store = begun(faulty)
            made = None
            while made is None:
                with suppress(StorageError):
                    made = store.save(sample_snapshot(1), reason="step")
            faulty.deliver()
            found, damages = CheckpointStore(base).latest()
            assert found is not None
            assert (found.checkpoint, damages) == (made.checkpoint, [])
            assert_holds(CheckpointStore(base).load(found.id), sample_snapshot(1))


class Mounted(FaultyStorage):
    """A network folder that is unreachable for now."""

    def _error(self, operation: str, path: str, fault: str) -> StorageError:
        return StorageError(action=operation, path=path, reason="timed out", errno=errno.ETIMEDOUT)


@pytest.mark.parametrize("operation", ["read_range", "size", "fetch"])
def test_what_is_out_of_reach_is_not_damaged(tmp_path: Path, operation: str) -> None:
    """Otherwise an older checkpoint, or none, would be resumed from."""
    storage = open_storage(tmp_path / "job")
    store = begun(storage)
    for step in (1, 2):
        store.save(sample_snapshot(step), reason="step")
    told = []
    for call in range(1, 30):
        reader = CheckpointStore(Mounted(storage, f"{operation}@{call}:fail"))
        try:
            found, damages = reader.latest()
            assert found is not None
            reader.load(found.id)
        except StorageError as error:
            told.append(error.errno)
        else:
            assert (found.id, damages) == (at(2), [])
    assert set(told) == {errno.ETIMEDOUT}


# Fencing


def test_an_attempt_whose_successor_begins_while_it_looks_does_not_begin(storage: Storage) -> None:
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


def test_the_fence_is_asked_after_the_files_and_before_the_manifest(storage: Storage) -> None:
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


def test_what_somebody_else_committed_under_our_name_is_left_alone(storage: Storage) -> None:
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


# Pruning


def test_prune_keeps_what_the_rules_want_and_what_a_resume_needs(storage: Storage) -> None:
    one = begun(storage)
    for step in range(5):
        metrics = {"val_loss": abs(step - 1.0)}
        one.save(sample_snapshot(step, metrics=metrics), reason="step")
    one.save(sample_snapshot(5, stage=Stage.END), reason="end")
    one.save(sample_snapshot(0, phase=1), reason="start")
    store = begun(storage, 2)
    store.save(sample_snapshot(1, phase=1), reason="step")
    store.save(sample_snapshot(2, phase=1), reason="step")
    keep = Keep(last=1, best=Best("val_loss", "min"))
    names = [str(at(step)) for step in (0, 2, 3, 4)] + [str(at(1, 2, phase=1))]
    assert store.prune(keep, dry_run=True) == names
    assert len(store.ids()) == 9
    assert store.prune(keep) == names
    assert store.ids() == [
        at(1),  # best
        at(5, stage=Stage.END),  # the end of a phase
        at(0, phase=1),  # what attempt 2 resumed from
        at(2, 2, phase=1),  # the newest
    ]
    assert store.prune(keep) == []
    assert all(store.verify(found) == [] for found in store.ids())


def test_prune_by_a_reader_keeps_the_newest_good_one(local: Storage) -> None:
    store = begun(local)
    for step in range(4):
        store.save(sample_snapshot(step), reason="step")
    for step, name in ((3, "state.h5"), (2, "manifest.json")):
        path = local.local_path(layout.checkpoint_file(at(step), name))
        assert path is not None
        path.write_bytes(b"spoilt")
    reader = CheckpointStore(local)
    assert reader.prune(Keep(last=1)) == [str(at(0)), str(at(2))]
    found, _ = reader.latest()
    assert found is not None
    assert found.id == at(1)


def test_prune_leaves_what_others_may_be_writing(local: Storage) -> None:
    begun(local).save(sample_snapshot(1), reason="step")
    begun(local, 2)
    for attempt in (1, 2, 3):
        with local.stage(layout.checkpoint_file(at(7, attempt), "state.h5")) as path:
            path.write_bytes(b"half a checkpoint")
    local.create(f"{layout.CHECKPOINTS}/notes.txt", b"not ours")
    assert CheckpointStore(local).prune(Keep()) == [str(at(7, 1))]
    assert local.list(layout.CHECKPOINTS) == [
        str(at(1)),
        str(at(7, 2)),
        str(at(7, 3)),
        "notes.txt",
    ]


def test_delete_goes_manifest_first(storage: Storage) -> None:
    faulty = FaultyStorage(storage, "delete_tree@1:fail")
    store = begun(faulty)
    made = store.save(sample_snapshot(1), reason="step")
    with pytest.raises(StorageError):
        store.delete(made.id)
    assert store.ids() == []
    assert storage.list(layout.checkpoint_dir(made.id)) == [
        "model.json",
        "model.weights.h5",
        "state.h5",
    ]
    store.delete(made.id)
    assert store.orphans() == []
