"""Hashes of stored files, read in pieces so that memory use stays small."""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from outlast_checkpoints.arrays.file_hasher import FileHasher, Hashes, Strong
from outlast_checkpoints.errors import NotFound, StorageError
from outlast_checkpoints.format.manifest import FileEntry
from outlast_checkpoints.storage.base import Storage, is_damage, storage_error
from outlast_checkpoints.storage.documents import file_mac

_PIECE = 4 << 20

Inode = tuple[int, int, int, int]


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
    """Hashes of stored files. A file with several names (hard links) is read once.

    meter: receives the progress in bytes. keyed: the storage whose keys check MACs. None (default):
    the one that a file is read from.
    """

    def __init__(self, meter: Meter | None = None, keyed: Storage | None = None) -> None:
        self._meter = meter or Unread()
        self._keyed = keyed
        self._lock = threading.Lock()
        self._known: dict[tuple[Inode, str], Future[Hashes]] = {}

    def of(self, storage: Storage, path: str, entry: FileEntry | None = None) -> Hashes:
        """Return a file's hashes as manifests write them.

        entry: its manifest entry, if what authenticates the file is wanted too. Raises `NotFound`,
        `StorageError`, `KeyWrong`.
        """
        inode = shared_inode(storage, path)
        if inode is None:
            return self._read(storage, path, entry)
        key = inode, (entry and entry.authentic) or ""
        with self._lock:
            known = self._known.get(key)
            if known is None:
                mine = self._known[key] = Future[Hashes]()
        if known is not None:
            found = known.result()
            self._meter.done(inode[2])
            return found
        try:
            mine.set_result(self._read(storage, path, entry))
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
            return _compared(entry, size, lambda: self.of(storage, path, entry))
        except NotFound:
            return "it is missing"
        except StorageError as error:
            if not is_damage(error, local=storage.local_path(path) is not None):
                raise
            return f"it cannot be read: {error.fields['reason']}"

    def _read(self, storage: Storage, path: str, entry: FileEntry | None) -> Hashes:
        strong = None if entry is None else strong_of(self._keyed or storage, path, entry)
        return hashed(pieces(storage, path), self._meter, strong=strong)


def strong_of(storage: Storage, path: str, entry: FileEntry) -> Strong | None:
    """Return what computes the hash that authenticates the file at `path`, as its entry says.

    None if there is none, or if it is a MAC and no key is set. Raises `KeyWrong`, `FormatError`.
    """
    if entry.mac is not None:
        return file_mac(storage, path, entry.mac)
    return None if entry.sha256 is None else hashlib.sha256()


def hashed(
    content: Iterable[memoryview | bytes],
    meter: Meter | None = None,
    *,
    strong: Strong | None = None,
    reused: bool = True,
) -> Hashes:
    """Return the hashes of all pieces together, as manifests write them.

    strong: a second hash, if one is wanted. reused: whether the memory of a piece is used for the
    next.
    """
    hasher = FileHasher(strong, reused=reused)
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
            return read_local(local, entry, strong_of(storage, path, entry))
    size = storage.size(path)
    if size != entry.size:
        return None, _other_size(entry, size)
    content = direct_io.memory(size)
    found = storage.read_into(path, content)
    strong = strong_of(storage, path, entry)
    wrong = _compared(entry, found, lambda: hashed([content], strong=strong, reused=False))
    return (content, "") if wrong is None else (None, wrong)


def read_local(
    local: Path, entry: FileEntry, strong: Strong | None
) -> tuple[memoryview | None, str]:
    """Return the content of a local file if it matches its manifest entry.

    strong: what computes the hash that authenticates it; None if there is none, or no key.

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
            wrong = _compared(entry, size, lambda: hashed(pieces, strong=strong, reused=False))
        return (content, "") if wrong is None else (None, wrong)
    except OSError as error:
        if not is_damage(error, local=True):
            raise storage_error(error, "read", local.name, str(local.parent)) from error
        return None, f"it cannot be read: {error.strerror or error}"


def _compared(entry: FileEntry, size: int, digest: Callable[[], Hashes]) -> str | None:
    if size != entry.size:
        return _other_size(entry, size)
    return changed(entry, digest())


def changed(entry: FileEntry, found: Hashes) -> str | None:
    """Return how a file's hashes differ from its manifest entry, or None if they do not."""
    if found.hash != entry.hash:
        return "its content has changed (the hash differs)"
    wanted = entry.authentic or ""
    if found.strong is not None and not hmac.compare_digest(found.strong, wanted):
        what = "SHA-256" if entry.mac is None else "MAC"
        return f"its content was forged (its xxh3 was kept, its {what} differs)"
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


def shared_inode(storage: Storage, path: str) -> Inode | None:
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
