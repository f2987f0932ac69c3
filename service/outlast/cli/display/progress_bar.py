"""A bar of bytes on a terminal, and nothing elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A `Meter` that shows itself on stderr while it is entered, where that is a terminal.

    label: what is going on.
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
        """Make the bar longer by so many bytes."""
        self._total += count
        if self._progress is not None:
            self._progress.update(self._task, total=self._total)

    def done(self, count: int) -> None:
        """Fill the bar by so many bytes."""
        if self._progress is not None:
            self._progress.advance(self._task, count)
