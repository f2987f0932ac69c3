"""The phase that an attempt left by an error or `break`, noted at once in the attempt's folder.

The script may catch the error, and record by itself that it is done with the phase. If the process
dies before another phase begins, the note tells the next attempt that the phase may be skipped.
"""

from __future__ import annotations

from contextlib import suppress

import msgspec

from outlast.attempt.context import AttemptContext
from outlast_checkpoints.errors import FormatError, NotFound, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.sealed_json import seal, unseal
from outlast_checkpoints.storage.documents import read_document

FORMAT = 1


class LeftPhase(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `left.json`."""

    format: int = FORMAT
    attempt: int
    phase: int


def note(ctx: AttemptContext, phase: int) -> None:
    """Note durably that the script leaves this phase. A storage that fails is no error."""
    left = LeftPhase(attempt=ctx.attempt, phase=phase)
    with suppress(StorageError):
        ctx.storage.replace(layout.left(ctx.attempt), seal(left))


def left_earlier(ctx: AttemptContext, newest: CheckpointId) -> int | None:
    """Return the phase that an earlier attempt left after this checkpoint, or None."""
    for attempt in range(ctx.attempt - 1, newest.attempt - 1, -1):
        path = layout.left(attempt)
        try:
            found = unseal(read_document(ctx.storage, path), path, LeftPhase, FORMAT)
        except (NotFound, FormatError, StorageError):
            continue
        if found.phase == newest.phase:
            return found.phase
    return None
