"""The base of observers that show a job to a person."""

from __future__ import annotations

from typing import Any

from outlast.cli.display import units
from outlast.job.heartbeat import Beat
from outlast.job.lifecycle import Job, describe
from outlast.job.log_events import LogEvent
from outlast.job.logs import LEVELS, render
from outlast.supervisor.supervisor import Observer

# The line about the state covers these.
_SAID_BY_STATE = frozenset({LogEvent.ATTEMPT_ENDED, LogEvent.JOB_FAILED, LogEvent.SCRIPT_FAILED})


class TerminalObserver(Observer):
    """An observer that can also print messages, and that is closed at the end."""

    _resumed = 0

    def show_resumed(self, beat: Beat) -> None:
        """Print, once for each attempt, the checkpoint that it resumed from."""
        if beat.restored_from is not None and beat.attempt != self._resumed:
            self._resumed = beat.attempt
            at = (
                beat.last_checkpoint_at_step if beat.last_checkpoint == beat.restored_from else None
            )
            step = "" if at is None else f" (step {units.number(at)})"
            self.say(f"attempt {beat.attempt} resumed from {beat.restored_from}{step}")

    def say(self, text: str) -> None:
        """Print one message with the time."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop showing the job."""


def state(job: Job) -> str:
    """Return the state of the job in one line, without its owner.

    It omits the reason of a failed job, because the summary that follows has it.
    """
    return describe(job.evolve(owner=None, **({"reason": ""} if job.state == "failed" else {})))


def trouble(row: dict[str, Any], *, colour: bool = False) -> str:
    """Return the text of a log row to show on a terminal; "" for rows below a warning."""
    if LEVELS.get(str(row.get("level")), 0) < LEVELS["warning"]:
        return ""
    return "" if row.get("event") in _SAID_BY_STATE else render(row, colour=colour)
