"""Hints to the page cache, where the system accepts them (Linux)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

WORTHWHILE: Final = 16 << 20  # bytes; smaller files get no hint


def begin_to_write(file: int, start: int, end: int) -> None:
    """Make the disk start writing a span of an open file, so that the final sync waits less.

    Linux starts writing dirty pages that it is advised to drop, and keeps them until then.
    """
    _advise_drop(file, start, end - start)


def release(path: Path) -> None:
    """Release the page cache of a large file that will probably not be read again.

    The next file of its size can reuse the memory at once. New memory costs page faults and, on a
    virtual machine, perhaps a request to the host. A file with several names stays cached: another
    name may be read.
    """
    with suppress(OSError):
        size, names = path.stat().st_size, path.stat().st_nlink
        if size < WORTHWHILE or names > 1:
            return
        file = os.open(path, os.O_RDONLY)
        try:
            _advise_drop(file, 0, 0)
        finally:
            os.close(file)


def _advise_drop(file: int, start: int, length: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file, start, length, os.POSIX_FADV_DONTNEED)
