"""Reading checkpoints: damage is found and named, and what was verified is read once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from outlast_checkpoints.errors import (
    CheckpointDamaged,
    FormatTooNew,
    StorageError,
)
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.checkpoints import assert_holds, at, begun, flip


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


def test_without_a_good_checkpoint_training_does_not_start_over(local: Storage) -> None:
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


def test_a_newer_format_is_not_skipped(local: Storage) -> None:
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
def test_a_lost_origin_is_rebuilt(local: Storage, damage: str) -> None:
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


def test_files_checked_at_the_start_are_read_once(local: Storage) -> None:
    """The checked bytes are used, even if the file changes afterwards."""
    begun(local).save(sample_snapshot(1), reason="step")
    store = begun(local, attempt=2)
    Path(local.root, layout.checkpoint_file(at(1), layout.WEIGHTS_FILE)).unlink()
    assert_holds(store.load(at(1)), sample_snapshot(1))
    with pytest.raises(CheckpointDamaged, match="missing"):
        store.load(at(1))


def test_prefetched_files_are_not_read_again(local: Storage) -> None:
    begun(local).save(sample_snapshot(1), reason="step")
    ahead = CheckpointStore(local).read_ahead()
    file = Path(local.root, layout.checkpoint_file(at(1), layout.WEIGHTS_FILE))
    file.rename(file.with_suffix(".aside"))
    store = begun(local, attempt=2, ahead=lambda: ahead)
    assert_holds(store.load(at(1)), sample_snapshot(1))


def test_a_prefetched_checkpoint_that_is_no_longer_the_newest_is_released(local: Storage) -> None:
    first = begun(local)
    assert first.read_ahead() is None
    first.save(sample_snapshot(1), reason="step")
    ahead = CheckpointStore(local).read_ahead()
    first.save(sample_snapshot(2), reason="step")
    store = begun(local, attempt=2, ahead=lambda: ahead)
    assert_holds(store.load(at(2)), sample_snapshot(2))
    assert_holds(store.load(at(1)), sample_snapshot(1))


class Mounted(FaultyStorage):
    """A network folder that is unreachable for now."""

    def _error(self, operation: str, path: str, fault: str) -> StorageError:
        return StorageError(action=operation, path=path, reason="timed out", errno=errno.ETIMEDOUT)


@pytest.mark.parametrize("operation", ["read_range", "size", "fetch"])
def test_unreachable_files_are_not_reported_as_damaged(tmp_path: Path, operation: str) -> None:
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
