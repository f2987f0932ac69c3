"""What the system keeps of files in memory, where it takes hints about that (Linux)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

WORTHWHILE: Final = 16 << 20  # bytes, of which a hint is given


def begin_to_write(file: int, start: int, end: int) -> None:
    """Have the disk begin with a span of an open file: the sync at the end waits for little more.

    Linux starts to write what is asked to leave its memory, and keeps it there until it is written.
    """
    _let_go(file, start, end - start)


def let_go(path: Path) -> None:
    """Let the memory of a large file that is written, and probably not read again, be used again.

    For the next one of its size, say: memory that is in use already is there at once, while new
    memory has to be found and, on a virtual machine, perhaps to be fetched from its host. A file
    with several names stays: one of them may be read.
    """
    with suppress(OSError):
        size, names = path.stat().st_size, path.stat().st_nlink
        if size < WORTHWHILE or names > 1:
            return
        file = os.open(path, os.O_RDONLY)
        try:
            _let_go(file, 0, 0)
        finally:
            os.close(file)


def _let_go(file: int, start: int, length: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(file, start, length, os.POSIX_FADV_DONTNEED)
