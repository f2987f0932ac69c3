"""Uploads of a checkpoint's large files that begin while the files are written to the spool.

So a checkpoint is in the store about as soon as if there were no spool. The commit is the same: the
manifest follows when the checkpoint is committed in the spool and all its files are in the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from outlast_checkpoints.storage.base import Following, Storage


class EarlyUploads:
    """The early uploads of one checkpoint at a time. Threads may share it.

    target: the store.
    """

    def __init__(self, target: Storage) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._allowed = False
        self._files: dict[str, Following] = {}
        self._cancelled: dict[str, Following] = {}
        self._touched: set[str] = set()  # paths where an upload that failed may have left a file

    def allow(self, allowed: bool) -> None:
        """Say whether the next checkpoint may be uploaded early: nothing else is being sent."""
        if allowed:
            self.cancel()  # of a checkpoint that the spool has lost
        self._allowed = allowed

    def follow(self, path: str, local: Path, size: int) -> Callable[[int], None] | None:
        """Begin to upload a file that is being written; return what to tell its growth.

        None: this file is not uploaded early.
        """
        if not self._allowed:
            return None
        try:
            file = self._target.follow(path, local, size)
        except Exception:  # noqa: BLE001  (the sender meets the same error, and reports it)
            return None
        if file is None:
            return None
        with self._lock:
            self._files[path] = file
            self._touched.add(path)
        return file.grown

    def __contains__(self, path: str) -> bool:
        with self._lock:
            return path in self._files

    def finish(self, path: str) -> bool | None:
        """Wait for the upload of a file; return whether it is in the store, whole.

        False: the upload failed, and may have left a file there. None: there was none.
        """
        with self._lock:
            cancelled = self._cancelled.pop(path, None)
            file = self._files.pop(path, None)
            if file is None and path not in self._touched:
                return None
        if cancelled is not None:
            cancelled.finish()  # none of its requests arrives later
        if file is None or not file.finish():
            return False
        with self._lock:
            self._touched.discard(path)
        return True

    def cancel(self) -> None:
        """Give up all uploads in progress: the checkpoint was not committed in the spool."""
        with self._lock:
            files, self._files = self._files, {}
            self._cancelled |= files
        for file in files.values():
            file.cancel()
