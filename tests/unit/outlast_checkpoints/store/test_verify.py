"""Verifying many checkpoints: all damage is found, and shared files are read once."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from outlast_checkpoints.arrays.hashing import pieces
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.copy_job import copy_job
from outlast_checkpoints.store.verify import audit
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot


class Total:
    def __init__(self) -> None:
        self.expected = self.finished = 0

    def expect(self, count: int) -> None:
        self.expected += count

    def done(self, count: int) -> None:
        self.finished += count


def make_job(storage: Storage) -> CheckpointStore:
    """Three checkpoints; two of them share a 1 MiB file."""
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    for step in range(1, 4):
        store.save(sample_snapshot(step, backbone=1), reason="step")
    return store


@pytest.fixture
def jobs(tmp_path: Path) -> list[Storage]:
    storages = [open_storage(tmp_path / name) for name in "abc"]
    for storage in storages:
        make_job(storage)
    return storages


def flip(storage: Storage, path: str) -> None:
    local = Path(storage.root) / path
    data = bytearray(local.read_bytes())
    data[len(data) // 2] ^= 1
    local.write_bytes(data)  # in place: whatever links the file has the damage too


def test_each_damage_is_found_in_its_file(jobs: list[Storage]) -> None:
    ids = CheckpointStore(jobs[1]).ids()
    flip(jobs[1], layout.checkpoint_file(ids[0], "state.h5"))
    flip(jobs[1], layout.checkpoint_file(ids[2], "model.weights.frozen.h5"))
    flip(jobs[2], layout.manifest(ids[1]))
    (Path(jobs[2].root) / layout.checkpoint_file(ids[2], "model.json")).unlink()
    total = Total()
    audits = audit([CheckpointStore(storage) for storage in jobs], meter=total)
    assert [found.problem for found in audits] == [None] * 3
    found = [
        [(one.checkpoint, damage.file) for one in found.checkpoints for damage in one.damages]
        for found in audits
    ]
    assert found == [
        [],
        [
            (ids[0], "state.h5"),
            (ids[1], "model.weights.frozen.h5"),  # it links it as well
            (ids[2], "model.weights.frozen.h5"),
        ],
        [(ids[1], "manifest.json"), (ids[2], "model.json")],
    ]


def test_a_shared_file_is_read_once_and_counts_for_each(jobs: list[Storage]) -> None:
    counted = FaultyStorage(jobs[0])
    total = Total()
    (found,) = audit([CheckpointStore(counted)], meter=total)
    read = [path for call, path in counted.calls if call == "fetch"]
    assert len([path for path in read if path.endswith(".frozen.h5")]) == 1
    assert len(read) == len(set(read)) == 3 * 3 + 1
    sizes = sum(one.manifest.size for one in found.checkpoints if one.manifest)
    assert total.expected == total.finished == sizes > 3 << 20


def test_a_quick_check_reads_no_file(jobs: list[Storage]) -> None:
    ids = CheckpointStore(jobs[0]).ids()
    local = Path(jobs[0].root) / layout.checkpoint_file(ids[1], "state.h5")
    local.write_bytes(local.read_bytes()[:-1])
    counted = FaultyStorage(jobs[0])
    (found,) = audit([CheckpointStore(counted)], deep=False)
    assert [str(d) for one in found.checkpoints for d in one.damages] == [
        f"{ids[1]}: state.h5: it has {local.stat().st_size} bytes instead of "
        f"{local.stat().st_size + 1}"
    ]
    assert not [path for call, path in counted.calls if call == "fetch"]


class Away(FaultyStorage):
    """A remote storage whose content is out of reach."""

    def local_path(self, path: str) -> Path | None:
        return None

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        raise StorageError(action="read", path=path, reason="connection refused")

    def read(self, path: str) -> bytes:
        if path.endswith(".h5"):
            return self.read_range(path, 0, None)
        return super().read(path)


def test_an_unreachable_job_does_not_hide_the_others(jobs: list[Storage]) -> None:
    """It is not reported as damaged, because that is unknown."""
    stores = [CheckpointStore(Away(jobs[0])), CheckpointStore(jobs[1])]
    away, here = audit(stores)
    assert isinstance(away.problem, StorageError)
    assert [damage for one in away.checkpoints for damage in one.damages] == []
    assert here.problem is None
    assert len(here.checkpoints) == 3


def test_a_large_remote_file_is_read_in_pieces() -> None:
    storage = open_storage(f"memory://{uuid.uuid4().hex}")
    data = bytes(range(256)) * (9 << 12)
    storage.create("large", data)
    storage.create("small", b"small")
    storage.create("empty", b"")
    counted = FaultyStorage(storage)
    found = [bytes(piece) for piece in pieces(counted, "large")]
    assert b"".join(found) == data
    assert max(map(len, found)) <= 4 << 20 < len(data)
    assert {call for call, _ in counted.calls} == {"size", "read_range"}
    assert [bytes(piece) for piece in pieces(storage, "small")] == [b"small"]
    assert list(pieces(storage, "empty")) == []


def test_a_copy_in_memory_verifies(jobs: list[Storage]) -> None:
    jobs[0].create(layout.SPEC, b"{}")
    target = open_storage(f"memory://{uuid.uuid4().hex}")
    total = Total()
    copied = copy_job(jobs[0], target, meter=total)
    assert total.expected == total.finished > 3 << 20
    (found,) = audit([CheckpointStore(target)])
    assert [one.checkpoint for one in found.checkpoints] == copied.checkpoints
    assert not any(one.damages for one in found.checkpoints)
    target.delete_tree("")
