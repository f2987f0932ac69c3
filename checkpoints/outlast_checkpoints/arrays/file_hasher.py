"""The hashes of a file, computed while it is written or read.

xxh3 finds accidents and costs next to nothing. SHA-256 is what a key can authenticate. It is slower
than a disk, so it runs on a second thread; hashlib releases Python's lock meanwhile.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import Final, NamedTuple

import xxhash

_WAITING: Final = 16  # pieces that wait for the second thread: they hold memory
_LARGE: Final = 1 << 20  # bytes; smaller pieces are hashed at once

Piece = bytes | bytearray | memoryview


class Hashes(NamedTuple):
    """The hashes of a file, as manifests write them."""

    hash: str
    """"xxh3:" and 32 hex digits."""
    sha256: str | None = None
    """64 hex digits; None if it was not wanted."""


class FileHasher:
    """Hashes the pieces of a file in order. Call `end` after the last, also after an error.

    Args:
        sha256: Whether SHA-256 is wanted.
        reused: Whether the memory of a piece may change after `update`. Then SHA-256 is computed at
            once. Default False.
    """

    def __init__(self, *, sha256: bool, reused: bool = False) -> None:
        self._xxh3 = xxhash.xxh3_128()
        self._sha256 = hashlib.sha256() if sha256 else None
        self._reused = reused
        self._pieces: queue.Queue[Piece | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def update(self, piece: Piece) -> None:
        """Add the next piece."""
        self._xxh3.update(piece)
        if self._sha256 is None:
            return
        if self._thread is None and (self._reused or len(piece) < _LARGE or not self._start()):
            self._sha256.update(piece)
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
        strong = None if self._sha256 is None else self._sha256.hexdigest()
        return Hashes(self.xxh3, strong)

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name="outlast-sha256", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        assert self._sha256 is not None
        while (piece := self._pieces.get()) is not None:
            try:
                self._sha256.update(piece)
            except Exception as error:  # noqa: BLE001  (raised by `end`; the queue must not fill up)
                self._error = error
            del piece  # it may keep a large array


def hashes_of(data: bytes, *, sha256: bool) -> Hashes:
    """Return the hashes of a file's content."""
    hasher = FileHasher(sha256=sha256, reused=True)
    hasher.update(data)
    return hasher.end()
