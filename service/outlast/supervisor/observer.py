"""Reports what a supervisor sees: to an observer and to its log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from structlog.typing import FilteringBoundLogger

from outlast.job.events import Audited, Ended, Launched, StopRequested
from outlast.job.heartbeat import Beat
from outlast.job.journal import Entry
from outlast.job.lifecycle import Job, State
from outlast.job.log_events import LogEvent
from outlast.job.logs import LogFile, make_logger, silent_logger
from outlast.job.outcome import Outcome
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.retry_budget import BRIEF, patience


class Observer:
    """Sees what the supervisor sees. Override the methods that you need."""

    def on_state(self, job: Job) -> None:
        """Get the job after each event of its journal."""

    def on_beat(self, beat: Beat) -> None:
        """Get each new heartbeat."""

    def on_output(self, data: bytes) -> None:
        """Get what the script wrote to stdout and stderr."""

    def on_log(self, row: dict[str, Any]) -> None:
        """Get each row of the logs of the attempt and of the supervisor."""


class Reporter:
    """Informs the observer, and writes the supervisor's log. An observer that fails is dropped."""

    def __init__(self, storage: Storage, job: str, observer: Observer | None) -> None:
        self.log: FilteringBoundLogger = silent_logger()
        self._storage, self._job = storage, job
        self._observer = observer or Observer()
        self._file: LogFile | None = None

    def open(self, attempt: int) -> None:
        """Write to the supervisor's log of this attempt from now on."""
        self._file = LogFile(self._storage, layout.supervisor_log(attempt), echo=self.log_row)
        self.log = make_logger(self._file, job=self._job, attempt=attempt)

    def flush(self) -> None:
        """Publish the log rows that wait, on a storage that cannot append."""
        if self._file is not None:
            with patience(BRIEF):
                self._file.flush()

    def close(self, *, away: bool) -> None:
        """Close the log. `away`: the storage is away, so do not retry."""
        if self._file is not None:
            with patience(0.0 if away else BRIEF):
                self._file.close()

    def beat(self, beat: Beat) -> None:
        """Report a heartbeat."""
        self._show(self._observer.on_beat, beat)

    def output(self, data: bytes) -> None:
        """Report output of the script."""
        self._show(self._observer.on_output, data)

    def log_row(self, row: dict[str, Any]) -> None:
        """Report a log row."""
        self._show(self._observer.on_log, row)

    def event(self, entry: Entry, job: Job) -> None:
        """Report an event of the journal, and the job after it."""
        self._show(self._observer.on_state, job)
        match entry.event:
            case Ended() as ended:
                good = ended.outcome in (Outcome.COMPLETED, Outcome.PREEMPTED, Outcome.STOPPED)
                say = self.log.info if good else self.log.error
                say(
                    LogEvent.ATTEMPT_ENDED,
                    outcome=ended.outcome.value,
                    reason=ended.reason,
                    state=job.state.value,
                    checkpoint=ended.checkpoint,
                )
                if job.state is State.WAITING:
                    self.log.info(
                        LogEvent.RETRY_SCHEDULED, seconds=round(job.delay, 3), failures=job.failures
                    )
                elif job.state is State.FAILED:
                    self.log.error(LogEvent.JOB_FAILED, reason=job.reason)
            case StopRequested() as stop:
                self.log.info(LogEvent.STOP_REQUESTED, by=stop.by, now=stop.now)
            case Audited(exact=True) as audited:
                self.log.info(
                    LogEvent.AUDIT_PASSED,
                    interval=f"{audited.first} to {audited.last}",
                    seconds=audited.seconds,
                )
            case Audited() as audited:
                self.log.warning(
                    LogEvent.AUDIT_DIFFERED,
                    interval=f"{audited.first} to {audited.last}",
                    first=audited.difference,
                    differences=audited.count,
                    seconds=audited.seconds,
                    hint="a resume of this training is not exact; `outlast audit` shows all",
                )
            case Launched() as launched:
                self.log.info(LogEvent.ATTEMPT_LAUNCHED, pid=launched.handle.get("pid"))
            case _:
                pass

    def _show(self, show: Callable[[Any], None], what: Any) -> None:
        """Call the observer; drop it when it fails, for example at a closed terminal."""
        try:
            show(what)
        except Exception as error:  # noqa: BLE001
            self._observer = Observer()
            self.log.warning(LogEvent.OBSERVER_DROPPED, error=f"{type(error).__name__}: {error}")
