"""The files of Keras' callbacks in an audit: they go to the audit's folder, not over the job's own.

A CSVLogger continues a copy of its file, because the size of that file is part of the state.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from keras.callbacks import (
    BackupAndRestore,
    CSVLogger,
    ModelCheckpoint,
    RemoteMonitor,
    TensorBoard,
)

# The attribute that names the file or folder, by class. Other attributes may begin with its value.
_ATTRIBUTES: Final = (
    (CSVLogger, "filename"),
    (ModelCheckpoint, "filepath"),
    (BackupAndRestore, "backup_dir"),
    (TensorBoard, "log_dir"),
)


def redirect(callbacks: Iterable[Any], folder: Path) -> None:
    """Let the callbacks write below `folder`, and keep a RemoteMonitor from sending anything.

    Call it before Keras gives them the model.
    """
    for callback in callbacks:
        if isinstance(callback, RemoteMonitor):
            callback.on_epoch_end = _send_nothing
        for kind, attribute in _ATTRIBUTES:
            if isinstance(callback, kind):
                _move(callback, attribute, folder)


def _move(callback: Any, attribute: str, folder: Path) -> None:
    before = str(getattr(callback, attribute))
    after = str(folder / before.replace("://", "/").lstrip("/"))
    Path(after).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(callback, CSVLogger) and Path(before).is_file():
        shutil.copyfile(before, after)
    for name, value in vars(callback).items():
        if isinstance(value, str) and value.startswith(before):
            setattr(callback, name, after + value[len(before) :])


def _send_nothing(epoch: int, logs: Any = None) -> None:
    """Stand in for RemoteMonitor's `on_epoch_end`."""
