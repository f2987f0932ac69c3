"""Leftovers of dead writers in a job's folder. Nothing refers to them.

Their age by the storage's clock decides, because a live writer may be on any machine and unknown
here. A file that a manifest lists is never a leftover.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from outlast_checkpoints.errors import CheckpointDamaged, NoCheckpoint, NotFound
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage.base import Storage, Unfinished
from outlast_checkpoints.store.checkpoint_store import CheckpointStore

_PROBE = ".probe-"


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder that can be deleted.

    path: relative to the job's folder. reason: for people. age: seconds since the last write, by
    the storage's clock. size: bytes, if known. folder: whether it is a folder. upload: remains of a
    write that no listing shows.
    """

    path: str
    reason: str
    age: float
    size: int
    folder: bool = False
    upload: Unfinished | None = None

    def delete(self, storage: Storage) -> None:
        """Delete it. Raises `StorageError`."""
        if self.upload is not None:
            storage.discard(self.upload)
        elif self.folder:
            storage.delete_tree(self.path)
        else:
            storage.delete(self.path)


def leftovers(storage: Storage, *, older_than: float, training: bool) -> list[Leftover]:
    """Return the leftovers in a job's folder that are at least `older_than` seconds old.

    training: a training is running, so folders without a manifest are left alone. Raises
    `StorageError`, also for a read-only storage: its clock is read by writing a file.
    """
    now = clock(storage)
    found = [_unfinished(left, now) for left in storage.unfinished()]
    for name in storage.list(""):
        if name.startswith(_PROBE):
            found += _file(storage, name, "a probe of the storage", now)
    store = CheckpointStore(storage)
    for checkpoint in filter(None, map(CheckpointId.parse, storage.list(layout.CHECKPOINTS))):
        if storage.exists(layout.manifest(checkpoint)):
            found += _unnamed(store, checkpoint, now)
        elif not training:
            found += _uncommitted(storage, checkpoint, now)
    return sorted((one for one in found if one.age >= older_than), key=lambda one: one.path)


def clock(storage: Storage) -> float:
    """Return the time by the storage's clock, in Unix seconds."""
    probe = f"{_PROBE}{secrets.token_hex(8)}"
    storage.create(probe, b"what time is it?")
    try:
        return storage.modified(probe)
    finally:
        storage.delete(probe)


def _unfinished(left: Unfinished, now: float) -> Leftover:
    return Leftover(left.path, left.what, now - left.started, left.size, upload=left)


def _file(storage: Storage, path: str, reason: str, now: float) -> list[Leftover]:
    try:
        age, size = now - storage.modified(path), storage.size(path)
    except NotFound:
        return []  # its writer deleted it
    return [Leftover(path, reason, age, size)]


def _unnamed(store: CheckpointStore, checkpoint: CheckpointId, now: float) -> list[Leftover]:
    """Return the files in a checkpoint's folder that its manifest does not list."""
    try:
        named = {entry.name for entry in store.manifest(checkpoint).files}
    except (CheckpointDamaged, NoCheckpoint):
        return []  # unknown which files it lists
    folder = layout.checkpoint_dir(checkpoint)
    names = set(store.storage.list(folder)) - named - {layout.MANIFEST_FILE}
    reason = "its checkpoint's manifest does not list it"
    return [
        left for name in names for left in _file(store.storage, f"{folder}/{name}", reason, now)
    ]


def _uncommitted(storage: Storage, checkpoint: CheckpointId, now: float) -> list[Leftover]:
    """Return a folder without a manifest; its age is that of its newest file."""
    folder = layout.checkpoint_dir(checkpoint)
    files = [
        left
        for name in storage.list(folder)
        for left in _file(storage, f"{folder}/{name}", "", now)
    ]
    if not files:
        try:
            files = [Leftover(folder, "", now - storage.modified(folder), 0)]
        except NotFound:
            return []
    age, size = min(left.age for left in files), sum(left.size for left in files)
    return [Leftover(folder, "a checkpoint that was never committed", age, size, folder=True)]
