"""The files of Keras' callbacks over a resume, brought to their length at the checkpoint.

CSVLogger truncates its file when a training begins, and would lose the rows of earlier epochs. If
it appended, it would repeat the rows written after the last checkpoint. BackupAndRestore would load
its backup, which is older than the checkpoint and may be incomplete after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras.callbacks import BackupAndRestore, CallbackList, CSVLogger

from outlast.job.log_events import LogEvent


def rows_written(callback: Any) -> int | None:
    """Return the size of a CSVLogger's file in bytes, or None for other callbacks or no file."""
    if not isinstance(callback, CSVLogger):
        return None
    if callback.csv_file is not None and not callback.csv_file.closed:
        callback.csv_file.flush()
    path = Path(callback.filename)
    return path.stat().st_size if path.is_file() else None


def appends_rows(callback: Any) -> bool:
    """Return whether a restart before the first checkpoint would duplicate the callback's rows."""
    return isinstance(callback, CSVLogger) and bool(callback.append)


@contextmanager
def appending(
    callbacks: CallbackList, written: list[tuple[Any, int | None]], log: Any
) -> Iterator[None]:
    """Keep the rows of earlier epochs during the `on_train_begin` of a resume.

    `written` lists the callbacks with a state in the checkpoint, and their `rows_written` at the
    checkpoint. A file that is shorter now is logged as a warning.
    """
    loggers = [(c, size) for c, size in written if isinstance(c, CSVLogger)]
    given = list(callbacks.callbacks)
    append = [logger.append for logger, _ in loggers]
    try:
        for logger, size in loggers:
            if size is not None:
                _cut(Path(logger.filename), size, log)
            logger.append = True
        callbacks.callbacks[:] = [c for c in given if type(c) is not BackupAndRestore]
        yield
    finally:
        callbacks.callbacks[:] = given
        for (logger, _), before in zip(loggers, append, strict=True):
            logger.append = before


def _cut(path: Path, size: int, log: Any) -> None:
    content = path.read_bytes() if path.is_file() else b""
    whole = content[:size]
    if len(whole) < size:
        whole = whole[: whole.rfind(b"\n") + 1]
        log.warning(
            LogEvent.CSV_ROWS_LOST,
            file=str(path),
            bytes=len(whole),
            bytes_at_checkpoint=size,
            why="the file was changed, or the machine failed before its rows were on disk",
            instead="get the rows from `outlast history --csv`",
        )
    if len(whole) < len(content):
        os.truncate(path, len(whole))
