"""SQLite databases, read and written whole while the script has them open.

A copy of the file alone could lack what is in its log, and a connection would not notice that the
file was replaced. SQLite's own functions respect locks, logs and the caches of other connections.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

_MAGIC: Final = b"SQLite format 3\0"
_SIDE_FILES: Final = ("-wal", "-shm", "-journal")
_VERSIONS: Final = slice(18, 20)  # of the header: 2 with a write-ahead log, 1 without


def is_database(path: Path) -> bool:
    """Return whether this file is an SQLite database."""
    with path.open("rb") as file:
        return is_content(file.read(len(_MAGIC)))


def is_content(content: bytes) -> bool:
    """Return whether this is the content of an SQLite database."""
    return content.startswith(_MAGIC)


def side_files(path: Path) -> list[Path]:
    """Return where SQLite keeps the logs of a database; they need not exist."""
    return [path.with_name(path.name + suffix) for suffix in _SIDE_FILES]


def read(path: Path) -> bytes:
    """Return the committed content of a database. Raises `sqlite3.Error`."""
    with closing(sqlite3.connect(path)) as connection:
        content = bytearray(connection.serialize())
    content[_VERSIONS] = b"\x01\x01"  # a database in memory can have no log
    return bytes(content)


def write(path: Path, content: bytes, *, wait: float = 5.0) -> None:
    """Replace the content of a database, which others may have open.

    Args:
        path: Its file; it is created if it does not exist.
        content: What `read` returned.
        wait: Seconds to wait for the end of a transaction.

    Raises:
        sqlite3.Error: The content is damaged, or a transaction does not end.
    """
    until = time.monotonic() + wait

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status != sqlite3.SQLITE_OK and time.monotonic() > until:
            raise sqlite3.OperationalError("database is locked")

    with closing(sqlite3.connect(":memory:")) as source:
        source.deserialize(content)
        with closing(sqlite3.connect(path, timeout=0)) as target:
            source.backup(target, progress=give_up, sleep=0.02)
