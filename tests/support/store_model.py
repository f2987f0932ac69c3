"""The attempts of the store's model, the training that they run, and places for their job."""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.snapshot import Snapshot
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import FaultyStorage, sample_snapshot

Row = tuple[int, int]  # step, attempt


def snapshot_at(checkpoint: CheckpointId) -> Snapshot:
    """Return the training at a place. Its large array changes after every eighth step."""
    place, backbone = checkpoint.place, checkpoint.step // 8
    return sample_snapshot(
        place[1], stage=place[2], salt=checkpoint.attempt, numbers=4, backbone=backbone
    )


@dataclass
class Attempt:
    """An attempt as its process sees itself, with the faulty storage that it writes to."""

    number: int
    storage: FaultyStorage
    store: CheckpointStore
    history: HistoryWriter
    step: int
    stage: Stage
    waiting: list[Row] = field(default_factory=list)  # rows that readers cannot see yet


def in_memory() -> tuple[Storage, str]:
    """Return an empty storage in memory."""
    return open_storage(f"memory://{uuid.uuid4().hex}/job"), ""


def in_a_folder() -> tuple[Storage, str]:
    """Return an empty storage in a folder, and the folder to delete."""
    memory = "/dev/shm"  # a file system in memory, where there is one: syncing it costs nothing
    folder = tempfile.mkdtemp(prefix="outlast-test-", dir=memory if Path(memory).is_dir() else None)
    return open_storage(Path(folder) / "job"), folder
