"""Large files written and read past the system's page cache, where the file system can (Linux).

A write to the page cache takes a processor's time for every page: five times that of the copy and
the hash together (measured on ext4, Linux 6.18: 0.19 s for 290 MB, against 0.02 s so). Where the
processors train, that time is taken from the steps. And what is not to be read again soon does not
push the training's data out of the memory. What the file system does not take in this way (O_DIRECT
is a matter of each) is written and read as ever.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import numpy as np

from outlast_checkpoints.arrays import page_cache

_BLOCK: Final = 4096  # what memory, offsets and lengths have to be multiples of, or more than it
_BUFFER: Final = 4 << 20  # bytes that are written at once: they stay in the processor's cache
_PIECE: Final = 8 << 20  # bytes that are read at once
_READERS: Final = 4  # of a file: a disk is faster when it knows what comes next
_PRIVATE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_NOT_SO: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def memory(size: int) -> memoryview:
    """Return new memory for a file of so many bytes, which a direct read can fill.

    In huge pages where the system has them: much of the time to read a large file otherwise goes
    into finding its memory page by page.
    """
    whole = -(-max(size, 1) // _BLOCK) * _BLOCK
    if size < page_cache.WORTHWHILE:
        # Not a bytearray: its pages are zeroed first, one by one.
        return np.empty(whole, np.uint8).data[:size]
    found = mmap.mmap(-1, whole, flags=_PRIVATE)
    with suppress(AttributeError, OSError):
        found.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(found)[:size]


class DirectWriter:
    """Takes the bytes of a new file from front to back, and writes them in large blocks.

    file: open for writing, empty. `end` has to be called after the last bytes. Raises `OSError`
    as the disk does.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        # Of pages of its own: ext4, say, writes from other memory as ever, without a word.
        self._buffer = np.frombuffer(mmap.mmap(-1, _BUFFER, flags=_PRIVATE), np.uint8)
        self._filled = 0
        self._direct = _switch(file, on=True)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        left = np.frombuffer(data, np.uint8)
        while len(left):
            count = min(len(left), _BUFFER - self._filled)
            # numpy's copy lets other threads run meanwhile
            np.copyto(self._buffer[self._filled : self._filled + count], left[:count])
            self._filled += count
            left = left[count:]
            if self._filled == _BUFFER:
                self._put(_BUFFER)

    def end(self) -> None:
        self._put(self._filled // _BLOCK * _BLOCK)
        self._put(self._filled)

    def _put(self, count: int) -> None:
        """Write the first `count` bytes of the buffer."""
        view = self._buffer.data[:count]
        while view:
            if self._direct and len(view) % _BLOCK:
                self._direct = _switch(self._file, on=False)
            try:
                view = view[os.write(self._file, view) :]
            except OSError as error:
                if not self._direct or error.errno not in _NOT_SO:
                    raise
                self._direct = _switch(self._file, on=False)
        rest = self._filled - count
        self._buffer[:rest] = self._buffer[count : self._filled]
        self._filled = rest


def filling(content: memoryview, file: int) -> Iterator[memoryview]:
    """Read a file into memory of its size (see `memory`); give it piece by piece, in order.

    Past the page cache where the file is not in there. Ends early where the file does. Raises
    `OSError`.
    """
    size = len(content)
    large = size >= page_cache.WORTHWHILE
    direct = large and not _cached(file, size) and _switch(file, on=True)
    if not direct:
        yield from _one_by_one(content, file, 0)
        return
    # Here: a save that is under way when the interpreter ends could not import it any more.
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_READERS) as pool:
        starts = range(0, size, _PIECE)
        reads = [pool.submit(_read_at, file, content, start) for start in starts]
        try:
            for start, read in zip(starts, reads, strict=True):
                if not read.result():
                    break  # not so, or no more: read as ever from here
                yield content[start : start + _PIECE]
            else:
                return
        finally:
            for read in reads:
                read.cancel()
    _switch(file, on=False)
    yield from _one_by_one(content, file, start)


def _read_at(file: int, content: memoryview, start: int) -> bool:
    """Read a piece directly; return whether that worked and all of it was there."""
    wanted = content[start : start + _PIECE]
    whole = memoryview(content.obj)  # with the rest of the last block
    room = whole[start : start + -(-len(wanted) // _BLOCK) * _BLOCK]
    try:
        return os.preadv(file, [room], start) >= len(wanted)
    except OSError as error:
        if error.errno not in _NOT_SO:
            raise
        return False


def _one_by_one(content: memoryview, file: int, at: int) -> Iterator[memoryview]:
    # The piece that was just read is in the processor's cache when it is hashed.
    while count := os.preadv(file, [content[at : at + _BUFFER]], at):
        yield content[at : at + count]
        at += count


def _cached(file: int, size: int) -> bool:
    """Whether most of a file's first so many bytes are in the page cache, or nobody can tell."""
    pages = -(-size // mmap.PAGESIZE)
    there = (ctypes.c_ubyte * pages)()
    try:
        with mmap.mmap(file, size, access=mmap.ACCESS_COPY) as content:
            start = ctypes.c_char.from_buffer(content)
            failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(size), there)
            del start  # else the mapping cannot be closed
    except (AttributeError, OSError, ValueError):
        return True
    return bool(failed) or 2 * bytes(there).count(1) > pages


def _switch(file: int, *, on: bool) -> bool:
    """Turn direct access to an open file on or off; return whether it is on."""
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)
    except OSError:
        return False
    return on
