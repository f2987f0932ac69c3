"""A file that is uploaded to S3 while it is still being written, part by part.

s3transfer sends the parts. The only difference to any other upload is that a part waits until the
file has grown to its end.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.utils import OSUtils

from outlast_checkpoints.storage.lasting_pool import LastingThreadPool


class GrowingUpload:
    """The upload of one file that is written from front to back."""

    def __init__(
        self,
        client: Any,
        config: TransferConfig,
        local: Path,
        size: int,
        bucket: str,
        key: str,
        extra: Mapping[str, Any],
    ) -> None:
        self._file = _GrowingFile(size)
        self._transfers = TransferManager(client, config, self._file, LastingThreadPool)
        self._upload = self._transfers.upload(str(local), bucket, key, extra_args=dict(extra))

    def grown(self, size: int) -> None:
        """Say that the first `size` bytes are in the file and final."""
        self._file.grown(size)

    def finish(self) -> None:
        """Wait until all is uploaded. Raises the error of the upload."""
        try:
            self._upload.result()
        finally:
            self._transfers.shutdown()

    def cancel(self) -> None:
        """Give the upload up, and remove its parts, without waiting for that."""
        self._file.end()
        self._upload.cancel()
        # requests in progress end first
        threading.Thread(target=self._transfers.shutdown, args=(True,), daemon=True).start()


class _GrowingFile(OSUtils):  # type: ignore[misc]
    """What s3transfer sees of the file: its size at the end, and each part when it is there."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._there = 0
        self._ended = False
        self._changed = threading.Condition()

    def grown(self, size: int) -> None:
        with self._changed:
            self._there = size
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def get_file_size(self, filename: str) -> int:
        return self._size

    def open_file_chunk_reader_from_fileobj(
        self, fileobj: Any, chunk_size: int, full_file_size: int, *args: Any, **kwargs: Any
    ) -> Any:
        end = min(fileobj.tell() + chunk_size, full_file_size)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._there >= end)
        return super().open_file_chunk_reader_from_fileobj(
            fileobj, chunk_size, full_file_size, *args, **kwargs
        )
