"""The newest checkpoint, read and checked on a thread while the script makes its model."""

from __future__ import annotations

import threading
from contextlib import suppress

from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded


class Ahead:
    """Begins to read at once. Nothing depends on it: whoever begins the attempt looks again."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._found: Loaded | None = None
        self._thread = threading.Thread(target=self._read, name="outlast-ahead", daemon=True)
        self._thread.start()

    def take(self) -> Loaded | None:
        """Wait, and hand over what was read, once; None when there is nothing good."""
        self._thread.join()
        found, self._found = self._found, None
        return found

    def _read(self) -> None:
        with suppress(Exception):  # it is met once more by whoever looks again, who says so
            self._found = CheckpointStore(self._storage).read_ahead()
