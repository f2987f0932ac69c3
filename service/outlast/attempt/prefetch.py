"""Reads and verifies the newest checkpoint in the background, while the script starts."""

from __future__ import annotations

import threading
from contextlib import suppress

from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded


class Prefetch:
    """Starts reading immediately. If it fails, the checkpoint is read again later."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._found: Loaded | None = None
        self._thread = threading.Thread(target=self._read, name="outlast-prefetch", daemon=True)
        self._thread.start()

    def take(self) -> Loaded | None:
        """Wait, and return the checkpoint once; None if there is no good one."""
        self._thread.join()
        found, self._found = self._found, None
        return found

    def _read(self) -> None:
        with suppress(Exception):  # reading it again later reports the error
            self._found = CheckpointStore(self._storage).read_ahead()
