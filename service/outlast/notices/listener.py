"""Watches a cloud for preemption notices, on a background thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from outlast.job.log_events import LogEvent
from outlast.notices import detect
from outlast.notices.base import Cloud, Notice, OnEvent, Unanswered

WATCHED: Final = LogEvent.PREEMPTION_WATCHED
LONGEST: Final = 10.0  # seconds between two requests to a server that does not answer properly


class Listener:
    """Asks a cloud until it gives notice.

    A server that does not answer properly is asked again with growing pauses, and logged once.

    Args:
        cloud: The cloud to ask.
        on_notice: Called once with the notice, on the thread; must not raise.
        on_event: Called with log events, on the thread; must not raise.
    """

    def __init__(
        self, cloud: Cloud, on_notice: Callable[[Notice], None], on_event: OnEvent
    ) -> None:
        self._cloud = cloud
        self._on_notice = on_notice
        self._on_event = on_event
        self._stop = threading.Event()
        self._failed = 0
        self._failure_logged = False
        self._thread = threading.Thread(target=self._run, name="outlast-notices", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking; a request in progress is abandoned."""
        self._stop.set()

    def acknowledge(self) -> bool:
        """Tell a cloud that waits for it that all is saved; return whether it was informed."""
        with suppress(Unanswered):
            return self._cloud.acknowledge()
        return False

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                notice = self._cloud.look(self._on_event)
            except Exception as error:  # noqa: BLE001  (no error here may end a training)
                pause = self._pause_after(error)
                continue
            self._failed, pause = 0, self._cloud.pause
            if notice is not None:
                if not self._stop.is_set():
                    self._on_notice(notice)
                return

    def _pause_after(self, error: Exception) -> float:
        if not self._failure_logged:
            self._failure_logged = True
            kind = "" if isinstance(error, Unanswered) else f"{type(error).__name__}: "
            fields = {"cloud": self._cloud.name, "error": f"{kind}{error}"}
            self._on_event(
                LogEvent.METADATA_FAILED,
                {**fields, "hint": "Outlast asks again; the training continues"},
            )
        pause = min(LONGEST, 1.0 * 2.0**self._failed)
        self._failed = min(self._failed + 1, 10)
        return pause


def watch(choice: str, on_notice: Callable[[Notice], None], on_event: OnEvent) -> Listener | None:
    """Start watching a cloud for preemption notices; return None if there is none to watch.

    Args:
        choice: "auto", "none", or a name in `CLOUDS`. "auto" uses no network on machines whose
            firmware is of none of them.
        on_notice: Called once with the notice, on a background thread.
        on_event: Called with log events, on that thread.
    """
    cloud = detect.choose(choice)
    if cloud is None:
        return None
    on_event(WATCHED, {"cloud": cloud.name, "chosen": choice})
    listener = Listener(cloud, on_notice, on_event)
    listener.start()
    return listener
