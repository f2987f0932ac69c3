"""Copies what a training needs to go on from one of its checkpoints as another job.

Copied are the checkpoint, the ends of the phases before it, the origins of the attempts that led
to it, and their history rows up to it. The parent is only read and may be training. Files of
checkpoints are hard links where the file system allows it, so a fork takes little space and does
not depend on the parent.
"""

from __future__ import annotations

from outlast_checkpoints.errors import NoCheckpoint, NotFound
from outlast_checkpoints.format import layout, lineage
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.lineage import Lineage, Origin
from outlast_checkpoints.format.manifest import Manifest
from outlast_checkpoints.history.attempt_rows import AttemptRows
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document
from outlast_checkpoints.store.checkpoint_reader import CheckpointReader, phase_ends
from outlast_checkpoints.store.transfer import send


def fork_job(source: Storage, target: Storage, at: CheckpointId) -> Manifest:
    """Copy what leads to a checkpoint to an empty folder or URL.

    Args:
        source: The parent's folder; it is only read.
        target: The new job's folder. What an interrupted call left there is overwritten.
        at: The checkpoint; it may be one that a rewind has set aside.

    Returns:
        The manifest of the checkpoint. Its attempt is the newest one of the new job.

    Raises:
        NoCheckpoint: No such checkpoint is committed, or it was pruned meanwhile.
        CheckpointDamaged: A file is missing or differs from what the manifest says.
        StorageError: Reading or writing failed.
    """
    reader = CheckpointReader(source)
    made = reader.manifest(at)
    line = _line_to(source, at)
    ends = phase_ends(
        [
            found
            for found in reader.folders()
            if found.phase < at.phase and line.accepts(found) and reader.is_committed(found)
        ]
    )
    for origin in line.line:
        target.replace(layout.origin(origin.attempt), lineage.encode(origin))
    marks = dict(line.history_parts()) | {at.attempt: made.history.mark if made.history else 0}
    for attempt, mark in marks.items():
        _copy_history(source, target, attempt, mark or 0)
    for checkpoint in [*ends.values(), at]:
        _copy_checkpoint(source, target, reader.manifest(checkpoint))
    if source.exists(layout.MACHINE):
        target.replace(layout.MACHINE, read_document(source, layout.MACHINE))
    for name in filter(layout.is_kept, source.list("")):
        target.replace(name, read_document(source, name))
    return made


def _line_to(source: Storage, at: CheckpointId) -> Lineage:
    """Return the lineage that ends with the attempt of a checkpoint."""
    known: dict[int, Origin] = {}
    lineage.read_lineage(source, known)
    return Lineage.of(origin for number, origin in known.items() if number <= at.attempt)


def _copy_history(source: Storage, target: Storage, attempt: int, mark: int) -> None:
    if not mark:
        return
    with target.stage(layout.history(attempt), over=True) as local, local.open("wb") as file:
        for lines in AttemptRows(source, attempt, mark).lines():
            file.write(lines)


def _copy_checkpoint(source: Storage, target: Storage, made: Manifest) -> None:
    """Copy a checkpoint, manifest last. What is not a link is read back."""
    manifest = layout.manifest(made.id)
    try:
        linked = [
            send(source, target, layout.checkpoint_file(made.id, entry.name))
            for entry in made.files
        ]
        target.replace(manifest, read_document(source, manifest))
    except NotFound:
        raise NoCheckpoint(wanted=made.checkpoint, root=source.root) from None
    if not all(linked) and (damages := CheckpointReader(target).verify(made.id)):
        raise damages[0].error()
