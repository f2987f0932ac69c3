"""The structured log: JSON lines in the job's folder, merged and rendered for people.

Each attempt has two log files, its own (`log.jsonl`) and that of its supervisor
(`supervisor.jsonl`), with one writer each. On a store that cannot append, they are numbered
segments (`log-00000000.jsonl`).
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, Final

import structlog
from structlog.typing import FilteringBoundLogger

from outlast.job.heartbeat import Status
from outlast_checkpoints.errors import NotFound, StorageError, UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.printable import printable
from outlast_checkpoints.redaction import redact, redactor
from outlast_checkpoints.storage.base import Appender, Storage

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_WAITING: Final = 1 << 20  # bytes of lines that wait for a full disk
_PENDING: Final = 8 << 20  # bytes of lines that wait for a store
_FIRST: Final = ("time", "level", "event", "job", "attempt", "phase", "step")
_SEGMENT: Final = re.compile(r"(?P<stem>log|supervisor)(?:-(?P<index>\d{8}))?\.jsonl")

Row = dict[str, Any]


class LogFile:
    """Writes one log file. Lines that cannot be written now are written with later ones.

    At most 1 MiB waits (8 MiB on a store that cannot append). Further lines are dropped, and
    `lost` counts them.

    Args:
        storage: Storage of the job.
        path: Path of the log file.
        echo: Called with each row too, for a terminal.
    """

    def __init__(
        self, storage: Storage, path: str, *, echo: Callable[[Row], None] | None = None
    ) -> None:
        self._storage = storage
        self._path = path
        self._echo = echo
        self._lock = threading.Lock()
        self._appender: Appender | None = None
        self._flushing = threading.Lock()
        self._pending = bytearray()
        self._waiting = b""
        self._segment = 0
        self.lost = 0

    def write(self, row: Row) -> None:
        """Add a row. On a store that cannot append, it is published by the next `flush`."""
        line = json.dumps(row, default=_words, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if self._storage.capabilities.append:
                self._append(line)
            elif len(self._pending) + len(line) <= _PENDING:
                self._pending += line
            else:
                self.lost += 1
        if self._echo is not None:
            self._echo(row)

    def flush(self) -> None:
        """Publish the rows that wait, on a store that cannot append."""
        # A writer of a line never waits for the store.
        with self._flushing, suppress(StorageError):  # the next flush retries
            while self._publish():
                pass

    def _publish(self) -> bool:
        """Write the waiting rows as a segment; return whether more are left."""
        with self._lock:
            lines = bytes(self._pending)
        if not lines:
            return False
        path = PurePosixPath(self._path)
        name = str(path.with_name(f"{path.stem}-{self._segment:08d}.jsonl"))
        there = lines
        try:
            self._storage.create(name, lines)
        except FileExistsError:
            there = self._storage.read(name)
        self._segment += 1
        if lines.startswith(there):  # otherwise an earlier process wrote it
            with self._lock:
                del self._pending[: len(there)]
        return there != lines

    def close(self) -> None:
        """Write what waits, and close the file."""
        self.flush()
        with self._lock:
            if self._waiting:
                self._append(b"")
            if self._appender is not None:
                self._appender.close()
                self._appender = None

    def _append(self, line: bytes) -> None:
        if len(self._waiting) + len(line) <= _WAITING:
            self._waiting += line
        else:
            self.lost += 1
        with suppress(StorageError):
            if self._appender is None:
                self._appender = self._storage.appender(self._path)
                if self._torn(self._appender.size):
                    self._waiting = b"\n" + self._waiting
            self._appender.write(self._waiting)
            self._waiting = b""

    def _torn(self, size: int) -> bool:
        return size > 0 and self._storage.read_range(self._path, size - 1, size) != b"\n"


def make_logger(
    file: LogFile, *, status: Status | None = None, level: str = "debug", **bound: Any
) -> FilteringBoundLogger:
    """Return a structlog logger that writes to `file`.

    Args:
        file: The log file.
        status: Source of the phase and step of each row.
        level: Lowest level that is logged.
        bound: Fields of every row.
    """

    def finish(logger: Any, method: str, row: MutableMapping[str, Any]) -> Any:
        if status is not None and status.phase is not None:
            row.setdefault("phase", status.phase)
            row.setdefault("step", status.step)
        row["time"] = time.time()
        row["level"] = "error" if method == "exception" else method
        ordered = {name: row.pop(name) for name in _FIRST if name in row}
        file.write(_plain({**ordered, **row}, redactor()))
        raise structlog.DropEvent

    logger: FilteringBoundLogger = structlog.wrap_logger(
        None,
        processors=[structlog.processors.format_exc_info, finish],
        wrapper_class=structlog.make_filtering_bound_logger(level_number(level)),
        context_class=dict,
        cache_logger_on_first_use=False,
        **bound,
    )
    return logger


def silent_logger() -> FilteringBoundLogger:
    """Return a logger that discards everything, for the time before there is a log."""

    def drop(logger: Any, method: str, row: MutableMapping[str, Any]) -> Any:
        raise structlog.DropEvent

    logger: FilteringBoundLogger = structlog.wrap_logger(None, processors=[drop])
    return logger


def level_number(level: str) -> int:
    """Return the rank of a level. Raises `UsageError` for an unknown one."""
    try:
        return LEVELS[level.lower()]
    except KeyError:
        raise UsageError(
            field="level", problem=f"unknown level {level!r}", hint=f"Use {', '.join(LEVELS)}."
        ) from None


def _words(value: Any) -> str:
    return redact(str(value))


def _plain(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, hide) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, hide) for item in value]
    return value


class LogTail:
    """Reads the new complete lines of one log, over all its segments."""

    def __init__(self, storage: Storage, attempt: int, stem: str) -> None:
        self._storage = storage
        self._folder = layout.attempt_dir(attempt)
        self._stem = stem
        self._offsets: dict[str, int] = {}

    def read(self) -> list[Row]:
        """Return the new rows. Invalid lines are skipped; an incomplete last line waits."""
        rows: list[Row] = []
        for name in self._names():
            path = f"{self._folder}/{name}"
            offset = self._offsets.get(name, 0)
            if offset and name != f"{self._stem}.jsonl":
                continue  # a segment never changes
            try:
                data = self._storage.read_range(path, offset, None)
            except NotFound:
                continue
            end = data.rfind(b"\n") + 1
            self._offsets[name] = offset + end
            rows.extend(filter(None, map(_row, data[:end].splitlines())))
        return rows

    def _names(self) -> list[str]:
        # Look for both kinds of files: the job may be a copy from another kind of storage.
        matches = map(_SEGMENT.fullmatch, self._storage.list(self._folder))
        return [match[0] for match in matches if match and match["stem"] == self._stem]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and "event" in row else None


def attempts(storage: Storage) -> list[int]:
    """Return the numbers of all attempts with a folder, oldest first."""
    found = map(layout.parse_attempt, storage.list(layout.ATTEMPTS))
    return sorted(number for number in found if number is not None)


def read(storage: Storage, *, attempt: int | None = None, level: str = "debug") -> Iterator[Row]:
    """Yield the rows of all attempts (or of one), at least of `level`, oldest first."""
    least = level_number(level)
    for number in attempts(storage) if attempt is None else [attempt]:
        rows = [row for tail in _tails(storage, number) for row in tail.read()]
        yield from _wanted(rows, least)


def follow(
    storage: Storage,
    *,
    attempt: int | None = None,
    level: str = "debug",
    poll: float = 0.5,
    stop: Callable[[], bool] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Row]:
    """Yield rows as `read` does, then new rows as they arrive, also of new attempts.

    Args:
        storage: Storage of the job.
        attempt: Number of the attempt to read; None for all.
        level: Lowest level to yield.
        poll: Seconds between two looks.
        stop: Called before each look. When it returns True, that look is the last.
        sleep: Waits between two looks.
    """
    least = level_number(level)
    tails: dict[int, list[LogTail]] = {}
    last = False
    while True:
        last = stop is not None and stop()
        known = attempts(storage) if attempt is None else [attempt]
        for number in known:
            # attempts before the newest two have no writer any more
            if number not in tails:
                tails[number] = _tails(storage, number)
            elif number < known[-1] - 1:
                continue
            rows = [row for tail in tails[number] for row in tail.read()]
            yield from _wanted(rows, least)
        if last:
            return
        sleep(poll)


def _tails(storage: Storage, attempt: int) -> list[LogTail]:
    return [LogTail(storage, attempt, stem) for stem in ("supervisor", "log")]


def _wanted(rows: list[Row], least: int) -> list[Row]:
    kept = [row for row in rows if LEVELS.get(str(row.get("level")), 20) >= least]
    return sorted(kept, key=_time)


def _time(row: Row) -> float:
    """Return the unix seconds of a row; 0 if it has no valid time."""
    value = row.get("time")
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e11 else 0.0


_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}


def render(row: Row, *, colour: bool = False) -> str:
    """Return a row as one line for people, followed by the traceback of an exception."""
    rest = {name: value for name, value in row.items() if name not in _FIRST}
    exception = rest.pop("exception", None)
    level = str(row.get("level", "info"))
    shown = printable(f"{level:<7}")
    if colour:
        shown = f"\x1b[{_COLOURS.get(level, '0')}m{shown}\x1b[0m"
    clock = time.strftime("%H:%M:%S", time.localtime(_time(row)))
    place = f"[{row.get('attempt', '-')}]"
    if row.get("phase") is not None:
        place += f" {row['phase']}:{row.get('step', 0)}"
    details = "".join(f" {name}={_shown(value)}" for name, value in rest.items())
    line = f"{clock} {shown} " + printable(f"{place} {row.get('event', '')}{details}")
    return line + "\n" + printable(str(exception), keep="\n\t") if exception else line


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[\s=\"]", text) else text
