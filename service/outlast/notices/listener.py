"""Listens to a cloud on a thread of its own, and never gets into the training's way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from outlast.job.log_events import LogEvent
from outlast.notices import detect
from outlast.notices.base import Cloud, Notice, Tell, Unanswered

WATCHED: Final = LogEvent.PREEMPTION_WATCHED
LONGEST: Final = 10.0  # seconds between two questions to a server that does not answer well


class Listener:
    """Asks `cloud` until it gives notice, which `on_notice` is told once.

    tell: what belongs into the log. Both are called on the thread and must not raise. A server that
    does not answer, or answers nonsense, is asked again with growing pauses and logged once.
    """

    def __init__(self, cloud: Cloud, on_notice: Callable[[Notice], None], tell: Tell) -> None:
        self._cloud = cloud
        self._on_notice = on_notice
        self._tell = tell
        self._stop = threading.Event()
        self._failed = 0
        self._said = False
        self._thread = threading.Thread(target=self._run, name="outlast-notices", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Listen no longer; a question that is under way is left to itself."""
        self._stop.set()

    def acknowledge(self) -> bool:
        """Tell the cloud that all is saved, where it waits for that; return whether it was told."""
        with suppress(Unanswered):
            return self._cloud.acknowledge()
        return False

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                notice = self._cloud.look(self._tell)
            except Exception as error:  # noqa: BLE001  (nothing of this may end a training)
                pause = self._pause_after(error)
                continue
            self._failed, pause = 0, self._cloud.pause
            if notice is not None:
                if not self._stop.is_set():
                    self._on_notice(notice)
                return

    def _pause_after(self, error: Exception) -> float:
        if not self._said:
            self._said = True
            kind = "" if isinstance(error, Unanswered) else f"{type(error).__name__}: "
            told = {"cloud": self._cloud.name, "error": f"{kind}{error}"}
            self._tell(
                LogEvent.METADATA_FAILED,
                {**told, "hint": "it is asked again; the training continues"},
            )
        pause = min(LONGEST, 1.0 * 2.0**self._failed)
        self._failed = min(self._failed + 1, 10)
        return pause


def watch(choice: str, on_notice: Callable[[Notice], None], tell: Tell) -> Listener | None:
    """Start to listen to the cloud that `choice` names; None: there is none to listen to.

    choice: "auto", "none", or a name of `CLOUDS`. With "auto" nothing is asked over the network on
    a machine whose firmware is of none of them.
    """
    cloud = detect.choose(choice)
    if cloud is None:
        return None
    tell(WATCHED, {"cloud": cloud.name, "chosen": choice})
    listener = Listener(cloud, on_notice, tell)
    listener.start()
    return listener
