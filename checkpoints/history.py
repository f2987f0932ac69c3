"""The history of a job: one JSON row a line, appended by one writer an attempt, read as one.

Where a storage can append, an attempt has one file; elsewhere it has numbered immutable
segments. A mark counts the bytes of rows over all of them alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec

from checkpoints import layout
from checkpoints.errors import AlreadyExists, FormatError, NotFound, StorageError
from checkpoints.layout import CheckpointId
from checkpoints.lineage import Lineage, read_lineage
from checkpoints.manifest import HistoryMark, spell, unspell
from checkpoints.storage import Appender, Storage

Row = dict[str, Any]

_FLUSH_AT = 256 << 10
_PIECE = 1 << 20


class HistoryWriter:
    """Appends the rows of one attempt. Rows are kept in memory until they are written.

    `append` and `mark` belong to the training thread; `flush` and `sync` may come from any.
    """

    def __init__(self, storage: Storage, attempt: int) -> None:
        self._storage = storage
        self._attempt = attempt
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode
        self._buffer = bytearray()
        self._buffer_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._written = 0
        self._durable = 0
        self._flush_at = _FLUSH_AT
        self._file: Appender | None = None
        self._segments = 0

    def append(self, row: Row) -> None:
        """Add a row. NaN and the infinities are written by name. Never waits for the disk's sync.

        A large buffer is written in passing; an error of that comes out at the next `flush`.
        """
        line = self._encode(row)
        if b"null" in line:  # how a float that JSON has no number for comes out
            line = self._encode(_spelled(row))
        with self._buffer_lock:
            self._buffer += line
            self._buffer += b"\n"
            full = len(self._buffer) >= self._flush_at
        if full:
            self._flush_at = len(self._buffer) + _FLUSH_AT
            if self._storage.capabilities.append:
                with suppress(StorageError):
                    self.flush()

    def mark(self) -> HistoryMark:
        """Return the place after the last row."""
        with self._buffer_lock:
            return HistoryMark(self._attempt, self._written + len(self._buffer))

    def flush(self) -> None:
        """Make all rows visible to readers. Where a store cannot append, `sync` does that.

        Raises `StorageFull`, `StorageError`; the rows are kept and written by the next call.
        """
        capabilities = self._storage.capabilities
        if capabilities.append or capabilities.in_process:
            with self._write_lock:
                self._write()

    def sync(self, mark: HistoryMark | None = None) -> None:
        """Make the rows up to `mark` (None: all) durable. Raises as `flush`."""
        wanted = (mark or self.mark()).mark
        if wanted <= self._durable:
            return
        with self._write_lock:
            self._write()
            if self._file is not None:
                written = self._written
                self._file.sync()
                self._durable = written
            else:
                self._durable = self._written

    def close(self) -> None:
        """Write what is left, durably, and close the file."""
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
        if self._storage.capabilities.append:
            if self._file is None:
                self._file = self._storage.appender(layout.history(self._attempt))
            self._file.write(data)
        else:
            self._write_segment(data)
        with self._buffer_lock:
            del self._buffer[: len(data)]
            self._written += len(data)
            self._flush_at = _FLUSH_AT

    def _write_segment(self, data: bytes) -> None:
        path = layout.history_segment(self._attempt, self._segments)
        try:
            self._storage.create(path, data)
        except AlreadyExists:
            # An earlier try of ours whose answer was lost: it holds the first of these rows.
            found = self._storage.read(path)
            if not data.startswith(found):
                raise
            with self._buffer_lock:
                del self._buffer[: len(found)]
                self._written += len(found)
            self._segments += 1
            if len(found) < len(data):
                self._write()
            return
        self._segments += 1


class HistoryReader:
    """Reads a job's history: each step once, over any number of attempts, by the lineage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def rows(self) -> Iterator[Row]:
        """Give every row, oldest first. An unfinished last line is left out.

        Raises `FormatError`, naming attempt and byte, for damage anywhere else.
        """
        line = self._lineage()
        for attempt, mark in line.history_parts():
            for row, _ in self._part(attempt, 0, mark):
                yield row

    def tail(self, n: int) -> list[Row]:
        """Return the last `n` rows, oldest first, without reading all of them."""
        found: list[Row] = []
        for attempt, mark in reversed(self._lineage().history_parts()):
            if len(found) >= n:
                break
            found = self._part_tail(attempt, mark, n - len(found)) + found
        return found[-n:] if n > 0 else []

    def follow(self, poll: float = 0.5, stop: Callable[[], bool] | None = None) -> Iterator[Row]:
        """Give every row, then new ones as they come, until `stop()` is true.

        poll: seconds between looks. When an attempt takes over from a place that was shown
        already, its repeated steps are not shown again.
        """
        done: dict[int, int] = {}
        shown: tuple[int, int, int] = (-1, -1, -1)
        while True:
            stopping = stop is not None and stop()
            line = self._lineage()
            for attempt, mark in line.history_parts():
                start = done.get(attempt, 0)
                if mark is not None and start > mark:
                    continue
                for row, end in self._part(attempt, start, mark):
                    done[attempt] = end
                    place = _place(row)
                    if place > shown:
                        shown = place
                        yield row
            if stopping:
                return
            time.sleep(poll)

    def restarts(self) -> list[tuple[int, int, int]]:
        """Return (attempt, phase, step) of each attempt that took over, oldest first."""
        found = []
        for origin in reversed(self._lineage().line):
            source = CheckpointId.parse(origin.checkpoint) if origin.checkpoint else None
            if source is not None:
                found.append((origin.attempt, source.phase, source.step))
        return found

    def _lineage(self) -> Lineage:
        line, damaged = read_lineage(self._storage)
        if line.missing is not None:
            path = layout.origin(line.missing)
            reason = next((e.fields["reason"] for e in damaged if e.fields["path"] == path), None)
            raise FormatError(path=path, reason=reason or "it is missing")
        return line

    def _part(self, attempt: int, start: int, mark: int | None) -> Iterator[tuple[Row, int]]:
        """Give an attempt's rows from byte `start` to `mark`, each with the byte after it."""
        rest = b""
        at = start
        for piece in self._pieces(attempt, start, mark):
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            for text in lines:
                yield _decode(text, attempt, at), at + len(text) + 1
                at += len(text) + 1
        if mark is not None and at != mark:
            reason = f"the history of attempt {attempt} ends at byte {at}, {mark} were committed"
            raise FormatError(path=layout.attempt_dir(attempt), reason=reason)

    def _part_tail(self, attempt: int, mark: int | None, n: int) -> list[Row]:
        size = sum(size for _, size in self._files(attempt))
        end = size if mark is None else min(mark, size)
        start = end
        data = b""
        step = 64 << 10
        while start > 0 and data.count(b"\n") <= n:
            before = max(0, start - step)
            data = b"".join(self._pieces(attempt, before, start)) + data
            start, step = before, step * 2
        lines = data.split(b"\n")[:-1]
        first = max(len(lines) - n, 0)
        at = start + sum(len(text) + 1 for text in lines[:first])
        rows = []
        for text in lines[first:]:
            rows.append(_decode(text, attempt, at))
            at += len(text) + 1
        return rows

    def _files(self, attempt: int) -> list[tuple[str, int]]:
        """Return the paths and sizes of an attempt's history, in order."""
        names = set(self._storage.list(layout.attempt_dir(attempt)))
        whole = layout.history(attempt)
        paths = [whole] if whole.rpartition("/")[2] in names else []
        while (path := layout.history_segment(attempt, len(paths))).rpartition("/")[2] in names:
            paths.append(path)
        found = []
        for path in paths:
            with suppress(NotFound):
                found.append((path, self._storage.size(path)))
        return found

    def _pieces(self, attempt: int, start: int, end: int | None) -> Iterator[bytes]:
        base = 0
        for path, size in self._files(attempt):
            stop = size if end is None else min(size, end - base)
            at = max(0, start - base)
            while at < stop:
                piece = self._storage.read_range(path, at, min(stop, at + _PIECE))
                if not piece:
                    break
                yield piece
                at += len(piece)
            base += size


