"""The storage protocol, its capabilities, and helpers that all storages share."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Protocol

import msgspec

from outlast_checkpoints.errors import (
    AlreadyExists,
    NotFound,
    StorageError,
    StorageFull,
    UsageError,
)

_PIECE = 4 << 20  # bytes that are read at once
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_NAMES = frozenset({"", ".", ".."})


# Errors that may pass: of a network disk whose network fails, and of a process that lacks memory or
# file descriptors.
_TRANSIENT = frozenset(
    {
        errno.EAGAIN,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)


class Capabilities:
    """What a storage guarantees.

    Args:
        exclusive_create: If several processes create the same path, exactly one succeeds. Fencing
            needs this. A function is called on first use, because finding out may take a request.
        append: `Storage.appender` works.
        local: Files are on a file system of this machine.
        in_process: The content is gone when this process ends (`memory://`).
        links: `Storage.link` works: one stored file can have several names. Default False.
    """

    def __init__(
        self,
        exclusive_create: bool | Callable[[], bool],
        append: bool,
        local: bool,
        in_process: bool,
        links: bool = False,
    ) -> None:
        self._exclusive_create = exclusive_create
        self.append = append
        self.local = local
        self.in_process = in_process
        self.links = links

    @cached_property
    def exclusive_create(self) -> bool:
        """Whether exactly one of several creators succeeds. May raise `StorageError`."""
        asked = self._exclusive_create
        return asked if isinstance(asked, bool) else asked()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Capabilities) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return f"Capabilities{self._all()}"

    def _all(self) -> tuple[bool, ...]:
        return self.exclusive_create, self.append, self.local, self.in_process, self.links


class Unfinished(msgspec.Struct, frozen=True):
    """The remains of a write that was cut short. No listing shows them.

    Attributes:
        path: Where the file was to go, or where the remains are.
        started: When the write began, in Unix seconds by the storage's clock.
        size: Size in bytes; 0 if unknown.
        what: What it is, for people.
        token: The storage's own name for it, such as an upload ID.
    """

    path: str
    started: float
    size: int
    what: str
    token: str = ""


class Appender(Protocol):
    """An open file that only grows. A failed write leaves nothing behind: repeat it."""

    @property
    def size(self) -> int:
        """The size in bytes after the last successful write."""

    def write(self, data: bytes) -> None:
        """Append all of `data`, or raise `StorageError` and append nothing."""

    def sync(self) -> None:
        """Make everything written so far durable. Raises `StorageError`."""

    def close(self) -> None:
        """Close the file without syncing it."""


class Following(Protocol):
    """A large file that is stored while it is still being written."""

    def grown(self, size: int) -> None:
        """Say that the first `size` bytes are in the local file and will not change."""

    def finish(self) -> bool:
        """Wait until the file is stored, durable and whole; return False if that failed."""

    def cancel(self) -> None:
        """Give up, without waiting. The file may be at its path, whole, or not."""


class Storage(Protocol):
    """A folder of finished files: the interface that every storage implements.

    Paths are relative to the root, use "/" and never contain "..". For everything that goes wrong
    outside this process, methods raise `StorageError` or one of its subclasses (`StorageFull`,
    `NotFound`, `AlreadyExists`) and nothing else.

    To check your own storage, subclass `outlast_checkpoints.testing.StorageConformance`.
    """

    @property
    def root(self) -> str:
        """The folder or URL to which paths are relative."""

    @property
    def capabilities(self) -> Capabilities:
        """What this storage guarantees."""

    def read(self, path: str) -> bytes:
        """Return the whole content of a file. Raises `NotFound`."""

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        """Return the bytes from `start` up to `end`, exclusive. Raises `NotFound`.

        An `end` of None or beyond the file means its end. Past the end the result is b"".
        """

    def size(self, path: str) -> int:
        """Return the size of a file in bytes. Raises `NotFound`."""

    def exists(self, path: str) -> bool:
        """Return whether a file or folder exists. Raises `StorageError` if out of reach."""

    def modified(self, path: str) -> float:
        """Return when a file was written, by the storage's clock. Raises `NotFound`.

        The time is in Unix seconds. The clock may differ from this machine's: compare only times
        from the same storage.
        """

    def create(self, path: str, data: bytes) -> None:
        """Create a durable file, complete or not at all. Raises `AlreadyExists` if the path exists.

        After any other error the file may or may not exist: read it to find out.
        """

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Replace a file in one step, or create it. Readers see the old or the new content.

        With `durable=False` the new content may be lost in a power failure.
        """

    def list(self, folder: str) -> list[str]:
        """Return the sorted base names in a folder; [] if the folder does not exist."""

    def delete(self, path: str) -> None:
        """Delete one file, durably. A missing file is no error."""

    def delete_tree(self, folder: str) -> None:
        """Delete a folder and everything in it. A missing folder is no error."""

    def stage(self, path: str, *, over: bool = False) -> AbstractContextManager[Path]:
        """Yield a local path to write a large file to; on a clean exit it is durable at `path`.

        The yielded path does not exist yet. After an error in the `with` body nothing is left
        behind. After an error of the storage the file may exist, whole or in part. Raises
        `AlreadyExists` if `path` exists, unless `over` is True: then it is overwritten.
        """

    def follow(self, path: str, local: Path, size: int) -> Following | None:
        """Begin to store a local file that is still being written, or return None.

        Where that is impossible or not worthwhile, the result is None: use `stage`.

        Args:
            path: Where the file goes. A file that is there is overwritten.
            local: The file. It exists when `grown` is first called, and stays until the end.
            size: Its size in bytes when it is finished.
        """

    def fetch(self, path: str) -> AbstractContextManager[Path]:
        """Yield a local path to read the file from, valid inside the `with`. Raises `NotFound`."""

    def read_into(self, path: str, buffer: memoryview) -> int:
        """Read the first bytes of a file into memory; return how many. Raises `NotFound`.

        It is as fast as the storage allows, so it may read several parts at a time.
        """

    def link(self, source: str, path: str) -> bool:
        """Give a finished file a second durable name. Raises `AlreadyExists` if `path` exists.

        Deleting one name leaves the file at the other. Returns False if `source` is gone or the
        storage cannot link it; you then have to write the file again.
        """

    def appender(self, path: str) -> Appender:
        """Open a file for appending. Raises `StorageError` unless `capabilities.append`."""

    def local_path(self, path: str) -> Path | None:
        """Return the path on this machine's file system, or None if the storage is elsewhere."""

    def unfinished(self) -> Sequence[Unfinished]:
        """Return the remains of writes below this root. Some writes may still be in progress."""

    def discard(self, left: Unfinished) -> None:
        """Delete one entry of `unfinished`. A missing one is no error."""

    def sub(self, folder: str) -> Storage:
        """Return the storage whose root is a folder of this storage."""


