"""The history rows of one attempt, read forwards in blocks, backwards, and by seeking.

They are one file where the storage can append, and numbered segments elsewhere. Byte positions
count across all segments.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from outlast_checkpoints.errors import NotAuthentic, NotFound
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.manifest import HistoryMark
from outlast_checkpoints.history import row as rows
from outlast_checkpoints.history.row import Row
from outlast_checkpoints.storage.base import Storage

if TYPE_CHECKING:
    from outlast_checkpoints.history.columns import Columns

_PIECE = 1 << 20
_BLOCK = 64 << 10
_LINE = 4 << 10  # bytes; usually enough for one row


class AttemptRows:
    """The rows of one attempt up to byte `mark`, or all current rows if it is None.

    An unfinished last line is left out. All reads raise `FormatError`, naming the byte, for damage
    anywhere else and if the file ends before `mark`.
    """

    def __init__(self, storage: Storage, attempt: int, mark: int | None) -> None:
        self._storage = storage
        self._attempt = attempt
        self._mark = mark

    def lines(self) -> Iterator[bytes]:
        """Yield the rows as they are stored, block by block."""
        for lines, _ in self._lines(0):
            yield lines

    def rows(self, kind: str | None = None) -> Iterator[Row]:
        """Yield the rows, or those of one kind."""
        for some, _ in self.blocks(kind=kind):
            yield from some

    def blocks(
        self, start: int = 0, kind: str | None = None
    ) -> Iterator[tuple[Iterator[Row], int]]:
        """Yield the rows from byte `start` on in blocks, each with the byte after it."""
        for lines, at in self._lines(start):
            yield self._rows_of(lines, at, kind), at + len(lines)

    def _rows_of(self, lines: bytes, at: int, kind: str | None) -> Iterator[Row]:
        kinds = None if kind is None else rows.kinds(lines)
        if kinds is not None and kind not in kinds:
            return
        for index, text in enumerate(lines.split(b"\n")[:-1]):
            if kinds is None or kinds[index] == kind:
                row = rows.decode(text, self._attempt, at)
                if kind is None or row.get("kind") == kind:
                    yield row
            at += len(text) + 1

    def columns(self) -> Iterator[Columns]:
        """Yield the numbers of all rows, block by block."""
        from outlast_checkpoints.history.columns import ColumnReader

        reader = ColumnReader()
        for lines, at in self._lines(0):
            yield from reader.read(lines, self._attempt, at)

    def verify(self, mark: HistoryMark) -> None:
        """Compare the rows before a mark with its hash. Raises `NotAuthentic`, `FormatError`."""
        if self.sha256() != mark.sha256:
            path = layout.history(self._attempt)
            reason = f"its first {mark.mark} bytes are not those that a checkpoint counted"
            raise NotAuthentic(path=path, reason=reason)

    def sha256(self) -> str:
        """Return SHA-256 of all bytes before the mark. Raises `FormatError` if some are missing."""
        hasher = hashlib.sha256()
        size = 0
        for piece in self._pieces(0, self._mark):
            hasher.update(piece)
            size += len(piece)
        if self._mark is not None and size != self._mark:
            raise self._too_short(size)
        return hasher.hexdigest()

    def backwards(self, kind: str | None = None) -> Iterator[Row]:
        """Yield the rows, newest first, reading no more than needed."""
        mention = b"" if kind is None else rows.mention(kind)
        end, size, leap = self._end(), _BLOCK, _BLOCK
        while end > 0:
            lines = self._lines_before(end, size)
            start, size = end - len(lines), min(2 * size, _PIECE)
            if mention in lines:
                for text in reversed(lines.split(b"\n")[:-1]):
                    end -= len(text) + 1
                    if mention in text:
                        row = rows.decode(text, self._attempt, end)
                        if kind is None or row.get("kind") == kind:
                            yield row
            elif kind == "epoch":
                # Only steps: a long epoch. The previous epoch's row comes before all of them.
                begin = self._begin_of_epoch(start, leap)
                start, size, leap = begin, _BLOCK, max(_BLOCK, start - begin)
            end = start

    def _begin_of_epoch(self, start: int, leap: int) -> int:
        """Return the byte of a row near the beginning of the epoch that `start` is in.

        Epochs never decrease, so it is found by seeking. leap: how many bytes before `start` to
        look first; epochs are often equally long.
        """
        high, row = self._row_from(start)
        wanted = rows.epoch(row)
        low = 0
        reach = _BLOCK
        while high > 0:
            at, row = self._row_from(max(0, high - leap))
            found = rows.epoch(row)
            if wanted is None or found is None:
                return high  # unknown: continue row by row
            if found < wanted:
                low = at
                break
            high, leap, reach = min(at, high), reach, 2 * reach
        while high - low > _BLOCK:  # then by bisection
            at, row = self._row_from((low + high) // 2)
            found = rows.epoch(row)
            if found is None or wanted is None or at >= high:
                break
            if found < wanted:
                low = at
            else:
                high = at
        return high

    def _row_from(self, place: int) -> tuple[int, Row]:
        """Return the first row that begins at byte `place` or later, with its byte."""
        begin = max(0, place - 1)  # a row begins after a newline
        size = _LINE
        while True:
            data = self._read(begin, begin + size)
            first = data.find(b"\n") + 1 if place else 0
            end = data.find(b"\n", first)
            if end >= 0 and (first or not place):
                return begin + first, rows.decode(data[first:end], self._attempt, begin + first)
            if len(data) < size:
                raise rows.damaged(self._attempt, f"no row begins after byte {place}")
            size *= 4

    def _lines_before(self, end: int, size: int) -> bytes:
        """Return about `size` bytes of whole lines, at least one, before byte `end`."""
        while True:
            begin = max(0, end - size)
            data = self._read(begin, end)
            if not data.endswith(b"\n"):
                raise rows.damaged(self._attempt, f"no row ends at byte {end}")
            whole = data.find(b"\n", 0, -1) + 1 if begin else 0
            if whole or not begin:
                return data[whole:]
            size *= 2

    def _end(self) -> int:
        """Return the byte after the last whole line."""
        size = sum(size for _, size in self.files)
        if self._mark is not None:
            if size < self._mark:
                raise self._too_short(size)
            return self._mark
        end = size
        while end > 0:
            begin = max(0, end - _BLOCK)
            last = self._read(begin, end).rfind(b"\n") + 1
            if last:
                return begin + last
            end = begin
        return 0

    def _lines(self, start: int) -> Iterator[tuple[bytes, int]]:
        """Yield the whole lines from byte `start` on, each block with its first byte."""
        rest = b""
        at = start
        for piece in self._pieces(start, self._mark):
            data = rest + piece
            whole = data.rfind(b"\n") + 1
            if whole:
                yield data[:whole], at
            rest = data[whole:]
            at += whole
        if self._mark is not None and at != self._mark:
            raise self._too_short(at)

    def _too_short(self, end: int) -> Exception:
        reason = f"it ends at byte {end}, but {self._mark} bytes were committed"
        return rows.damaged(self._attempt, reason)

    def _read(self, start: int, end: int) -> bytes:
        return b"".join(self._pieces(start, end))

    def _pieces(self, start: int, end: int | None) -> Iterator[bytes]:
        base = 0
        for path, size in self.files:
            stop = size if end is None else min(size, end - base)
            at = max(0, start - base)
            while at < stop:
                piece = self._storage.read_range(path, at, min(stop, at + _PIECE))
                if not piece:
                    break
                yield piece
                at += len(piece)
            base += size

    @functools.cached_property
    def files(self) -> list[tuple[str, int]]:
        """The paths and sizes of the files, in order."""
        folder = layout.attempt_dir(self._attempt)
        names = {f"{folder}/{name}" for name in self._storage.list(folder)}
        whole = layout.history(self._attempt)
        paths = [whole] if whole in names else []
        while (path := layout.history_segment(self._attempt, len(paths))) in names:
            paths.append(path)
        found = []
        for path in paths:
            with suppress(NotFound):
                found.append((path, self._storage.size(path)))
        return found
