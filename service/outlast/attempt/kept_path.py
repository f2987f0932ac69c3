"""`KeptPath`: a file or folder of the script that is put back with a checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import xxhash

from outlast.attempt import sqlite_file

FORMAT: Final = 1
_ITSELF: Final = ""  # name of a kept file; files in a kept folder have relative names
_RECENT_NS: Final = 2_000_000_000  # a later change may leave the same time


class Content(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Content of `kept-….json`: a file or folder as the job has found it."""

    format: int = FORMAT
    """Version of the format."""
    path: str
    """The path as the script gives it."""
    exists: bool
    """Whether there was anything."""
    files: dict[str, bytes]
    """Files by their path in the folder; a kept file has the name ""."""
    folders: list[str]
    """Folders by their path in the folder."""


class Changes(NamedTuple):
    """What has changed in a file or folder since `KeptPath.begin`."""

    files: dict[str, bytes]
    """New and changed files with their content, by name."""
    gone: list[str]
    """Names of deleted files."""


class _Seen(NamedTuple):
    stat: tuple[int, int, int] | None  # None for a database
    digest: str | None  # None if the stat tells every change


class KeptPath:
    """A file or folder that is read for checkpoints and put back.

    Symbolic links in a folder are left alone. Databases of SQLite are read and written by SQLite.

    Args:
        given: The path as the script gives it.
        path: The absolute path.
    """

    def __init__(self, given: str, path: Path) -> None:
        self.given = given
        self._path = path
        self._seen: dict[str, _Seen] = {}
        self._read: dict[str, tuple[_Seen, bytes]] = {}

    def content(self) -> Content:
        """Return everything that is there."""
        folders = [
            os.path.relpath(folder, self._path)
            for folder, _, _ in os.walk(self._path)
            if Path(folder) != self._path
        ]
        files = {name: data for name, file in self._files() if (data := _read(file)) is not None}
        exists = self._path.exists()
        return Content(path=self.given, exists=exists, files=files, folders=sorted(folders))

    def rewind(self, to: Content) -> None:
        """Make it what it was: write these files, and delete all others."""
        for name, file in [*self._files()]:
            if name not in to.files:
                _delete(file)
        for folder, _, _ in os.walk(self._path, topdown=False):
            inner = os.path.relpath(folder, self._path)
            if not (to.exists and inner == ".") and inner not in to.folders:
                with suppress(OSError):  # it is not empty
                    Path(folder).rmdir()
        for inner in to.folders:
            self._place(inner).mkdir(parents=True, exist_ok=True)
        self.put_back(Changes(to.files, []))

    def begin(self) -> None:
        """Remember what is there now, for `changes`."""
        self._seen = {name: seen for name, file in self._files() if (seen := _look(file))}
        self._read.clear()

    def changes(self) -> Changes:
        """Return what has changed since `begin`."""
        changed: dict[str, bytes] = {}
        there = dict(self._files())
        for name, file in there.items():
            seen, before = _look(file), self._seen.get(name)
            if seen is None or (seen == before) or _same_content(seen, before, file):
                continue
            known = self._read.get(name)
            data = known[1] if known is not None and known[0] == seen else _read(file)
            if data is not None:
                changed[name] = data
                self._read[name] = seen, data
        return Changes(changed, sorted(self._seen.keys() - there.keys()))

    def put_back(self, changes: Changes) -> None:
        """Write and delete files as a checkpoint has them. Open files stay open."""
        for name in changes.gone:
            _delete(self._place(name))
        for name, data in changes.files.items():
            file = self._place(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            if sqlite_file.is_content(data):
                sqlite_file.write(file, data)
            else:
                _overwrite(file, data)

    def _place(self, name: str) -> Path:
        """Return where a file is. Raises `ValueError` for a name that leads elsewhere."""
        place = self._path if name == _ITSELF else self._path / name
        if name != _ITSELF and (Path(name).is_absolute() or ".." in Path(name).parts):
            raise ValueError(f"{name!r} is not in {self.given!r}")
        return place

    def _files(self) -> Iterator[tuple[str, Path]]:
        if self._path.is_file():
            yield _ITSELF, self._path
        for folder, _, names in os.walk(self._path):
            found = [Path(folder, name) for name in names]
            files = [one for one in found if one.is_file() and not one.is_symlink()]
            databases = filter(_is_database, files)
            logs = {log for one in databases for log in sqlite_file.side_files(one)}
            for one in sorted(files):
                if one not in logs:
                    yield one.relative_to(self._path).as_posix(), one


def _is_database(file: Path) -> bool:
    try:
        return sqlite_file.is_database(file)
    except OSError:
        return False


def _read(file: Path) -> bytes | None:
    """Return the content of a file, None if it has just been deleted."""
    try:
        return sqlite_file.read(file) if sqlite_file.is_database(file) else file.read_bytes()
    except FileNotFoundError:
        return None


def _look(file: Path) -> _Seen | None:
    try:
        if sqlite_file.is_database(file):
            return _Seen(None, _digest(sqlite_file.read(file)))
        found = file.stat()
        recent = time.time_ns() - found.st_mtime_ns < _RECENT_NS
        digest = _digest(file.read_bytes()) if recent else None
    except FileNotFoundError:
        return None
    return _Seen((found.st_ino, found.st_size, found.st_mtime_ns), digest)


def _same_content(now: _Seen, before: _Seen | None, file: Path) -> bool:
    """Return whether a file certainly has the content that it had before."""
    if before is None or before.digest is None:
        return before is not None and now.stat is not None and now.stat == before.stat
    if now.digest is None:
        data = _read(file)
        return data is not None and _digest(data) == before.digest
    return now.digest == before.digest


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def _overwrite(file: Path, data: bytes) -> None:
    """Write a file in place, because the script may have it open."""
    flags: Any = os.O_WRONLY | os.O_CREAT
    with os.fdopen(os.open(file, flags, 0o666), "wb", closefd=True) as opened:
        opened.truncate(0)
        opened.write(data)


def _delete(file: Path) -> None:
    logs = sqlite_file.side_files(file) if file.is_file() and _is_database(file) else []
    for one in (file, *logs):
        one.unlink(missing_ok=True)
