"""Crash-safe checkpoints: exact training state, committed atomically to any storage.

Use it without Keras and without the supervisor. The names below are imported on first use, so that
importing this package stays light.

Example:

    from outlast_checkpoints import CheckpointStore, HistoryReader, open_storage

    job = open_storage("outlast-jobs/digits")
    manifest, damages = CheckpointStore(job).latest()
    rows = list(HistoryReader(job).rows())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast_checkpoints.errors import OutlastError
    from outlast_checkpoints.format.layout import CheckpointId, Stage
    from outlast_checkpoints.format.manifest import FileEntry, HistoryMark, Manifest
    from outlast_checkpoints.format.retention import Best, Keep
    from outlast_checkpoints.format.snapshot import ArrayFile, Progress, Snapshot
    from outlast_checkpoints.history import HistoryReader, HistoryWriter
    from outlast_checkpoints.storage import open_storage
    from outlast_checkpoints.storage.base import Capabilities, Storage
    from outlast_checkpoints.store.background_writer import Writer
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Damage, Loaded

_HOMES = {
    "OutlastError": "errors",
    "HistoryReader": "history",
    "HistoryWriter": "history",
    "CheckpointId": "format.layout",
    "Stage": "format.layout",
    "FileEntry": "format.manifest",
    "HistoryMark": "format.manifest",
    "Manifest": "format.manifest",
    "Best": "format.retention",
    "Keep": "format.retention",
    "ArrayFile": "format.snapshot",
    "Progress": "format.snapshot",
    "Snapshot": "format.snapshot",
    "Capabilities": "storage.base",
    "Storage": "storage.base",
    "open_storage": "storage",
    "CheckpointStore": "store.checkpoint_store",
    "Damage": "store.checkpoint_store",
    "Loaded": "store.checkpoint_store",
    "Writer": "store.background_writer",
}

__all__ = [
    "ArrayFile",
    "Best",
    "Capabilities",
    "CheckpointId",
    "CheckpointStore",
    "Damage",
    "FileEntry",
    "HistoryMark",
    "HistoryReader",
    "HistoryWriter",
    "Keep",
    "Loaded",
    "Manifest",
    "OutlastError",
    "Progress",
    "Snapshot",
    "Stage",
    "Storage",
    "Writer",
    "open_storage",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"outlast_checkpoints.{home}"), name)
