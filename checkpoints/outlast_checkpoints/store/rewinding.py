"""Where an attempt begins: its origin is recorded once, before its first step.

A rewind is an attempt that only records its origin: the checkpoint that a user chose. What was
saved and logged beyond that place no longer counts, and nothing of it is deleted.
"""

from __future__ import annotations

from outlast_checkpoints.errors import AlreadyExists, StorageError, Superseded
from outlast_checkpoints.format import layout, lineage
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.lineage import REWIND, Origin
from outlast_checkpoints.format.manifest import Manifest
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store import outcome
from outlast_checkpoints.store.checkpoint_reader import CheckpointReader


def record(storage: Storage, origin: Origin) -> None:
    """Create the origin of an attempt. Raises `Superseded` if the attempt has one."""
    path, data = layout.origin(origin.attempt), lineage.encode(origin)
    try:
        storage.create(path, data)
    except AlreadyExists:
        by = f"{origin.attempt}, begun elsewhere"
        raise Superseded(attempt=origin.attempt, by=by) from None
    except StorageError as error:
        outcome.confirm_created(storage, path, data, error)


def rewind(storage: Storage, attempt: int, to: CheckpointId) -> Manifest:
    """Let the job continue from an older checkpoint, or from one that a rewind has set aside.

    Args:
        storage: The job's folder.
        attempt: A newly claimed attempt, which trains nothing.
        to: The checkpoint; verify it before.

    Returns:
        The manifest of the checkpoint.

    Raises:
        NoCheckpoint: No such checkpoint is committed.
        CheckpointDamaged: Its manifest is damaged. Nothing has changed.
        Superseded: A newer attempt has begun.
    """
    reader = CheckpointReader(storage)
    made = reader.manifest(to)
    begun = reader.lineage().attempts
    if begun and begun[0] >= attempt:
        raise Superseded(attempt=attempt, by=begun[0])
    origin = Origin(
        format=REWIND, attempt=attempt, checkpoint=made.checkpoint, history=made.history
    )
    record(storage, origin)
    return made
