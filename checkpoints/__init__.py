"""Checkpoints that survive: exact training state, committed atomically to any storage.

Nothing heavy is imported before it is used: the names below are loaded on demand.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoints.errors import HoldfastError
    from checkpoints.history import HistoryReader, HistoryWriter
    from checkpoints.layout import CheckpointId, Stage
    from checkpoints.manifest import FileEntry, HistoryMark, Manifest
    from checkpoints.retention import Best, Keep
    from checkpoints.snapshot import ArrayFile, Progress, Snapshot
    from checkpoints.storage import Capabilities, Storage, open_storage
    from checkpoints.store import CheckpointStore, Damage, Loaded
    from checkpoints.writer import Writer

_HOMES = {
    "HoldfastError": "errors",
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
    "HoldfastError",
    "Keep",
    "Loaded",
    "Manifest",
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
    return getattr(import_module(f"checkpoints.{home}"), name)
