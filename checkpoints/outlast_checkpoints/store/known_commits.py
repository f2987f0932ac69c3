"""Checkpoints that are known from elsewhere than listings, so that a wrong listing is noticed.

A listing that is empty, though files are there, would make a training start over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from outlast_checkpoints.errors import CheckpointsMissing, FormatError, NotFound
from outlast_checkpoints.format import layout, lineage
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.lineage import Lineage, Origin
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document


class KnownCommit(NamedTuple):
    """A checkpoint that an earlier attempt has reported."""

    checkpoint: CheckpointId
    """Its name."""
    certain: bool
    """Whether it was committed on the job's storage, not only in a spool."""


def require_shown(
    storage: Storage,
    attempt: int,
    known: Sequence[KnownCommit],
    found: CheckpointId | None,
    folders: Sequence[CheckpointId],
    origins: Mapping[int, Origin],
) -> None:
    """Raise `CheckpointsMissing` if listings hide a newer checkpoint, or if all are gone.

    Args:
        storage: The job's folder.
        attempt: The attempt that begins.
        known: What earlier attempts have reported; if nothing, nothing is checked.
        found: The checkpoint that was found by listing, or None.
        folders: The checkpoint folders that the listing shows.
        origins: The origins that were read, by attempt.
    """
    if not known:
        return
    resumed = [CheckpointId.parse(one.checkpoint or "") for one in origins.values()]
    told = [*known, *(KnownCommit(one, True) for one in resumed if one is not None)]
    doubtful = [
        one
        for one in told
        if found is None or (one.checkpoint.place > found.place and one.checkpoint not in folders)
    ]
    if not doubtful:
        return
    line = _line(storage, attempt, doubtful, origins)
    doubtful = sorted(one for one in doubtful if line.accepts(one.checkpoint))
    there = [one for one in doubtful if storage.exists(layout.manifest(one.checkpoint))]
    if there:
        raise CheckpointsMissing(
            attempt=attempt,
            root=storage.root,
            found=found or "none",
            problem=f"{there[-1].checkpoint} is there, but is not listed",
            hint="Do not use this storage until it lists every file that it has.",
        )
    gone = [str(one.checkpoint) for one in doubtful if one.certain]
    if found is None and gone:
        raise CheckpointsMissing(
            attempt=attempt,
            root=storage.root,
            found="none",
            problem=f"the journal says that earlier attempts committed {gone[-1]}",
            hint="Bring the checkpoints back, or start a new job.",
        )


def _line(
    storage: Storage, attempt: int, known: Sequence[KnownCommit], origins: Mapping[int, Origin]
) -> Lineage:
    """Return the lineage before an attempt, without a listing of the attempts."""
    read = {number: one for number, one in origins.items() if number < attempt}
    for number in range(1, attempt):
        path = layout.origin(number)
        if number not in read:
            with suppress(NotFound, FormatError):
                read[number] = lineage.decode(read_document(storage, path), path)
    unknown = {one.checkpoint.attempt for one in known} - set(read)
    return Lineage.of(read.values(), unknown)
