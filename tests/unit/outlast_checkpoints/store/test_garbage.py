"""Leftovers of dead writers: found by age, by the storage's clock, and never a file that counts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from outlast_checkpoints.format import layout
from outlast_checkpoints.format.retention import Keep
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.garbage import clock, leftovers
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot
from tests.support.checkpoints import at

DAY = 86400.0
YEAR = 365 * DAY


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """Two attempts with two checkpoints each; nothing is left behind."""
    memory = f"memory://{uuid.uuid4().hex}"
    made = open_storage(tmp_path / "job" if request.param == "folder" else memory)
    for attempt in (1, 2):
        store = CheckpointStore(made, attempt=attempt)
        store.begin()
        for step in (1, 2):
            store.save(sample_snapshot(2 * attempt + step), reason="step")
    yield made
    if made.local_path("") is None:
        made.delete_tree("")


def paths(storage: Storage, older_than: float = 0.0, *, training: bool = False) -> list[str]:
    return [one.path for one in leftovers(storage, older_than=older_than, training=training)]


def test_committed_files_are_no_leftovers(storage: Storage) -> None:
    assert paths(storage) == []
    assert storage.list(layout.CHECKPOINTS) == sorted(storage.list(layout.CHECKPOINTS))
    assert not [name for name in storage.list("") if name.startswith(".probe-")]


def test_a_checkpoint_without_manifest_is_a_leftover_unless_a_training_runs(
    storage: Storage,
) -> None:
    """For every attempt: a later one may be sending what an older one saved."""
    for found in (at(9, 1), at(9, 2)):
        storage.create(layout.checkpoint_file(found, "state.h5"), b"half")
    wanted = [layout.checkpoint_dir(found) for found in (at(9, 1), at(9, 2))]
    assert paths(storage) == wanted
    assert paths(storage, DAY) == []
    assert paths(storage, training=True) == []
    unwanted = CheckpointStore(storage).unwanted(Keep(last=None))
    local = storage.local_path("") is not None
    assert list(unwanted) == ([at(9, 1)] if local else [])
    for one in leftovers(storage, older_than=0.0, training=False):
        assert (one.reason, one.size) == ("a checkpoint that was never committed", 4)
        one.delete(storage)
    assert paths(storage) == []
    assert len(CheckpointStore(storage).ids()) == 4


def test_a_file_that_no_manifest_names_is_a_leftover(storage: Storage) -> None:
    found = CheckpointStore(storage).ids()[0]
    stray = layout.checkpoint_file(found, "other.h5")
    storage.create(stray, b"x" * 10)
    (left,) = leftovers(storage, older_than=0.0, training=True)
    assert (left.path, left.size) == (stray, 10)
    storage.replace(layout.manifest(found), b"damaged: what is named is not known")
    assert paths(storage) == []
    left.delete(storage)
    left.delete(storage)  # gone already
    assert storage.exists(layout.checkpoint_file(found, "state.h5"))


def test_a_probe_of_a_killed_process_is_a_leftover(storage: Storage) -> None:
    storage.create(".probe-0123456789abcdef", b"1")
    assert paths(storage) == [".probe-0123456789abcdef"]
    assert paths(storage, DAY) == []


class OtherClock(FaultyStorage):
    """A storage whose clock is a year ahead."""

    def modified(self, path: str) -> float:
        return super().modified(path) + YEAR


def test_ages_are_measured_by_the_clock_of_the_storage(storage: Storage) -> None:
    ahead = OtherClock(storage)
    storage.create(layout.checkpoint_file(at(9, 2), "state.h5"), b"half")
    assert clock(ahead) - clock(storage) == pytest.approx(YEAR, abs=60)
    assert paths(ahead, DAY) == []
    (left,) = leftovers(ahead, older_than=-60.0, training=False)
    assert abs(left.age) < 60


def test_temporary_files_are_found_in_every_folder(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    CheckpointStore(storage, attempt=1).begin()
    old, young = tmp_path / "attempts" / "0001" / ".tmp-old", tmp_path / ".tmp-young"
    for path in (old, young):
        path.write_bytes(b"123")
    os.utime(old, (1e9, 1e9))
    (left,) = leftovers(storage, older_than=DAY, training=True)
    assert (left.path, left.reason, left.size) == (
        "attempts/0001/.tmp-old",
        "a temporary file",
        3,
    )
    left.delete(storage)
    assert not old.exists()
    assert paths(storage, -60.0) == [".tmp-young"]


def test_an_empty_folder_is_as_old_as_itself(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    folder = tmp_path / layout.checkpoint_dir(at(1, 1))
    folder.mkdir(parents=True)
    assert paths(storage, DAY) == []
    os.utime(folder, (1e9, 1e9))
    (left,) = leftovers(storage, older_than=DAY, training=False)
    left.delete(storage)
    assert not folder.exists()
