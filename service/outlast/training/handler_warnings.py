"""What the log says about signal handlers of the script."""

from __future__ import annotations

from typing import Any

from outlast.attempt.signals import StopFlag
from outlast.job.log_events import LogEvent


def reinstall_handlers(stop: StopFlag, log: Any) -> StopFlag:
    """Install Outlast's handlers again, log those that were replaced, and return the flag."""
    replaced = stop.reinstall_handlers()
    if replaced:
        log.warning(
            LogEvent.HANDLERS_RESTORED,
            signals=replaced,
            why="the script or a library replaced the signal handlers that save at a stop",
            hint="no change is needed, because the replacing handlers are called too",
        )
    return stop


def warn_of_error(stop: StopFlag, log: Any) -> None:
    """Log what a handler of the script raised, if it did."""
    if stop.handler_error is not None:
        log.warning(
            LogEvent.HANDLER_FAILED,
            error=stop.handler_error,
            why="a signal handler of the script raised it; the state is saved first",
        )
