"""The history of a job: one JSON row per line, one writer per attempt, read as one sequence.

An attempt has one file where the storage can append, and numbered immutable segments elsewhere. A
mark counts bytes across all segments.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from outlast_checkpoints.errors import AlreadyExists, FormatError, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.lineage import Lineage, Origin, read_history_marks, read_lineage
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.history import row as rows
from outlast_checkpoints.history.attempt_rows import AttemptRows
from outlast_checkpoints.history.row import Row
from outlast_checkpoints.storage.base import Appender, Storage
from outlast_checkpoints.storage.documents import is_signed

if TYPE_CHECKING:
    from outlast_checkpoints.history.columns import Columns

_FLUSH_AT = 256 << 10
_UPLOAD_AT = 16 << 20


class HistoryWriter:
    """Appends the history rows of one attempt. Rows stay in memory until they are written.

    Call `append` and `mark` from the training thread only; `flush` and `sync` from any thread.

    Example:

        history = HistoryWriter(storage, attempt=1)
        history.append({"kind": "step", "phase": 0, "step": 1, "logs": {"loss": 0.5}})
        history.close()

    Args:
        storage: The job's folder.
        attempt: The attempt, from 1. It must not have written any rows yet.
    """

    def __init__(self, storage: Storage, attempt: int) -> None:
        self._storage = storage
        self._attempt = attempt
        self._can_append = storage.capabilities.append
        self._buffer = bytearray()
        self._buffer_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._written = 0
        self._durable = 0
        self._sha256 = hashlib.sha256() if is_signed(storage) else None  # of the written rows
        self._patience = _FLUSH_AT if self._can_append else _UPLOAD_AT
        self._write_at = self._patience
        self._file: Appender | None = None
        self._segments = SegmentWriter(storage, attempt)

    def append(self, row: Row) -> None:
        """Add a row. NaN and infinities are written as strings.

        A large buffer is written at once; the next `flush` raises an error of that write.

        Args:
            row: The fields by name. Numbers may be Python's, numpy scalars or tensors.
        """
        line = rows.encode(row)
        with self._buffer_lock:
            self._buffer += line
            self._buffer += b"\n"
            waiting = len(self._buffer)
        if waiting >= self._write_at:
            self._write_at = waiting + self._patience  # not at every row while the disk is full
            with suppress(StorageError), self._write_lock:
                self._write()

    def mark(self) -> HistoryMark:
        """Return the place after the last row, for `sync` and for a manifest.

        In a signed storage it has the hash of all rows before it.
        """
        with self._buffer_lock:
            digest = None
            if self._sha256 is not None:
                hasher = self._sha256.copy()
                hasher.update(self._buffer)
                digest = hasher.hexdigest()
            return HistoryMark(self._attempt, self._written + len(self._buffer), digest)

    def flush(self) -> None:
        """Make all rows visible to readers. In a bucket only `sync` does this: it is an upload.

        Raises:
            StorageFull: No space is left. The rows are kept; the next call writes them.
            StorageError: The rows could not be written. They are kept; the next call writes them.
        """
        if self._can_append or self._storage.capabilities.in_process:
            with self._write_lock:
                self._write()

    def sync(self, mark: HistoryMark | None = None) -> None:
        """Make rows durable.

        Args:
            mark: Up to which place. None (default) means all rows.

        Raises:
            StorageError: As `flush` raises it.
        """
        wanted = (mark or self.mark()).mark
        if wanted <= self._durable:
            return
        with self._write_lock:
            self._write()
            file, written = self._file, self._written
        if file is not None:
            file.sync()  # outside the lock, so that rows can be written meanwhile
        self._durable = max(self._durable, written)

    def close(self) -> None:
        """Make all rows durable and close the file. Raises as `flush` does."""
        try:
            self.sync()
        finally:
            with self._write_lock:
                if self._file is not None:
                    self._file.close()
                    self._file = None

    def _write(self) -> None:
        with self._buffer_lock:
            data = bytes(self._buffer)
        if not data:
            return
        if self._can_append:
            if self._file is None:
                self._file = self._open()
            landed = self._file.size - self._written  # bytes of a write whose answer was lost
            self._file.write(data[landed:])
            self._drop(len(data))
        else:
            while data:
                count = self._segments.write(data)
                self._drop(count)
                data = data[count:]

    def _open(self) -> Appender:
        path = layout.history(self._attempt)
        file = self._storage.appender(path)
        if file.size:
            file.close()
            raise AlreadyExists(path=path, root=self._storage.root)
        return file

    def _drop(self, count: int) -> None:
        with self._buffer_lock:
            if self._sha256 is not None:
                self._sha256.update(bytes(self._buffer[:count]))
            del self._buffer[:count]
            self._written += count
            self._write_at = self._patience


class SegmentWriter:
    """Writes an attempt's rows as numbered immutable segments, each byte exactly once.

    It can continue an attempt that another process began: call `look` first.
    size: bytes of rows written so far.
    """

    def __init__(self, storage: Storage, attempt: int) -> None:
        self._storage = storage
        self._attempt = attempt
        self._count = 0
        self.size = 0

    def look(self) -> None:
        """Look up the segments that this or an earlier process has written."""
        sizes = [size for _, size in AttemptRows(self._storage, self._attempt, None).files]
        self._count, self.size = len(sizes), sum(sizes)

    def write(self, data: bytes) -> int:
        """Write the next segment, or find it written by an earlier try; return its bytes.

        Raises `AlreadyExists` if another writer's rows are there.
        """
        path = layout.history_segment(self._attempt, self._count)
        count = len(data)
        try:
            self._storage.create(path, data)
        except AlreadyExists:
            # Our earlier try, whose answer was lost: it holds the first of these rows.
            found = self._storage.read(path)
            if not found or not data.startswith(found):
                raise
            count = len(found)
        self._count += 1
        self.size += count
        return count


class HistoryReader:
    """Reads a job's history. Each step appears once, over any number of attempts.

    With a key, `rows`, `columns` and `between` first verify what the checkpoints say of the rows.
    Rows after the newest checkpoint are not authenticated. `tail` and `follow` verify nothing.

    Example:

        for row in HistoryReader(storage).rows("epoch"):
            print(row["epoch"], row["logs"])

    Args:
        storage: The job's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._origins: dict[int, Origin] = {}

    def rows(self, kind: str | None = None) -> Iterator[Row]:
        """Yield every row, oldest first. An unfinished last line is left out.

        Args:
            kind: "phase", "step" or "epoch". None (default) means all rows.

        Yields:
            The fields of a row by name. NaN and infinities are floats again.

        Raises:
            FormatError: The history is damaged; the message names attempt and byte.
            NotAuthentic: A key is set, and rows before a checkpoint were changed.
        """
        self._verify()
        for _, part in self._parts():
            yield from part.rows(kind)

    def columns(self) -> Iterator[Columns]:
        """Yield the numbers of every row, oldest first, in blocks of one phase and kind.

        Several times as fast as `rows`.

        Yields:
            Some thousand rows at a time, as float64 arrays.

        Raises:
            FormatError: As `rows` raises it.
        """
        self._verify()
        for _, part in self._parts():
            yield from part.columns()

    def tail(self, n: int, kind: str | None = None) -> list[Row]:
        """Return the last rows, oldest first, without reading all of them.

        Args:
            n: How many rows.
            kind: "phase", "step" or "epoch". None (default) means all rows.

        Raises:
            FormatError: As `rows` raises it, for the part that is read.
        """
        parts = reversed(self._parts())
        newest_first = (row for _, part in parts for row in part.backwards(kind))
        return list(islice(newest_first, n))[::-1]

    def follow(
        self,
        poll: float = 0.5,
        stop: Callable[[], bool] | None = None,
        kind: str | None = None,
    ) -> Iterator[Row]:
        """Yield every row, then new rows as they arrive.

        If an attempt resumes from before the last yielded row, the steps that it repeats are not
        yielded again.

        Args:
            poll: Seconds between two looks for new rows. Default 0.5.
            stop: Called before each look. If it returns True, this is the last look. None
                (default) follows forever.
            kind: "phase", "step" or "epoch". None (default) means all rows.

        Raises:
            FormatError: As `rows` raises it.
        """
        done: dict[int, int] = {}
        floors: dict[int, tuple[int, int, int]] = {}
        newest = (-1, -1, -1)
        while True:
            stopping = stop is not None and stop()
            for attempt, mark in self._lineage().history_parts():
                floor = floors.setdefault(attempt, newest)
                start = done.get(attempt, 0)
                if mark is not None and start > mark:
                    continue  # yielded before the next attempt resumed from further back
                for some, end in AttemptRows(self._storage, attempt, mark).blocks(start, kind):
                    for row in some:
                        if rows.place(row) > floor:
                            newest = max(newest, rows.place(row))
                            yield row
                    done[attempt] = end
            if stopping:
                return
            time.sleep(poll)

    def between(self, first: HistoryMark, last: HistoryMark) -> Iterator[Row]:
        """Yield the rows from one mark to a later one, over the attempts between them.

        Args:
            first: The mark of a checkpoint of the lineage.
            last: The mark of a later one.

        Raises:
            FormatError: As `rows` raises it, for the part that is read.
        """
        self._verify()
        for attempt, mark in self._lineage().history_parts():
            if first.attempt <= attempt <= last.attempt:
                start = first.mark if attempt == first.attempt else 0
                end = last.mark if attempt == last.attempt else mark
                for some, _ in AttemptRows(self._storage, attempt, end).blocks(start):
                    yield from some

    def restarts(self) -> list[tuple[int, int, int]]:
        """Return (attempt, phase, step) of each resume, oldest first."""
        found = []
        for origin in reversed(self._lineage().line):
            source = CheckpointId.parse(origin.checkpoint) if origin.checkpoint else None
            if source is not None:
                found.append((origin.attempt, source.phase, source.step))
        return found

    def _verify(self) -> None:
        if not is_signed(self._storage):
            return
        for mark in read_history_marks(self._storage, self._lineage()):
            AttemptRows(self._storage, mark.attempt, mark.mark).verify(mark)

    def _lineage(self) -> Lineage:
        line, damaged = read_lineage(self._storage, self._origins)
        if line.missing is not None:
            path = layout.origin(line.missing)
            reason = next((e.fields["reason"] for e in damaged if e.fields["path"] == path), None)
            raise FormatError(path=path, reason=reason or "it is missing")
        return line

    def _parts(self) -> list[tuple[int, AttemptRows]]:
        """Return the attempts that count with their rows, oldest first."""
        parts = self._lineage().history_parts()
        return [(attempt, AttemptRows(self._storage, attempt, mark)) for attempt, mark in parts]
