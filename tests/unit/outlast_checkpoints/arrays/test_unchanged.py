"""Unchanged arrays are written once: how they are found, and the life of their file."""

from __future__ import annotations

import os
import uuid
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from outlast_checkpoints.arrays import hdf5_file, unchanged
from outlast_checkpoints.arrays.unchanged import FrozenPart, Seen
from outlast_checkpoints.errors import CheckpointDamaged, FormatTooNew, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.manifest import FileEntry, Manifest, _Stored
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.format.sealed_json import unseal
from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.checkpoints import at, begun

WEIGHTS, PART = layout.WEIGHTS_FILE, "model.weights.frozen.h5"
MEGABYTE = 1 << 18  # of float32


def progress(step: int, phase: int = 0, stage: Stage = Stage.STEP) -> Progress:
    return Progress(phase=phase, step=step, epoch=0, batch=step, stage=int(stage))


def tuning(step: int, *, base: int = 0, more: int = 0, stage: Stage = Stage.STEP) -> Snapshot:
    """Two 1 MiB layers that depend only on `base` and `more`, and a head that learns."""
    arrays = {
        "layers/base/vars/0": np.full((512, 512), base, np.float32),
        "layers/base/vars/1": np.full(512, base, np.float32),  # small
        "layers/more/vars/0": np.full(MEGABYTE, 100 + more, np.float32),
        "layers/head/vars/0": np.full(MEGABYTE // 8, 1000 + step, np.float32),
    }
    return Snapshot(
        progress(step, stage=stage),
        files={WEIGHTS: ArrayFile(arrays, {"layers/base": {"kind": "é"}})},
        documents={"model.json": b"{}"},
    )


@pytest.fixture
def storage(tmp_path: Path) -> FaultyStorage:
    return FaultyStorage(open_storage(tmp_path / "job"))


def save(store: CheckpointStore, snapshot: Snapshot) -> Manifest:
    made = store.save(snapshot, reason="step")
    assert_holds(store.storage, snapshot, made.id)
    return made


def assert_holds(storage: Storage, snapshot: Snapshot, checkpoint: CheckpointId) -> None:
    reader = CheckpointStore(storage)
    assert reader.verify(checkpoint) == []
    loaded = reader.load(checkpoint)
    assert list(loaded.files) == list(snapshot.files)
    for name, file in snapshot.files.items():
        assert loaded.files[name].keys() == file.arrays.keys()
        for path, array in file.arrays.items():
            assert loaded.files[name][path].tobytes() == np.asarray(array).tobytes()
        assert loaded.attributes[name] == file.group_attributes


def part_of(storage: Storage, checkpoint: CheckpointId) -> Path:
    path = storage.local_path(layout.checkpoint_file(checkpoint, PART))
    assert path is not None
    return path


def names(made: Manifest) -> list[str]:
    return [entry.name for entry in made.files]


# --- which arrays --------------------------------------------------------------------------------


def arrays(**numbers: int) -> dict[str, Any]:
    """Arrays by path: `a=3` is a megabyte of threes, `small_a` 4 KiB, and `huge_a` 12 MiB."""
    sizes = {"small": 1 << 10, "huge": 12 * MEGABYTE}
    return {
        path: np.full(sizes.get(path.partition("_")[0], MEGABYTE), number, np.float32)
        for path, number in numbers.items()
    }


def seen(step: int, held: dict[str, Any], *part: str) -> Seen:
    place = progress(step)
    entry = FileEntry(PART, 1, "xxh3:" + "0" * 32, WEIGHTS)
    kept = FrozenPart(at(step), entry, frozenset(part)) if part else None
    return Seen(place, unchanged.split(held, place, None).hashes, kept)


@pytest.mark.parametrize(
    ("last", "part", "now", "place", "expected"),
    [
        ({"a": 1, "b": 1}, (), {"a": 1, "b": 2}, progress(2), {"a"}),
        ({"a": 1, "b": 1}, (), {"a": 2, "b": 2}, progress(2), "whole"),
        ({"a": 1, "b": 1}, ("a",), {"a": 1, "b": 2}, progress(2), "link"),
        ({"a": 1, "b": 1}, ("a", "b"), {"a": 1, "b": 2}, progress(2), {"a"}),
        ({"a": 1, "b": 1}, ("a",), {"a": 2, "b": 2}, progress(2), "whole"),
        # A second array stands still: it joins the first, which is worth writing that again once.
        ({"a": 1, "b": 1, "c": 1}, ("a",), {"a": 1, "b": 1, "c": 2}, progress(2), {"a", "b"}),
        ({"a": 1, "huge_c": 1}, ("huge_c",), {"a": 1, "huge_c": 1}, progress(2), "link"),
        # Too little to be worth a file: 4 KiB; a megabyte of thirteen.
        ({"small_a": 1, "b": 1}, (), {"small_a": 1, "b": 2}, progress(2), "whole"),
        ({"a": 1, "huge_b": 1}, (), {"a": 1, "huge_b": 2}, progress(2), "whole"),
        # Nothing was trained between: it is no sign that anything is frozen.
        ({"a": 1, "b": 1}, (), {"a": 1, "b": 1}, progress(1, stage=Stage.EPOCH), "whole"),
        ({"a": 1, "b": 1}, (), {"a": 1, "b": 1}, progress(0, phase=1), "whole"),
        ({"a": 1, "b": 1}, ("a",), {"a": 1, "b": 1}, progress(1, stage=Stage.EPOCH), "link"),
        # The end of a phase is there to be loaded.
        ({"a": 1, "b": 1}, ("a",), {"a": 1, "b": 2}, progress(2, stage=Stage.END), "whole"),
        ({"a": 1, "b": 1}, (), {"b": 1, "x": 3}, progress(2), {"b"}),
    ],
)
def test_which_arrays_count_as_frozen(
    last: dict[str, int], part: tuple[str, ...], now: dict[str, int], place: Progress, expected: Any
) -> None:
    found = unchanged.split(arrays(**now), place, seen(1, arrays(**last), *part))
    if expected in ("whole", "link"):
        assert (found.link is not None, found.fresh) == (expected == "link", frozenset())
    else:
        assert (found.link, found.fresh) == (None, expected)


def test_a_change_anywhere_in_an_array_is_found() -> None:
    before = arrays(a=1)
    for index in (0, MEGABYTE // 2, MEGABYTE - 1):
        after = arrays(a=1)
        after["a"][index] = np.nextafter(np.float32(1), np.float32(2))
        assert unchanged.split(after, progress(2), seen(1, before)).fresh == frozenset()
    assert unchanged.split(arrays(a=1), progress(2), seen(1, before)).fresh == {"a"}


def test_an_array_of_another_shape_or_type_is_another_one() -> None:
    before = {"a": np.zeros(MEGABYTE, np.float32), "b": np.zeros((512, 512), np.int32)}
    after = {"a": np.zeros(MEGABYTE, np.int32), "b": np.zeros((256, 1024), np.int32)}
    assert unchanged.split(after, progress(2), seen(1, before)).fresh == frozenset()
    assert unchanged.split(before, progress(2), seen(1, before)).fresh == {"a", "b"}


# --- a training of which a part is frozen --------------------------------------------------------


def test_the_frozen_part_is_written_once(storage: FaultyStorage) -> None:
    store = begun(storage)
    made = [save(store, tuning(step, more=step)) for step in range(1, 6)]
    assert names(made[0]) == [WEIGHTS, "model.json"]
    for later in made[1:]:
        assert names(later) == [WEIGHTS, PART, "model.json"]
        assert [entry.part_of for entry in later.files] == [None, WEIGHTS, None]
        assert later.files[1] == made[1].files[1]
        assert part_of(storage, later.id).samefile(part_of(storage, made[1].id))
    assert part_of(storage, made[1].id).stat().st_nlink == 4
    assert [one.format for one in made] == [1, 2, 2, 2, 2]
    staged = [path for call, path in storage.calls if call == "stage" and path.endswith(PART)]
    assert staged == [layout.checkpoint_file(made[1].id, PART)]
    written = [one.size - (one.files[1].size if one.format == 2 else 0) for one in made]
    assert max(written[1:]) < 0.6 * written[0]  # `base` is a megabyte of 2.1


def test_older_readers_report_a_newer_format(storage: FaultyStorage) -> None:
    store = begun(storage)
    made = [save(store, tuning(step)) for step in (1, 2)]
    first, second = (layout.manifest(one.id) for one in made)
    assert unseal(storage.read(first), first, _Stored, 1).checkpoint == made[0].checkpoint
    assert b"part_of" not in storage.read(first)
    with pytest.raises(FormatTooNew):
        unseal(storage.read(second), second, _Stored, 1)


def test_a_training_without_frozen_arrays_is_written_whole(
    storage: FaultyStorage, tmp_path: Path
) -> None:
    store = begun(storage)
    for step in range(1, 5):
        for stage in (Stage.STEP, Stage.EPOCH):
            snapshot = tuning(step, base=step, more=step, stage=stage)
            made = save(store, snapshot)
            assert (names(made), made.format) == ([WEIGHTS, "model.json"], 1)
            path = tmp_path / f"{step}-{stage}.h5"
            size, digest = hdf5_file.write_arrays(path, snapshot.files[WEIGHTS])
            assert made.files[0] == FileEntry(WEIGHTS, size, digest)
            there = storage.local_path(layout.checkpoint_file(made.id, WEIGHTS))
            assert there is not None
            assert there.stat().st_nlink == 1
    assert not any(call == "link" for call, _ in storage.calls)


def test_arrays_unfrozen_and_frozen_again(storage: FaultyStorage) -> None:
    store = begun(storage)
    bases = [0, 0, 0, 1, 2, 3, 3, 3, 3]
    made = [save(store, tuning(step, base=base)) for step, base in enumerate(bases, 1)]
    parts = [
        os.stat(part_of(storage, one.id)).st_ino if PART in names(one) else None  # noqa: PTH116
        for one in made
    ]
    both, more = parts[1], parts[3]
    # It takes two saves to know that what had changed does so no more.
    assert parts[:7] == [None, both, both, more, more, more, more]
    again = parts[7]
    assert parts[7:] == [again] * 2
    assert len({both, more, again, None}) == 4


def test_the_end_of_a_phase_is_whole(storage: FaultyStorage, tmp_path: Path) -> None:
    store = begun(storage)
    for step in (1, 2, 3):
        save(store, tuning(step))
    end = tuning(3, stage=Stage.END)
    made = save(store, end)
    assert (names(made), made.format) == ([WEIGHTS, "model.json"], 1)
    _, digest = hdf5_file.write_arrays(tmp_path / "whole.h5", end.files[WEIGHTS])
    assert made.files[0].hash == digest


def test_pruning_the_first_checkpoint_keeps_the_shared_part_of_others(
    storage: FaultyStorage,
) -> None:
    store = begun(storage)
    for step in range(1, 7):
        save(store, tuning(step))
    assert store.prune(Keep(last=2)) == [str(at(step)) for step in (1, 2, 3, 4)]
    for step in (5, 6):
        assert_holds(storage, tuning(step), at(step))
    assert part_of(storage, at(6)).stat().st_nlink == 2
    assert store.orphans() == []
    assert part_of(storage, save(store, tuning(7)).id).stat().st_nlink == 3


def test_without_a_checkpoint_to_share_with_everything_is_written(storage: FaultyStorage) -> None:
    store = begun(storage)
    for step in (1, 2, 3):
        save(store, tuning(step))
    CheckpointStore(storage).delete(at(3))
    assert names(save(store, tuning(4))) == [WEIGHTS, "model.json"]
    assert PART in names(save(store, tuning(5)))
    assert part_of(storage, save(store, tuning(6)).id).samefile(part_of(storage, at(5)))


def test_the_first_checkpoint_of_an_attempt_is_whole(storage: FaultyStorage) -> None:
    store = begun(storage)
    for step in (1, 2, 3):
        save(store, tuning(step))
    successor = begun(storage, 2)
    made = [save(successor, tuning(step)) for step in (4, 5, 6)]
    assert [one.format for one in made] == [1, 2, 2]
    assert part_of(storage, at(6, 2)).samefile(part_of(storage, at(5, 2)))
    assert not part_of(storage, at(6, 2)).samefile(part_of(storage, at(3)))


def test_damage_to_a_shared_file_damages_all_that_share_it(storage: FaultyStorage) -> None:
    store = begun(storage)
    for step in (1, 2, 3, 4):
        save(store, tuning(step))
    with open(part_of(storage, at(3)), "r+b") as file:
        file.seek(500_000)
        file.write(b"\x55")
    reader = CheckpointStore(storage)
    for step in (2, 3, 4):
        (damage,) = reader.verify(at(step))
        assert (damage.checkpoint, damage.file) == (str(at(step)), PART)
        with pytest.raises(CheckpointDamaged, match="frozen"):
            reader.load(at(step))
    found, damages = CheckpointStore(storage, attempt=2).begin()
    assert found is not None
    assert found.id == at(1)
    assert [damage.checkpoint for damage in damages] == [str(at(step)) for step in (4, 3, 2)]


def test_a_storage_without_links_gets_whole_files() -> None:
    storage = open_storage(f"memory://{uuid.uuid4().hex}/job")
    store = begun(storage)
    assert [save(store, tuning(step)).format for step in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize("fault", ["fail", "full", "lost"])
def test_a_link_that_fails_commits_nothing(storage: FaultyStorage, fault: str) -> None:
    store = begun(storage)
    for step in (1, 2):
        save(store, tuning(step))
    storage._rules = {("link", 1): fault}
    with pytest.raises(StorageError, match="injected"):
        store.save(tuning(3), reason="step")
    assert store.ids() == [at(1), at(2)]
    assert storage.list(layout.CHECKPOINTS) == [str(at(1)), str(at(2))]
    assert PART in names(save(store, tuning(3)))
    assert part_of(storage, at(3)).samefile(part_of(storage, at(2)))


def test_an_array_in_two_files_is_refused(storage: FaultyStorage) -> None:
    store = begun(storage)
    snapshot = sample_snapshot(1)
    twice = {"a.h5": snapshot.files["state.h5"], "b.h5": snapshot.files["state.h5"]}
    made = store.save(Snapshot(snapshot.progress, twice), reason="step")
    one, other = made.files
    part = msgspec.structs.replace(other, part_of=one.name)
    store._manifests[made.id] = msgspec.structs.replace(made, files=(one, part), format=2)
    with pytest.raises(CheckpointDamaged, match="is in two files"):
        store.load(made.id)


def test_names_that_leave_no_room_for_a_part(storage: FaultyStorage) -> None:
    """A name too long to add a part, and one that equals the part's name."""
    store = begun(storage)
    base = ArrayFile({"a": np.zeros(MEGABYTE, np.float32)})
    for long in (f"{'x' * 86}.weights.h5", "a.h5"):
        assert len(long) <= 100
        for step in (1, 2, 3):
            snapshot = Snapshot(
                progress(step + 10 * len(long)), {long: base, unchanged.part_name("a.h5"): base}
            )
            made = save(store, snapshot)
            assert next(e for e in made.files if e.name == long).part_of is None
            assert [e.name for e in made.files if e.part_of == long] == []


def test_no_array_of_a_snapshot_stays_referenced(storage: FaultyStorage) -> None:
    store = begun(storage)
    left = []
    for step in (1, 2, 3):
        snapshot = tuning(step)
        left += [weakref.ref(array) for array in snapshot.files[WEIGHTS].arrays.values()]
        store.save(snapshot, reason="step")
        del snapshot
    assert [ref() is None for ref in left] == [True] * len(left)
