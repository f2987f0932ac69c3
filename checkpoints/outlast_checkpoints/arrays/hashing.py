"""Hashes of stored files, read in pieces so that memory use stays small."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from outlast_checkpoints.arrays.file_hasher import FileHasher, Hashes
from outlast_checkpoints.errors import NotFound, StorageError
from outlast_checkpoints.format.manifest import FileEntry
from outlast_checkpoints.storage.base import Storage, is_damage, storage_error

_PIECE = 4 << 20

_Inode = tuple[int, int, int, int]


class Meter(Protocol):
    """Progress of a long read or copy. Its methods are called from any thread."""

    def expect(self, count: int) -> None:
        """Add `count` bytes to what will be read or copied."""

    def done(self, count: int) -> None:
        """Add `count` bytes to what is done."""


class Unread:
    """A meter that ignores everything."""

    def expect(self, count: int) -> None: ...

    def done(self, count: int) -> None: ...


class Digests:
    """Hashes of stored files. A file with several names (hard links) is read once."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter or Unread()
        self._lock = threading.Lock()
        self._known: dict[tuple[_Inode, bool], Future[Hashes]] = {}

    def of(self, storage: Storage, path: str, *, sha256: bool = False) -> Hashes:
        """Return a file's hashes as manifests write them. Raises `NotFound`, `StorageError`."""
        inode = _shared_inode(storage, path)
        if inode is None:
            return self._read(storage, path, sha256)
        with self._lock:
            known = self._known.get((inode, sha256))
            if known is None:
                mine = self._known[inode, sha256] = Future[Hashes]()
        if known is not None:
            found = known.result()
            self._meter.done(inode[2])
            return found
        try:
            mine.set_result(self._read(storage, path, sha256))
        except BaseException as error:
            mine.set_exception(error)
            raise
        return mine.result()

    def difference(self, storage: Storage, path: str, entry: FileEntry) -> str | None:
        """Return how a file differs from its manifest entry, or None if it does not.

        Raises `StorageError` if the file is out of reach, which does not count as damage.
        """
        try:
            size = storage.size(path)
            return _compared(entry, size, lambda sha256: self.of(storage, path, sha256=sha256))
        except NotFound:
            return "it is missing"
        except StorageError as error:
            if not is_damage(error, local=storage.local_path(path) is not None):
                raise
            return f"it cannot be read: {error.fields['reason']}"

    def _read(self, storage: Storage, path: str, sha256: bool) -> Hashes:
        return hashed(pieces(storage, path), self._meter, sha256=sha256)


def hashed(
    content: Iterable[memoryview | bytes],
    meter: Meter | None = None,
    *,
    sha256: bool = False,
    reused: bool = True,
) -> Hashes:
    """Return the hashes of all pieces together, as manifests write them.

    sha256: whether SHA-256 is wanted. reused: whether the memory of a piece is used for the next.
    """
    hasher = FileHasher(sha256=sha256, reused=reused)
    try:
        for piece in content:
            hasher.update(piece)
            if meter is not None:
                meter.done(len(piece))
    finally:
        hashes = hasher.end()
    return hashes


def read_checked(storage: Storage, path: str, entry: FileEntry) -> tuple[memoryview | None, str]:
    """Return the content of a stored file if it matches its manifest entry.

    Otherwise return None and how it differs. Memory is allocated only for the right size. Raises
    `NotFound`, and `StorageError` if the file is out of reach, which does not count as damage.
    """
    from outlast_checkpoints.arrays import direct_io

    if storage.local_path(path) is not None:
        with storage.fetch(path) as local:
            return read_local(local, entry)
    size = storage.size(path)
    if size != entry.size:
        return None, _other_size(entry, size)
    content = direct_io.memory(size)
    found = storage.read_into(path, content)
    wrong = _compared(entry, found, lambda sha256: hashed([content], sha256=sha256, reused=False))
    return (content, "") if wrong is None else (None, wrong)


def read_local(local: Path, entry: FileEntry) -> tuple[memoryview | None, str]:
    """Return the content of a local file if it matches its manifest entry.

    Otherwise return None and how it differs. Memory is allocated only for the right size. Raises
    `StorageError` if the file is out of reach, which does not count as damage.
    """
    from outlast_checkpoints.arrays import direct_io

    try:
        size = local.stat().st_size
        if size != entry.size:
            return None, _other_size(entry, size)
        content = direct_io.memory(size)
        with open(local, "rb", buffering=0, opener=open_regular) as file:
            pieces = direct_io.filling(content, file.fileno())
            wrong = _compared(
                entry, size, lambda sha256: hashed(pieces, sha256=sha256, reused=False)
            )
        return (content, "") if wrong is None else (None, wrong)
    except OSError as error:
        if not is_damage(error, local=True):
            raise storage_error(error, "read", local.name, str(local.parent)) from error
        return None, f"it cannot be read: {error.strerror or error}"


def _compared(entry: FileEntry, size: int, digest: Callable[[bool], Hashes]) -> str | None:
    if size != entry.size:
        return _other_size(entry, size)
    return changed(entry, digest(entry.sha256 is not None))


def changed(entry: FileEntry, found: Hashes) -> str | None:
    """Return how a file's hashes differ from its manifest entry, or None if they do not."""
    if found.hash != entry.hash:
        return "its content has changed (the hash differs)"
    if entry.sha256 is not None and found.sha256 != entry.sha256:
        return "its content was forged (its xxh3 was kept, its SHA-256 differs)"
    return None


def _other_size(entry: FileEntry, size: int) -> str:
    return f"it has {size} bytes instead of {entry.size}"


def pieces(storage: Storage, path: str) -> Iterator[memoryview | bytes]:
    """Yield a stored file piece by piece. A piece is valid until the next one is requested.

    Raises `NotFound`, `StorageError`.
    """
    if storage.local_path(path) is not None:
        with storage.fetch(path) as local:
            yield from _pieces_of(local, path, storage.root)
        return
    start, size = 0, storage.size(path)
    if 0 < size <= _PIECE:
        yield storage.read(path)  # one request
        return
    while start < size:
        piece = storage.read_range(path, start, min(size, start + _PIECE))
        if not piece:
            return  # it was longer a moment ago: the comparison will notice
        yield piece
        start += len(piece)


def _pieces_of(local: Path, path: str, root: str) -> Iterator[memoryview]:
    try:
        with open(local, "rb", buffering=0, opener=open_regular) as file:
            buffer = memoryview(bytearray(max(1, min(_PIECE, os.fstat(file.fileno()).st_size))))
            while count := file.readinto(buffer):
                yield buffer[:count]
    except OSError as error:
        raise storage_error(error, "read", path, root) from error


def open_regular(path: str, flags: int) -> int:
    """Open a file that may have been swapped since it was looked at."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _shared_inode(storage: Storage, path: str) -> _Inode | None:
    """Return the identity of a file that has several names, or None for any other file."""
    local = storage.local_path(path)
    if local is None:
        return None
    try:
        found = local.stat()
    except OSError as error:
        raise storage_error(error, "look at", path, storage.root) from error
    if found.st_nlink < 2:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
