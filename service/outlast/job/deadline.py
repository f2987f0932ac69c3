"""The deadline of an attempt: its supervisor writes it to a file before it sends the signal.

Both run on the same machine, so they share a clock.
"""

from __future__ import annotations

import time

import msgspec

from outlast_checkpoints.errors import FormatError, NotFound, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document
from outlast_checkpoints.storage.retry_budget import BRIEF, patience


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """When and why an attempt has to be gone."""

    why: str
    """Why the machine is taken."""
    by: float
    """Deadline in unix seconds."""


def write(storage: Storage, attempt: int, why: str, within: float) -> bool:
    """Give the attempt `within` seconds to leave; return whether that could be written."""
    deadline = Deadline(why=why, by=time.time() + within)
    try:
        with patience(BRIEF):
            path = layout.deadline(attempt)
            storage.replace(path, msgspec.json.encode(deadline), durable=False)
    except StorageError:
        return False
    return True


def seconds_left(storage: Storage, attempt: int) -> float | None:
    """Return the seconds until the deadline of the attempt; None if it has none."""
    try:
        with patience(BRIEF):
            found = msgspec.json.decode(
                read_document(storage, layout.deadline(attempt)), type=Deadline
            )
    except (NotFound, StorageError, FormatError, msgspec.DecodeError):
        return None
    return max(0.0, found.by - time.time())
