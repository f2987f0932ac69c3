"""Checkpoints that survive: exact training state, committed atomically to any storage.

Nothing heavy is imported before it is used: the names below are loaded on demand.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outlast_checkpoints.errors import OutlastError
    from outlast_checkpoints.history import HistoryReader, HistoryWriter
    from outlast_checkpoints.layout import CheckpointId, Stage
    from outlast_checkpoints.manifest import FileEntry, HistoryMark, Manifest
    from outlast_checkpoints.retention import Best, Keep
    from outlast_checkpoints.snapshot import ArrayFile, Progress, Snapshot
    from outlast_checkpoints.storage import Capabilities, Storage, open_storage
    from outlast_checkpoints.store import CheckpointStore, Damage, Loaded
    from outlast_checkpoints.writer import Writer

_HOMES = {
    "OutlastError": "errors",
    "HistoryReader": "history",
    "HistoryWriter": "history",
    "CheckpointId": "layout",
    "Stage": "layout",
    "FileEntry": "manifest",
    "HistoryMark": "manifest",
    "Manifest": "manifest",
    "Best": "retention",
    "Keep": "retention",
    "ArrayFile": "snapshot",
    "Progress": "snapshot",
    "Snapshot": "snapshot",
    "Capabilities": "storage",
    "Storage": "storage",
    "open_storage": "storage",
    "CheckpointStore": "store",
    "Damage": "store",
    "Loaded": "store",
    "Writer": "writer",
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
