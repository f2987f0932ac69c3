"""Storages: local folders, and all other URLs through fsspec.

An implementation is imported when the first storage of its kind is opened, so that importing this
package stays light.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlast_checkpoints.storage.address import is_url, normal

if TYPE_CHECKING:
    from outlast_checkpoints.storage.base import Storage

__all__ = ["open_storage"]


def open_storage(url: str | os.PathLike[str], **options: Any) -> Storage:
    """Open a folder or a URL as a storage.

    Nothing is created until the first file is written. If $OUTLAST_KEY_FILE names a key file, the
    documents of jobs are signed and verified with its keys.

    Example:

        open_storage("outlast-jobs/digits")
        open_storage("s3://bucket/jobs/digits")

    Args:
        url: A folder (`runs/a`, `file:///…`) or any URL that fsspec supports (`s3://…`, `gs://…`,
            `az://…`, `https://…`, `memory://…`). It is brought into its normal form (`address`).
        **options: Passed to fsspec's file system.

    Returns:
        The storage whose root is `url`.

    Raises:
        UsageError: The URL is empty, unknown or carries credentials, or its package is not
            installed, or the key file is not usable.
    """
    storage = _plain(normal(os.fspath(url)), options)
    if not os.environ.get("OUTLAST_KEY_FILE"):
        return storage
    from outlast_checkpoints.storage.key_file import configured
    from outlast_checkpoints.storage.signed import SignedStorage

    keys = configured()
    return storage if keys is None else SignedStorage(storage, keys)


def _plain(address: str, options: dict[str, Any]) -> Storage:
    if not is_url(address):
        from outlast_checkpoints.storage.local import LocalStorage

        return LocalStorage(Path(address))
    from outlast_checkpoints.storage.remote import FsspecStorage

    return FsspecStorage.open(address, options)
