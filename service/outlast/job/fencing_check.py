"""A warning about storages that cannot fence."""

from __future__ import annotations

from typing import Final

from structlog.typing import FilteringBoundLogger

from outlast.job.log_events import LogEvent
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage.base import Storage

_BUCKET: Final = "this store accepts conditional writes but ignores the condition"
_FOLDER: Final = "this file system has neither hard links nor a rename that replaces nothing"
HINT: Final = (
    "two supervisors that start at the same moment may both take the job, so start only one "
    "(docs/operations.md, Stores that cannot fence)"
)


def can_fence(storage: Storage) -> bool:
    """Return whether exactly one of two simultaneous claims wins; True when it is unknown."""
    try:
        return storage.capabilities.exclusive_create
    except StorageError:
        return True


def why(storage: Storage) -> str:
    """Return why this storage cannot fence."""
    return _FOLDER if storage.capabilities.local else _BUCKET


def warn(storage: Storage, log: FilteringBoundLogger) -> None:
    """Log a warning when the job's store cannot fence; terminals show it too."""
    if not can_fence(storage):
        log.warning(LogEvent.FENCING_UNSUPPORTED, why=why(storage), hint=HINT)
