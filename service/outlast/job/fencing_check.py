"""Stores that cannot fence: what is said of them, aloud."""

from __future__ import annotations

from typing import Final

from structlog.typing import FilteringBoundLogger

from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage.base import Storage

WHY: Final = "this store takes conditional writes and overlooks the condition"
THEN: Final = (
    "two supervisors that start at one moment may both believe that the job is theirs: see to it "
    "that only one does (docs/operations.md, Stores that cannot fence)"
)


def can_fence(storage: Storage) -> bool:
    """Return whether of two that claim a job at once exactly one wins; unknown counts as yes."""
    try:
        return storage.capabilities.exclusive_create
    except StorageError:
        return True


def warn(storage: Storage, log: FilteringBoundLogger) -> None:
    """Say in the log, and so on the terminal that watches it, when a job's store cannot fence."""
    if not can_fence(storage):
        log.warning("store_cannot_fence", why=WHY, then=THEN)
