"""By when an attempt has to be gone: said by its supervisor in a file, before it sends the signal.

Both are on one machine, so the moment is one of that machine's clock.
"""

from __future__ import annotations

import time

import msgspec

from outlast_checkpoints.errors import NotFound, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.retry_budget import BRIEF, patience


class Departure(msgspec.Struct, frozen=True, kw_only=True):
    """why: the machine is about to be taken. by: unix seconds."""

    why: str
    by: float


def write(storage: Storage, attempt: int, why: str, within: float) -> bool:
    """Say that the attempt has so many seconds; return whether that could be written."""
    departure = Departure(why=why, by=time.time() + within)
    try:
        with patience(BRIEF):
            path = layout.departure(attempt)
            storage.replace(path, msgspec.json.encode(departure), durable=False)
    except StorageError:
        return False
    return True


def seconds_left(storage: Storage, attempt: int) -> float | None:
    """Return the seconds that the attempt still has, None when nobody has said so."""
    try:
        with patience(BRIEF):
            found = msgspec.json.decode(storage.read(layout.departure(attempt)), type=Departure)
    except (NotFound, StorageError, msgspec.DecodeError):
        return None
    return max(0.0, found.by - time.time())
