"""A local file that only grows."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from outlast_checkpoints.storage import confined, durable_files
from outlast_checkpoints.storage.base import storage_error


class LocalAppender:
    """Appends at an offset that it counts itself, so that the next write replaces a failed one."""

    def __init__(self, target: Path, path: str, root: str) -> None:
        self._target, self._path, self._root = target, path, root
        self._file = confined.open_file(
            str(target.parent), target.name, os.O_RDWR | os.O_CREAT, durable_files.FILE_MODE
        )
        self._size = self._durable = os.fstat(self._file).st_size
        self._named = self._sync_failed = False

    @property
    def size(self) -> int:
        return self._size

    def write(self, data: bytes) -> None:
        try:
            durable_files.write_all(self._file, data, self._size)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise storage_error(error, "append to", self._path, self._root) from error
        self._size += len(data)

    def sync(self) -> None:
        try:
            if self._sync_failed:
                # After a failed fsync the kernel considers the pages clean: write them again.
                lost = os.pread(self._file, self._size - self._durable, self._durable)
                durable_files.write_all(self._file, lost, self._durable)
            self._sync_failed = True
            os.fsync(self._file)
            self._sync_failed, self._durable = False, self._size
            if not self._named:
                durable_files.sync_folder(self._target.parent)
                self._named = True
        except OSError as error:
            raise storage_error(error, "sync", self._path, self._root) from error

    def close(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            try:
                os.close(file)
            except OSError as error:
                raise storage_error(error, "close", self._path, self._root) from error
