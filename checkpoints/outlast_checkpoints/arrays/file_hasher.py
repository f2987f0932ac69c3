"""The hashes of a file, computed while it is written or read.

xxh3 finds accidents and costs next to nothing. A second hash, a MAC or SHA-256, authenticates the
file. It runs on another thread while the disk works: it releases Python's lock.
"""

from __future__ import annotations

import queue
import threading
from typing import Any, Final, NamedTuple, Protocol

import xxhash

_WAITING: Final = 16  # pieces that wait for the second thread: they hold memory
_LARGE: Final = 1 << 20  # bytes; smaller pieces are hashed at once

Piece = bytes | bytearray | memoryview


class Hashes(NamedTuple):
    """The hashes of a file, as manifests write them."""

    hash: str
    """"xxh3:" and 32 hex digits."""
    strong: str | None = None
    """The MAC or SHA-256; None if it was not wanted."""


class Strong(Protocol):
    """A hash that authenticates: a `FileMac`, or SHA-256 of hashlib."""

    def update(self, piece: Piece, /) -> Any: ...

    def hexdigest(self) -> str: ...


class FileHasher:
    """Hashes the pieces of a file in order. Call `end` after the last, also after an error.

    Args:
        strong: The second hash. None (default) if it is not wanted.
        reused: Whether the memory of a piece may change after `update`. Then the second hash is
            computed at once. Default False.
    """

    def __init__(self, strong: Strong | None = None, *, reused: bool = False) -> None:
        self._xxh3 = xxhash.xxh3_128()
        self._strong = strong
        self._reused = reused
        self._pieces: queue.Queue[Piece | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def update(self, piece: Piece) -> None:
        """Add the next piece."""
        self._xxh3.update(piece)
        if self._strong is None:
            return
        if self._thread is None and (self._reused or len(piece) < _LARGE or not self._start()):
            self._strong.update(piece)
        else:
            self._pieces.put(piece)

    @property
    def xxh3(self) -> str:
        """The hash of the pieces so far: "xxh3:" and 32 hex digits."""
        return f"xxh3:{self._xxh3.hexdigest()}"

    def end(self) -> Hashes:
        """Return the hashes of all pieces together."""
        if self._thread is not None:
            self._pieces.put(None)
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        strong = None if self._strong is None else self._strong.hexdigest()
        return Hashes(self.xxh3, strong)

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="outlast-mac", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        assert self._strong is not None
        while (piece := self._pieces.get()) is not None:
            try:
                self._strong.update(piece)
            except Exception as error:  # noqa: BLE001  (raised by `end`; the queue must not fill up)
                self._error = error
            del piece  # it may keep a large array


def hashes_of(data: bytes, strong: Strong | None = None) -> Hashes:
    """Return the hashes of a file's content."""
    hasher = FileHasher(strong, reused=True)
    hasher.update(data)
    return hasher.end()
