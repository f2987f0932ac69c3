"""Requests to stop or to leave: signals to the supervisor, and notices of the cloud."""

from __future__ import annotations

import queue
import signal as signals
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from structlog.typing import FilteringBoundLogger

from outlast import notices
from outlast.job.log_events import LogEvent
from outlast.notices import Listener, Notice


class StopRequests:
    """Collects signals and preemption notices for the supervisor's thread.

    Attributes:
        interrupts: How often Ctrl-C was pressed.
        terminated: Why the supervisor has to leave (the first reason); None to stay.
        notice: Notice of the cloud, if it gave one.
    """

    def __init__(self) -> None:
        self.interrupts = 0
        self.terminated: str | None = None
        self.notice: Notice | None = None
        self._listener: Listener | None = None
        self._heard: queue.SimpleQueue[Notice | tuple[str, Mapping[str, Any]]] = queue.SimpleQueue()

    @property
    def pending(self) -> bool:
        """Whether anybody wants the supervisor to stop or leave."""
        return self.interrupts > 0 or self.terminated is not None

    @property
    def story(self) -> str:
        """Why the supervisor left, for the journal."""
        if self.notice is not None and self.terminated == self.notice.story:
            return self.notice.story
        return f"the supervisor got {self.terminated}"

    def interrupt(self) -> None:
        """Count a Ctrl-C."""
        self.interrupts += 1

    def terminate(self, why: str) -> None:
        """Request that the supervisor leaves. The first reason counts."""
        self.terminated = self.terminated or why

    def listen(self, preemption: str) -> None:
        """Start watching for preemption notices; `hear` takes what the thread hears."""
        put = self._heard.put
        self._listener = notices.watch(preemption, put, lambda event, fields: put((event, fields)))

    def hear(self, log: FilteringBoundLogger) -> None:
        """Take what the cloud has announced meanwhile, and log it."""
        while not self._heard.empty():
            heard = self._heard.get()
            if isinstance(heard, Notice):
                self.notice = heard
                self.terminate(heard.story)
                log.warning(LogEvent.PREEMPTION_ANNOUNCED, **heard.told())
            else:
                event, fields = heard
                say = log.info if event == notices.WATCHED else log.warning
                say(event, **fields)

    def close(self, *, left: bool) -> None:
        """Stop watching. `left`: the state is saved, so the cloud need not wait."""
        if self._listener is None:
            return
        self._listener.stop()
        if self.notice is not None and left:
            self._listener.acknowledge()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle the signals of this process in this context; in its main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            signum: signals.signal(signum, self._on_signal)
            for signum in (signals.SIGINT, signals.SIGTERM, signals.SIGHUP, signals.SIGUSR1)
            if signals.getsignal(signum) is not signals.SIG_IGN  # as under nohup
        }
        try:
            yield
        finally:
            for signum, handler in before.items():
                signals.signal(signum, handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signals.SIGINT:
            self.interrupt()
        else:
            self.terminate(signals.Signals(signum).name)
