"""Shows a job without a terminal: the script's output, and a line of progress at times."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from outlast.cli.display import heartbeat_text
from outlast.cli.display.terminal_observer import TerminalObserver, state, trouble
from outlast_checkpoints.printable import printable

if TYPE_CHECKING:
    from outlast.job.heartbeat import Beat
    from outlast.job.lifecycle import Job

LINE_EVERY = 10.0  # seconds between two lines of progress
CHECKPOINT_EVERY = 1.0  # least seconds between two lines about new checkpoints


class Plain(TerminalObserver):
    """An observer that writes output to stdout and messages of Outlast to stderr.

    When the reader of a stream is gone (`| head`), the stream falls silent and the training
    continues.
    """

    def __init__(
        self,
        *,
        out: BinaryIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = LINE_EVERY,
    ) -> None:
        self._out = out or sys.stdout.buffer
        self._err = err or sys.stderr
        self._clock = clock
        self._every = every
        self._line_at = clock()
        self._said = ""
        self._saved: str | None = None
        self._silent: set[Any] = set()

    def on_state(self, job: Job) -> None:
        """Print the state of the job when it has changed."""
        said = state(job)
        if said != self._said:
            self._said = said
            self.say(said)

    def on_beat(self, beat: Beat) -> None:
        """Print the progress at a new checkpoint, and every `LINE_EVERY` seconds."""
        self.show_resumed(beat)
        new = beat.last_checkpoint not in (None, self._saved, beat.restored_from)
        since = self._clock() - self._line_at
        if since >= self._every or (new and since >= CHECKPOINT_EVERY):
            self._saved = beat.last_checkpoint
            self._line_at = self._clock()
            self.say(heartbeat_text.line(beat))

    def on_output(self, data: bytes) -> None:
        """Pass on the output of the script."""
        self._write(self._out, data)

    def on_log(self, row: dict[str, Any]) -> None:
        """Print warnings and errors."""
        if text := trouble(row):
            self._write(self._err, f"[outlast] {text}\n")

    def say(self, text: str) -> None:
        """Print one message with the time."""
        self._write(
            self._err, f"[outlast] {time.strftime('%H:%M:%S')} " + printable(text, "\n") + "\n"
        )

    def _write(self, stream: Any, data: Any) -> None:
        if stream in self._silent:
            return
        try:
            stream.write(data)
            stream.flush()
        except (OSError, ValueError):
            self._silent.add(stream)
