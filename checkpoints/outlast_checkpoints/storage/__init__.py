"""Storages: local folders, and all other URLs through fsspec.

An implementation is imported when the first storage of its kind is opened, so that importing this
package stays light.
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
    """Open a folder or a URL as a storage.

    Nothing is created until the first file is written.

    Example:

        open_storage("outlast-jobs/digits")
        open_storage("s3://bucket/jobs/digits")

    Args:
        url: A folder (`runs/a`, `file:///…`) or any URL that fsspec supports (`s3://…`, `gs://…`,
            `az://…`, `https://…`, `memory://…`).
        **options: Passed to fsspec's file system.

    Returns:
        The storage whose root is `url`.

    Raises:
        UsageError: The URL is empty, unknown or carries credentials, or its package is not
            installed.
    """
    text = os.fspath(url)
    if not text:
        raise UsageError(
            field="storage", problem="the folder is empty", hint="Give a folder or URL."
        )
    scheme, separator, rest = text.partition("://")
    if separator and scheme in ("file", "local"):
        text, separator = rest, ""
    if not separator:
        from outlast_checkpoints.storage.local import LocalStorage

        return LocalStorage(Path(text))
    from outlast_checkpoints.storage.remote import FsspecStorage

    return FsspecStorage.open(text, options)
