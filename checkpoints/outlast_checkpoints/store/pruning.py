"""Which folders of a job can be deleted, given what its writer is doing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.lineage import Lineage
from outlast_checkpoints.format.retention import Item, Keep, plan
from outlast_checkpoints.store.checkpoint_reader import CheckpointReader, phase_ends
from outlast_checkpoints.store.outcome import is_settled


@dataclass(frozen=True, slots=True)
class Writing:
    """What the process that prunes has written, and may still write.

    attempt: whose checkpoints it writes; None: it only reads and prunes.
    begun: whether the attempt has begun.
    saved: checkpoints that it has committed.
    uncertain: checkpoints that may be committed; the answer was lost.
    adopting: checkpoints that it has begun to copy and will complete.
    """

    attempt: int | None
    begun: bool
    saved: Collection[CheckpointId]
    uncertain: Collection[CheckpointId]
    adopting: Collection[CheckpointId]


def unwanted(reader: CheckpointReader, keep: Keep, writing: Writing) -> dict[CheckpointId, str]:
    """Return what can be deleted, oldest first, each with the reason."""
    line = reader.lineage()
    folders = reader.folders()
    ids = [found for found in folders if line.accepts(found) and reader.is_committed(found)]
    kept = plan([Item(found, reader.metrics(found)) for found in ids], keep)
    kept |= set(phase_ends(ids).values()) | needed(reader, ids, line, writing)
    orphans = set(folders) - set(ids)
    found_unwanted = {}
    for found in folders:
        if found not in orphans:
            if found not in kept:
                found_unwanted[found] = f"{keep} does not keep it"
        elif is_abandoned(reader, found, line, writing):
            found_unwanted[found] = (
                "it is beyond where the next attempt took over"
                if reader.is_committed(found)
                else "it was never committed, and its attempt is over"
            )
    return found_unwanted


def needed(
    reader: CheckpointReader, ids: list[CheckpointId], line: Lineage, writing: Writing
) -> set[CheckpointId]:
    """Return what a resume may need, whatever the rules say."""
    kept = set(ids[-1:])
    if not is_settled(reader.storage):  # a second manifest of it may be on its way
        kept |= set(writing.uncertain)
    if line.newest is not None and line.newest.checkpoint is not None:
        kept |= {found for found in ids if str(found) == line.newest.checkpoint}
    if ids and ids[-1] not in writing.saved:
        good, _ = reader.latest()  # another process wrote the newest one: is it good?
        kept |= {good.id} if good else set(ids)
    return kept


def is_abandoned(
    reader: CheckpointReader, orphan: CheckpointId, line: Lineage, writing: Writing
) -> bool:
    """Return whether no process can still be writing an orphan."""
    newest = line.attempts[0] if line.attempts else 0
    if orphan.attempt == writing.attempt:
        in_progress = not writing.begun or orphan in {*writing.uncertain, *writing.adopting}
        if in_progress or reader.is_committed(orphan):
            return False
        return is_settled(reader.storage) or any(orphan < saved for saved in writing.saved)
    if writing.attempt is None and reader.storage.local_path("") is None:
        # A later attempt may be sending what is not committed: only its age can tell.
        return reader.is_committed(orphan) and orphan.attempt < newest
    if writing.attempt is not None and reader.is_committed(orphan) and reader.set_aside(orphan):
        return False  # the rewind can be undone until somebody prunes the job
    return orphan.attempt < newest
