"""The columns of a long history, read by several processes side by side.

Each takes a share of some megabytes at a time. What comes out is what one process would give,
block by block and bit by bit; of a share that another could not read, damage and all, the reading
is done again here.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from typing import NamedTuple

from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.history.attempt_rows import Part
from outlast_checkpoints.history.columns import ColumnReader, Columns
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

SHARE = 16 << 20
WORTH = 4 * SHARE  # bytes from which on starting processes takes less time than they save
_AHEAD = 2  # shares for each process that are read, or wait to be, before they are asked for

Attempts = Sequence[tuple[int, int | None]]
_Reading = Future[list[Columns] | None]


class Share(NamedTuple):
    """The rows of an attempt's history from byte `start` to `stop`; None: all there are."""

    attempt: int
    start: int
    stop: int | None


def worth(storage: Storage, attempts: Attempts) -> bool:
    """Return whether the history is local and long."""
    if not storage.capabilities.local:
        return False
    return sum(Part(storage, *attempt).size() for attempt in attempts) >= WORTH


def columns(storage: Storage, attempts: Attempts, processes: int) -> Iterator[Columns]:
    """Give the columns of attempts (number, and mark of its history), read by `processes`."""
    shares = (
        Share(attempt, start, stop)
        for attempt, mark in attempts
        for start, stop in Part(storage, attempt, mark).shares(SHARE)
    )
    # Not by fork: this process may have threads.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _leave_interrupts_to_parent)
    waiting: deque[tuple[Share, _Reading | None]] = deque()
    try:
        for share in shares:
            waiting.append((share, _begun(pool, storage, share)))
            if len(waiting) > _AHEAD * processes:
                yield from _result(storage, *waiting.popleft())
        while waiting:
            yield from _result(storage, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _begun(pool: ProcessPoolExecutor, storage: Storage, share: Share) -> _Reading | None:
    try:
        return pool.submit(_read, storage.root, share)
    except BrokenProcessPool:
        return None


def _result(storage: Storage, share: Share, reading: _Reading | None) -> Iterator[Columns]:
    found = None
    with suppress(BrokenProcessPool):  # one of them was killed, as for memory
        found = None if reading is None else reading.result()
    if found is None:
        yield from Part(storage, share.attempt, share.stop).columns(share.start)
    else:
        yield from found


# --- in the other processes ----------------------------------------------------------------------


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read(root: str, share: Share) -> list[Columns] | None:
    """Return a share's columns; None when it cannot be read."""
    try:
        part = Part(open_storage(root), share.attempt, share.stop)
        return list(part.columns(share.start, _reader()))
    except OutlastError:
        return None


@cache
def _reader() -> ColumnReader:
    """Return this process' reader, which learns the metrics once."""
    return ColumnReader()
