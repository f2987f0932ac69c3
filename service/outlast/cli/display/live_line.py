"""Shows a job on a terminal: scrolling output above one line of progress."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from outlast.cli.display import heartbeat_text, units
from outlast.cli.display.output_lines import Lines
from outlast.cli.display.terminal_observer import TerminalObserver, state, trouble
from outlast.job.lifecycle import State
from outlast_checkpoints.printable import printable

if TYPE_CHECKING:
    from outlast.job.heartbeat import Beat
    from outlast.job.lifecycle import Job

REFRESHES = 4  # a second
_BAR_WIDTH = 16
_BAR_FROM = 110  # columns of the terminal from which the bar has room


class LiveLine(TerminalObserver):
    """An observer that keeps one line of progress at the bottom of the terminal.

    The line also moves between two heartbeats; for example, a waiting job counts down.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._beat: Beat | None = None
        self._job: Job | None = None
        self._since = time.monotonic()
        self._spinner = Spinner("dots")
        self._output = Lines()
        self._lock = threading.Lock()
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def on_state(self, job: Job) -> None:
        """Show the state; print the end of an attempt above the line."""
        before, self._job = self._job, job
        self._since = time.monotonic()
        if before is None or before.attempt != job.attempt:
            self._beat = None
        if before is not None and before.in_flight and not job.in_flight:
            self._flush()
            self.say(state(job))

    def on_beat(self, beat: Beat) -> None:
        """Show the progress."""
        self.show_resumed(beat)
        self._beat = beat

    def on_output(self, data: bytes) -> None:
        """Print the complete lines of the script's output above the line."""
        for line in self._output.feed(data):
            self._print(line)

    def on_log(self, row: dict[str, Any]) -> None:
        """Print warnings and errors."""
        if text := trouble(row, colour=True):
            self._print(text)

    def say(self, text: str) -> None:
        """Print one message with the time above the line."""
        self._print(f"\x1b[2m[outlast] {time.strftime('%H:%M:%S')}\x1b[0m " + printable(text, "\n"))

    def close(self) -> None:
        """Remove the line; the text above it stays."""
        self._flush()
        self._live.stop()

    def render(self) -> RenderableType:
        """Return the current line, with as many metrics as fit."""
        beat = self._beat
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        cells: list[RenderableType] = [self._spinner]
        room = self._console.width - 2
        if beat is not None and beat.total_steps and self._console.width >= _BAR_FROM:
            grid.add_column(width=_BAR_WIDTH)
            cells.append(ProgressBar(beat.total_steps, beat.step, width=_BAR_WIDTH))
            room -= _BAR_WIDTH + 1
        grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        head = Text(self._state(), "bold")
        text = head
        for most in range(heartbeat_text.MOST_METRICS, -1, -1):
            text = (
                Text.assemble(head, f" · {printable(heartbeat_text.line(beat, most))}")
                if beat
                else head
            )
            if text.cell_len <= room:
                break
        grid.add_row(*cells, text)
        return grid

    def _state(self) -> str:
        job, beat = self._job, self._beat
        if job is None:
            return "starting"
        if job.state is State.WAITING:
            left = max(0.0, job.delay - (time.monotonic() - self._since))
            return f"attempt {job.attempt + 1} in {units.duration(left)}"
        if job.state is State.PENDING:
            return f"attempt {max(job.attempt, 1)} is starting"
        if job.state is State.STOPPING:
            return "being killed" if job.stop == "now" else "saving and stopping"
        doing = beat.activity if beat is not None and beat.phase is not None else ""
        return f"attempt {job.attempt}" + (f" {doing}" if doing not in ("", "training") else "")

    def _flush(self) -> None:
        for line in self._output.rest():
            self._print(line)

    def _print(self, line: str) -> None:
        with self._lock:
            self._console.print(Text.from_ansi(line), soft_wrap=True)
