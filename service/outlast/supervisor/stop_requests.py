"""Requests to stop or to leave: signals to the supervisor, and notices of the cloud."""

from __future__ import annotations

import queue
import signal as signals
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from structlog.typing import FilteringBoundLogger

from outlast import notices
from outlast.job import stop_note
from outlast.job.log_events import LogEvent
from outlast.job.stop_note import StopNote
from outlast.notices import Listener, Notice
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage.base import Storage


class StopRequests:
    """Collects signals and preemption notices for the supervisor's thread.

    Attributes:
        interrupts: How often Ctrl-C was pressed; 2 also if the attempt shall be killed.
        by: Who wants the job to stop.
        terminated: Why the supervisor has to leave (the first reason); None to stay.
        notice: Notice of the cloud, if it gave one.
    """

    def __init__(self) -> None:
        self.interrupts = 0
        self.by = "Ctrl-C"
        self.terminated: str | None = None
        self.notice: Notice | None = None
        self._listener: Listener | None = None
        self._heard: queue.SimpleQueue[Notice | tuple[str, Mapping[str, Any]]] = queue.SimpleQueue()

    @property
    def pending(self) -> bool:
        """Whether anybody wants the supervisor to stop or leave."""
        return self.interrupts > 0 or self.terminated is not None

    @property
    def reason(self) -> str:
        """Why the supervisor left, for the journal."""
        if self.notice is not None and self.terminated == self.notice.description:
            return self.notice.description
        return f"the supervisor got {self.terminated}"

    def interrupt(self) -> None:
        """Count a Ctrl-C."""
        self.interrupts += 1

    def stop(self, note: StopNote) -> None:
        """Take a request of somebody on this machine."""
        self.by = note.by
        self.interrupts = max(self.interrupts, 2 if note.now else 1)

    def leave_note(self, spool: Storage, attempt: int) -> None:
        """Leave a stop that the storage does not accept to the next process on this machine."""
        if self.interrupts:
            with suppress(StorageError):
                stop_note.leave(spool, attempt, StopNote(by=self.by, now=self.interrupts > 1))

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
                self.terminate(heard.description)
                log.warning(LogEvent.PREEMPTION_ANNOUNCED, **heard.log_fields())
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
    def signals(self, *, for_good: bool = False) -> Iterator[None]:
        """Handle the signals of this process in this context; in its main thread only.

        Args:
            for_good: The process ends after this context. If it was asked to, ignore further
                signals, so that one that comes late does not change its exit code.
        """
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
                ignore = for_good and self.pending
                signals.signal(signum, signals.SIG_IGN if ignore else handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signals.SIGINT:
            self.interrupt()
        else:
            self.terminate(signals.Signals(signum).name)
