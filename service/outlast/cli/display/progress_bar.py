"""A progress bar of bytes; shown on terminals only."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A `Meter` that is shown on stderr, if that is a terminal, while its context is open.

    Args:
        label: What is in progress.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._total = 0
        self._progress: Progress | None = None
        self._task: TaskID

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._progress.add_task(self._label, total=None)
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def expect(self, count: int) -> None:
        """Add `count` bytes to the total."""
        self._total += count
        if self._progress is not None:
            self._progress.update(self._task, total=self._total)

    def done(self, count: int) -> None:
        """Advance the bar by `count` bytes."""
        if self._progress is not None:
            self._progress.advance(self._task, count)