def _decode(text: bytes, attempt: int, at: int) -> Row:
    try:
        row = msgspec.json.decode(text, type=Row)
    except msgspec.MsgspecError as error:
        reason = f"the history of attempt {attempt} is damaged at byte {at}: {error}"
        raise FormatError(path=layout.attempt_dir(attempt), reason=reason) from error
    if b'NaN"' in text or b'Infinity"' in text:
        for key, value in row.items():
            if isinstance(value, dict):
                row[key] = {name: unspell(inner) for name, inner in value.items()}
            elif key not in ("kind", "name"):
                row[key] = unspell(value)
    return row


def _spelled(row: Row) -> Row:
    spelled: Row = {}
    for key, value in row.items():
        if isinstance(value, dict):
            spelled[key] = _spelled(value)
        else:
            plain = value if isinstance(value, str) or value is None else _plain_number(value)
            spelled[key] = spell(plain) if isinstance(plain, float) else plain
    return spelled


def _plain_number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _plain(value: Any) -> Any:
    """Turn a number of numpy or of a tensor into one of Python, for the encoder."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    if hasattr(value, "item"):
        return value.item()
    raise NotImplementedError(f"a {type(value).__name__} cannot be a value of a history row")


def _place(row: Row) -> tuple[int, int, int]:
    rank = {"phase": 0, "step": 1, "epoch": 2}.get(str(row.get("kind")), 1)
    return int(row.get("phase", 0)), int(row.get("step", 0)), rank
