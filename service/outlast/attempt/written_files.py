"""The files that the script of an audit opens for writing, so that its user learns of them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from outlast_checkpoints.errors import NotFound
from outlast_checkpoints.format.layout import WRITTEN_FILES
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document

_MOST: Final = 100
_NOBODYS: Final = ("/dev/", "/proc/", "/sys/")
_CACHES: Final = (f"{os.sep}__pycache__{os.sep}", f"{os.sep}.cache{os.sep}")
_WRITES: Final = os.O_WRONLY | os.O_RDWR


class WrittenFiles:
    """Collects the names of files that Python opens for writing, from `watch` on.

    Files below `apart` are left out, and temporary files. Libraries that write without Python, such
    as TensorFlow and HDF5, are not seen.
    """

    def __init__(self, apart: Iterable[Path]) -> None:
        temporary = Path(tempfile.gettempdir())
        self._apart = tuple(f"{os.path.realpath(path)}{os.sep}" for path in (*apart, temporary))
        self.found: dict[str, None] = {}  # in order

    def watch(self) -> None:
        """Begin to collect; this cannot be undone in a process."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or len(self.found) >= _MOST:
            return
        path, _, flags = arguments
        if not isinstance(path, str | bytes) or not isinstance(flags, int) or not flags & _WRITES:
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        if not name.startswith((*_NOBODYS, *self._apart)) and not any(c in name for c in _CACHES):
            self.found[name] = None

    def store(self, storage: Storage) -> None:
        """Write the names into the folder of the audit's job."""
        storage.replace(WRITTEN_FILES, msgspec.json.encode(list(self.found)), durable=False)


def load(storage: Storage) -> list[str]:
    """Return the names that an attempt has stored; none if it has not."""
    try:
        return msgspec.json.decode(read_document(storage, WRITTEN_FILES), type=list[str])
    except NotFound:
        return []