def read_file_into(local: Path, buffer: memoryview) -> int:
    """Read the first bytes of a local file into memory; return how many."""
    at = 0
    with open(local, "rb", buffering=0) as file:
        while count := file.readinto(buffer[at : at + _PIECE]):
            at += count
    return at


def is_damage(error: OSError, *, local: bool) -> bool:
    """Return whether a file that cannot be read counts as lost.

    It does if a disk of this machine says so. A bucket or a network disk may only be unreachable
    for now.
    """
    return local and error.errno not in _TRANSIENT


def check_path(path: str) -> str:
    """Return `path` if it stays below a root, else raise `UsageError`."""
    if "\0" in path or not _NO_NAMES.isdisjoint(path.split("/")):
        raise UsageError(
            field="path", problem=f"{path!r} leaves the storage", hint="Use a relative path."
        )
    return path


def join(root: str, path: str) -> str:
    """Return the full name of `path` below `root`, for messages."""
    return f"{root.rstrip('/')}/{path}" if path else root


def storage_error(error: Exception, action: str, path: str, root: str) -> StorageError:
    """Return the `StorageError` for an error of a file system or client, naming the path."""
    if isinstance(error, StorageError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, FileNotFoundError):
        return NotFound(path=path, root=root, errno=errno.ENOENT)
    if isinstance(error, FileExistsError):
        return AlreadyExists(path=path, root=root, errno=errno.EEXIST)
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    reason = reason.strip().partition("\n")[0]  # Azure appends the whole response
    kind = StorageFull if number in _FULL else StorageError
    return kind(
        action=action,
        path=join(root, path),
        reason=reason or type(error).__name__,
        errno=number,
    )
