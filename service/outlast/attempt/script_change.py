"""Tells when the script is not the one that an earlier attempt ran."""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from outlast.attempt.context import AttemptContext
from outlast.job import heartbeat
from outlast.job.heartbeat import Status
from outlast.job.log_events import LogEvent
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.storage.retry_budget import BRIEF, patience

_LOOK_BACK: Final = 3  # attempts; one of an older version, or that died at once, knows no hash


def identify(status: Status, script: Path | None) -> None:
    """Put the hash of a script into the heartbeats, if it is a file that can be read."""
    if script is not None:
        with suppress(OSError):  # a folder, or deleted; what runs it says what is wrong
            status.script_sha256 = hashlib.sha256(script.read_bytes()).hexdigest()


def main_file() -> Path | None:
    """Return the file of `__main__`, None in a notebook."""
    name = getattr(sys.modules.get("__main__"), "__file__", None)
    return None if name is None else Path(name)


def tell(context: AttemptContext) -> None:
    """Log that the script has changed, if an earlier attempt ran another one."""
    now, before = context.status.script_sha256, _before(context)
    if None not in (now, before) and before != now:
        context.log.warning(
            LogEvent.SCRIPT_CHANGED,
            sha256_before=before,
            sha256=now,
            why="the script was edited between two attempts; the training continues with the new "
            "one, so it may end otherwise than either of them alone",
        )


def tell_of_module(context: AttemptContext) -> None:
    """Do the same for a script that was started as a module; it is `__main__` by now."""
    if context.spec.module is not None:
        identify(context.status, main_file())
        tell(context)


def _before(context: AttemptContext) -> str | None:
    with suppress(OutlastError), patience(BRIEF):
        for attempt in range(context.attempt - 1, 0, -1)[:_LOOK_BACK]:
            beat = heartbeat.read(context.storage, attempt)
            if beat is not None and beat.script_sha256 is not None:
                return beat.script_sha256
    return None
