"""Whether the job that a supervisor runs is still there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from outlast.errors import JobUnknown
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage

GONE_AFTER: Final = 30.0  # seconds without its spec after which a job counts as deleted


class JobPresence:
    """Looks for the spec of a job in a folder, which somebody may delete.

    Args:
        storage: Storage of the job.
        clock: Returns monotonic seconds.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._clock = clock
        self._missing_since: float | None = None

    def look(self) -> None:
        """Raise `JobUnknown` if the job was deleted. A root that was moved may be back soon."""
        if self._storage.local_path("") is None or self._storage.exists(layout.SPEC):
            self._missing_since = None
        elif self._missing_since is None:
            self._missing_since = self._clock()
        elif self._clock() - self._missing_since > GONE_AFTER:
            raise JobUnknown(root=self._storage.root)
