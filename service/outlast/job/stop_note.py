"""A stop request that does not need the job's storage: a file in the spool of this machine.

While the storage is away, or refuses the supervisor's credentials, the supervisor cannot read the
journal. It reads these notes instead.
"""

from __future__ import annotations

import msgspec

from outlast_checkpoints.errors import FormatError, NotFound, StorageError
from outlast_checkpoints.format import layout, typed_json
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document


class StopNote(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody on this machine wants the job to stop."""

    by: str
    """Who wants it."""
    now: bool = False
    """Whether to kill the attempt instead of letting it save."""


def leave(spool: Storage, attempt: int, note: StopNote) -> None:
    """Leave a note for the supervisor of an attempt. Raises `StorageError`."""
    spool.replace(layout.stop_note(attempt), msgspec.json.encode(note), durable=False)


def take(spool: Storage, attempt: int) -> StopNote | None:
    """Return the note for the supervisor of an attempt, once; None if there is none."""
    path = layout.stop_note(attempt)
    try:
        found = typed_json.decode(read_document(spool, path), StopNote)
        spool.delete(path)
    except (NotFound, StorageError, FormatError, msgspec.DecodeError):
        return None
    return found
