"""Storage: local folders, and every other URL through fsspec.

The implementations are imported when the first storage of their kind is opened, so that importing
this package stays light.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast_checkpoints.errors import UsageError

if TYPE_CHECKING:
    from outlast_checkpoints.storage.base import Storage

__all__ = ["open_storage"]


def open_storage(url: str | os.PathLike[str], **options: Any) -> Storage:
    """Open a folder (`runs/a`, `file:///…`) or any URL that fsspec knows (`memory://…`).

    options: passed to fsspec's file system. Raises `UsageError` for a URL nobody knows.
    """
    text = os.fspath(url)
    if not text:
        raise UsageError(field="storage", problem="the folder is empty", hint="Name a folder.")
    scheme, separator, rest = text.partition("://")
    if separator and scheme in ("file", "local"):
        text, separator = rest, ""
    if not separator:
        from outlast_checkpoints.storage.local import LocalStorage

        return LocalStorage(Path(text))
    from outlast_checkpoints.storage.remote import FsspecStorage

    return FsspecStorage.open(text, options)
