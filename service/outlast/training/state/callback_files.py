"""Files of Keras' own callbacks over a resume: as the checkpoint counts them.

CSVLogger opens its file anew when a training begins, and would lose the rows of the epochs before;
appending, it would repeat those that a death left behind the last checkpoint. BackupAndRestore
would load its own backup, older than the checkpoint and perhaps torn by the very death.
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
    """Return how many bytes a CSVLogger's file has, None for other callbacks and no plain file."""
    if not isinstance(callback, CSVLogger):
        return None
    if callback.csv_file is not None and not callback.csv_file.closed:
        callback.csv_file.flush()
    path = Path(callback.filename)
    return path.stat().st_size if path.is_file() else None


def appends_rows(callback: Any) -> bool:
    """Whether what the callback writes before the first checkpoint would be there twice."""
    return isinstance(callback, CSVLogger) and bool(callback.append)


@contextmanager
def going_on(
    callbacks: CallbackList, written: list[tuple[Any, int | None]], log: Any
) -> Iterator[None]:
    """Let the `on_train_begin` of a resume leave what the epochs before have written.

    written: the callbacks that the checkpoint has a state of, each with its `rows_written` then.
    log: a file that has fewer rows than that is told as a warning.
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
            why="the file was changed, or the machine went down before its rows were on disk",
            instead="`outlast history --csv` has them",
        )
    if len(whole) < len(content):
        os.truncate(path, len(whole))
