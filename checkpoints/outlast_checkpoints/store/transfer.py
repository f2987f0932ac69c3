"""Copies files from one storage to another and verifies them there.

Files that are correct in the target are not written again.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from outlast_checkpoints.arrays.file_hasher import Hashes, Strong
from outlast_checkpoints.arrays.hashing import Digests, Meter, changed, hashed, pieces, strong_of
from outlast_checkpoints.errors import AlreadyExists, NotFound, StorageError
from outlast_checkpoints.format.manifest import FileEntry
from outlast_checkpoints.storage.base import Storage, join
from outlast_checkpoints.storage.documents import raw_document


@dataclass
class Tally:
    """What was done so far.

    files: their number. written: bytes copied. kept: bytes that were correct in the target already.
    linked: bytes of files that share another file's content.
    """

    files: int = 0
    written: int = 0
    kept: int = 0
    linked: int = 0


class Transfer:
    """Copies files from `source` to the same paths in `target`. Threads may share it.

    meter: receives the progress in bytes. keyed: the storage whose keys check MACs.
    """

    def __init__(self, source: Storage, target: Storage, meter: Meter, keyed: Storage) -> None:
        self._source, self._target, self._keyed = source, target, keyed
        self._meter = meter
        self._digests = Digests(keyed=keyed)
        self._lock = threading.Lock()
        self._there: dict[str, set[str]] = {}  # names by folder, at the first look
        self._parts: dict[FileEntry, str] = {}  # paths of parts in the target, for links
        self.tally = Tally()

    def named(self, path: str, entry: FileEntry) -> str | None:
        """Copy a file that a manifest lists; return its damage in the source, if any.

        A damaged file is copied unchanged. A part that the target already has is linked where
        possible. Raises `StorageError`.
        """
        if self._has(path) and self._digests.difference(self._target, path, entry) is None:
            self._count(kept=entry.size)
        elif not self._link(path, entry):
            try:
                hashes = self._write(path, strong_of(self._keyed, path, entry))
            except _Unreadable as error:
                return error.reason
            if reason := changed(entry, hashes):
                return reason
        if entry.part_of is not None:
            self._parts.setdefault(entry, path)
        return None

    def file(self, path: str) -> None:
        """Copy a file that no manifest lists. Raises `NotFound`, `StorageError`."""
        with suppress(NotFound):
            size = self._source.size(path) if self._has(path) else -1
            if size >= 0 and self._target.size(path) == size:
                mine = self._digests.of(self._source, path)
                if self._digests.of(self._target, path) == mine:
                    self._count(kept=size)
                    return
        try:
            self._write(path)
        except _Unreadable as error:
            raise error.cause from None

    def create(self, path: str, data: bytes) -> None:
        """Create a document. Raises `AlreadyExists` if a different one exists."""
        try:
            self._target.create(path, data)
        except AlreadyExists:
            if raw_document(self._target, path) != data:
                raise
        self._count(written=len(data), metered=True)

    def document(self, path: str, data: bytes) -> None:
        """Write a document, replacing a different one."""
        try:
            self._target.create(path, data)
        except AlreadyExists:
            if raw_document(self._target, path) != data:
                self._target.replace(path, data)
        self._count()

    def _has(self, path: str) -> bool:
        """Return whether the target had the file at the beginning. Each folder is listed once."""
        folder, _, name = path.rpartition("/")
        with self._lock:
            if folder not in self._there:
                self._there[folder] = set(self._target.list(folder))
            return name in self._there[folder]

    def _link(self, path: str, entry: FileEntry) -> bool:
        source = self._parts.get(entry)
        if source is None or not self._target.capabilities.links:
            return False
        self._target.delete(path)
        if not self._target.link(source, path):
            return False
        self._count(linked=entry.size)
        return True

    def _write(self, path: str, strong: Strong | None = None) -> Hashes:
        """Copy a file, replacing any other; return its hashes, verified in the target."""
        size = 0

        def read() -> Iterator[memoryview | bytes]:
            nonlocal size
            source = pieces(self._source, path)
            while True:
                try:
                    piece = next(source, None)
                except StorageError as error:
                    if self._source.local_path(path) is None and not isinstance(error, NotFound):
                        raise
                    raise _Unreadable(error) from error
                if piece is None:
                    return
                file.write(piece)
                size += len(piece)
                yield piece

        with self._target.stage(path, over=True) as local, open(local, "wb") as file:
            hashes = hashed(read(), self._meter, strong=strong)
        if self._digests.of(self._target, path).hash != hashes.hash:
            full = join(self._target.root, path)
            raise StorageError(action="copy", path=full, reason="the copy differs from the source")
        self._count(written=size, metered=True)
        return hashes

    def _count(
        self, *, kept: int = 0, linked: int = 0, written: int = 0, metered: bool = False
    ) -> None:
        with self._lock:
            self.tally.files += 1
            self.tally.kept += kept
            self.tally.linked += linked
            self.tally.written += written
        if not metered:
            self._meter.done(kept + linked)


class _Unreadable(Exception):
    """A file of the source is lost: its disk cannot read it."""

    def __init__(self, cause: StorageError) -> None:
        self.cause = cause
        missing = isinstance(cause, NotFound)
        self.reason = "it is missing" if missing else f"it cannot be read: {cause.fields['reason']}"
        super().__init__(self.reason)


def send_unless_there(source: Storage, target: Storage, path: str, size: int) -> None:
    """Copy a file that only this process writes; one of the right size is an earlier copy."""
    with suppress(NotFound):
        if target.size(path) == size:
            return
    send(source, target, path)


def send(source: Storage, target: Storage, path: str) -> bool:
    """Copy a file, replacing any other; return whether the copy is a hard link.

    On this machine it is one where the file system allows it.
    """
    with source.fetch(path) as there, target.stage(path, over=True) as here:
        try:
            os.link(there, here)
        except OSError:  # another file system
            if target.capabilities.local:
                shutil.copyfile(there, here)
            else:
                here.symlink_to(there)  # the upload only reads it
            return False
    return target.capabilities.local
