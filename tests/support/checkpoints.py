"""Helpers for tests of checkpoint stores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.snapshot import Snapshot
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded


def begun(storage: Storage, attempt: int = 1, **options: object) -> CheckpointStore:
    """Return a store whose attempt has begun."""
    store = CheckpointStore(storage, attempt=attempt, **options)  # type: ignore[arg-type]
    store.begin()
    return store


def at(step: int, attempt: int = 1, stage: Stage = Stage.STEP, phase: int = 0) -> CheckpointId:
    """Return the name of a checkpoint."""
    return CheckpointId(phase, step, stage, attempt)


def assert_holds(loaded: Loaded, snapshot: Snapshot) -> None:
    """Assert that a loaded checkpoint equals the snapshot, byte for byte."""
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


def flip(at_byte: int) -> Callable[[bytes], bytes]:
    """Return a function that flips one bit of the byte at `at_byte`."""
    return lambda data: (
        data[:at_byte] + bytes([data[at_byte] ^ (1 << at_byte % 8)]) + data[at_byte + 1 :]
    )
