"""What every storage offers: the protocol, its capabilities, and helpers that all of them share."""

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
    FormatError,
    NotFound,
    StorageError,
    StorageFull,
    UsageError,
)

_LARGEST = 16 << 20  # bytes of a document
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_NAMES = frozenset({"", ".", ".."})


# What a disk over a network says when the network is what is wrong, and a process that is short of
# something itself.
_PASSING = frozenset(
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
    """What a storage can promise; asked of the storage, not assumed from its URL.

    exclusive_create: of several creators of one path exactly one wins (fencing needs it). Given as
    a function it is called when first asked, for it may have to ask the storage.
    append: `appender` works. local: files are on a file system of this machine.
    in_process: the content is gone when this process ends (memory://).
    links: `link` works, so that one file can stand in several folders and is stored once.
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
        """Whether exactly one of several creators wins. May raise `StorageError`."""
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
    """What a write that was cut short has left, and no listing shows.

    path: where it was to go, or is. started: Unix seconds by the storage's clock. size: bytes, 0
    when it is not told. what: for people. token: what the storage knows it by.
    """

    path: str
    started: float
    size: int
    what: str
    token: str = ""


class Appender(Protocol):
    """An open file that only grows. A write that failed leaves nothing: repeat it."""

    @property
    def size(self) -> int:
        """Bytes written so far, in whole writes."""

    def write(self, data: bytes) -> None:
        """Add `data` at the end, all of it or (raising) none of it."""

    def sync(self) -> None:
        """Make everything written so far durable."""

    def close(self) -> None:
        """Close the file without syncing it."""


class Storage(Protocol):
    """A folder of finished files. Paths are relative, with "/", and never contain "..".

    Every method raises `StorageError` (`StorageFull`, `NotFound`, `AlreadyExists`) and nothing
    else for what goes wrong outside of this process.
    """

    @property
    def root(self) -> str:
        """The folder or URL that paths are relative to."""

    @property
    def capabilities(self) -> Capabilities:
        """What this storage can promise."""

    def read(self, path: str) -> bytes:
        """Return the whole content. Raises `NotFound`."""

    def read_range(self, path: str, start: int, end: int | None) -> bytes:
        """Return the bytes from `start` to before `end` (None: to the end), or what there is."""

    def size(self, path: str) -> int:
        """Return the size in bytes. Raises `NotFound`."""

    def exists(self, path: str) -> bool:
        """Return whether there is a file or a folder at `path`."""

    def modified(self, path: str) -> float:
        """Return when a file was written, in Unix seconds by the storage's own clock.

        That may be another one than this machine's: compare it with that of a file written now.
        Raises `NotFound`.
        """

    def create(self, path: str, data: bytes) -> None:
        """Publish a new durable file, finished or not at all. Raises `AlreadyExists`.

        After any other error the file may or may not be there: look.
        """

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file over an older one in one step; `durable=False` skips the syncs."""

    def list(self, folder: str) -> list[str]:
        """Return the base names in a folder, sorted; [] when there is no such folder."""

    def delete(self, path: str) -> None:
        """Delete one file, durably; nothing happens when it is gone already."""

    def delete_tree(self, folder: str) -> None:
        """Delete a folder and all in it; nothing happens when it is gone already."""

    def stage(self, path: str, *, over: bool = False) -> AbstractContextManager[Path]:
        """Give a local path to write a large new file to; durable at `path` on a clean exit.

        The path given does not exist yet. After an error in the body nothing is left behind; one
        of the storage's own may leave the file, whole or in part. over: write over what an earlier
        try has left; else `AlreadyExists` is raised.
        """

    def fetch(self, path: str) -> AbstractContextManager[Path]:
        """Give a local path to read the file from, valid inside the `with`. Raises `NotFound`."""

    def link(self, source: str, path: str) -> bool:
        """Give a finished file a second durable name, or return False: it has to be written again.

        Deleting one of the names leaves the file at the other one. False: `source` is gone, or
        this storage does not link it (any more). Raises `AlreadyExists`.
        """

    def appender(self, path: str) -> Appender:
        """Open a file to grow. Only where `capabilities.append`."""

    def local_path(self, path: str) -> Path | None:
        """Return where the file is on this machine, or None when it is not."""

    def unfinished(self) -> Sequence[Unfinished]:
        """Return what cut short writes below this root have left; some may be going on now."""

    def discard(self, left: Unfinished) -> None:
        """Delete one of those; nothing happens when it is gone already."""

    def sub(self, folder: str) -> Storage:
        """Return the storage whose root is a folder of this one."""


def read_document(storage: Storage, path: str, *, often: bool = False) -> bytes:
    """Return the content of one of the small documents that a job has.

    Raises `NotFound`, and `FormatError` for one of more than 16 MiB, which is none of ours: it is
    refused by its size. often: read so often that elsewhere, where asking for the size is one more
    request, its size is trusted.
    """
    if often and not storage.capabilities.local:
        return storage.read(path)
    data = storage.read_range(path, 0, _LARGEST + 1)
    if len(data) > _LARGEST:
        raise FormatError(path=path, reason=f"it has more than {_LARGEST} bytes")
    return data


def is_damage(error: OSError, *, local: bool) -> bool:
    """Return whether a file that cannot be read is lost, as far as anybody can know.

    A disk of this machine has said so. What is elsewhere, or on a disk that is reached over a
    network, may be out of reach just now.
    """
    return local and error.errno not in _PASSING


def check_path(path: str) -> str:
    """Return `path` when it stays below a root. Raises `UsageError`."""
    if "\0" in path or not _NO_NAMES.isdisjoint(path.split("/")):
        raise UsageError(field="path", problem=f"{path!r} leaves the storage", hint="")
    return path


def join(root: str, path: str) -> str:
    """Return the full name of `path` below `root`, for people."""
    return f"{root.rstrip('/')}/{path}" if path else root


def storage_error(error: Exception, action: str, path: str, root: str) -> StorageError:
    """Return what an error of a file system means, naming the path it happened at."""
    if isinstance(error, StorageError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, FileNotFoundError):
        return NotFound(path=path, root=root, errno=errno.ENOENT)
    if isinstance(error, FileExistsError):
        return AlreadyExists(path=path, root=root, errno=errno.EEXIST)
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    reason = reason.strip().partition("\n")[0]  # Azure's go on with the whole answer
    kind = StorageFull if number in _FULL else StorageError
    return kind(
        action=action,
        path=join(root, path),
        reason=reason or type(error).__name__,
        errno=number,
    )
