"""Temporary folders for files on their way to or from a store.

A killed process leaves its folder behind, with a file as large as a checkpoint's. A lock that ends
with its process tells such a folder from one in use, even across containers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from outlast_checkpoints.errors import StorageError, StorageFull

_PREFIX: Final = "outlast-transfer-"
_LOCK: Final = ".in-use"
_SETTLED: Final = 60.0  # seconds; a younger folder may not be locked yet

_already_swept: set[str] = set()


@contextmanager
def temp_dir(below: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder below a folder, by default TMPDIR; delete it afterwards.

    The first call for a folder also deletes what killed processes left behind there. Raises
    `StorageError`.
    """
    parent = tempfile.gettempdir() if below is None else str(below)
    if parent not in _already_swept:
        _already_swept.add(parent)
        sweep(Path(parent))
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        kind = StorageFull if error.errno == errno.ENOSPC else StorageError
        reason = error.strerror or str(error)
        raise kind(action="write below", path=parent, reason=reason, errno=error.errno) from error
    try:
        with suppress(OSError):  # a file system without locks: nobody sweeps the folder
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path, settled: float = _SETTLED) -> list[Path]:
    """Delete the folders of processes that are gone, and return them.

    settled: the least age of a folder to delete, in seconds.
    """
    gone = []
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime >= settled and _unused(folder):
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(folder)
    return gone


def _unused(folder: Path) -> bool:
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
