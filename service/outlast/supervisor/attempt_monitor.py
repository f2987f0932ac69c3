"""Watches the running attempt: its process, its output, its log and its heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from outlast.backends.base import Backend, Exit
from outlast.errors import BackendFailed
from outlast.job.log_events import LogEvent
from outlast.job.spec import JobSpec
from outlast.supervisor.attempt_records import AttemptRecords
from outlast.supervisor.observer import Reporter
from outlast.supervisor.running_attempt import RunningAttempt
from outlast.supervisor.storage_outage import StorageOutage
from outlast_checkpoints.storage.base import Storage

OUTPUT_EVERY: Final = 0.2  # seconds between two looks at the output
ROWS_EVERY: Final = 1.0  # seconds between two looks at a log that is elsewhere


class AttemptMonitor:
    """Looks at the running attempt, and kills it when it stalls or does not leave in time.

    Args:
        spec: Spec of the job.
        storage: Storage of the job.
        backend: Backend that launched the attempt.
        records: Reads what the attempt has written.
        outage: Whether the storage is away.
        reporter: Shows what is seen.
        on_started: Called with the number of the attempt when its first heartbeat is seen.
    """

    def __init__(
        self,
        spec: JobSpec,
        storage: Storage,
        backend: Backend,
        records: AttemptRecords,
        outage: StorageOutage,
        reporter: Reporter,
        on_started: Callable[[int], None],
    ) -> None:
        self._spec = spec
        self._storage = storage
        self._backend = backend
        self._records = records
        self._outage = outage
        self._reporter = reporter
        self._on_started = on_started

    def look(self, attempt: RunningAttempt, now: float) -> Exit | None:
        """Return how the attempt ended; None while it runs. `now`: monotonic seconds."""
        end: Exit | None = None
        try:
            end = self._backend.poll(attempt.handle)
            attempt.unseen = None
        except BackendFailed as error:
            attempt.unseen = str(error)
        if end is not None or now >= attempt.output_at:
            attempt.output_at = now + OUTPUT_EVERY
            self._show_output(attempt, now, last=end is not None)
        if end is not None or now >= attempt.beat_at:
            attempt.beat_at = now + self._spec.heartbeat_every / 2
            self._look_at_heartbeat(attempt, now)
        if end is None and attempt.overdue(now):
            self._reporter.log.warning(LogEvent.ATTEMPT_KILLED, why=attempt.why)
        if end is None and attempt.lost:
            with suppress(BackendFailed):
                self._backend.kill(attempt.handle)
            end = Exit()
        return end

    def _show_output(self, attempt: RunningAttempt, now: float, *, last: bool) -> None:
        output = self._backend.output(attempt.handle, attempt.output_seen)
        attempt.output_seen += len(output)
        if output:
            self._reporter.output(output)
        if now < attempt.rows_at and not last:
            return
        # On a store without append, rows arrive as segments, and each look costs a request.
        attempt.rows_at = now if self._storage.capabilities.append else now + ROWS_EVERY
        rows: list[dict[str, Any]] = []
        self._outage.ask(lambda: rows.extend(attempt.tail.read()))
        for row in rows:
            self._reporter.log_row(row)

    def _look_at_heartbeat(self, attempt: RunningAttempt, now: float) -> None:
        beat, seen = self._records.newest_beat(attempt.number, attempt.beat)
        if not seen:
            attempt.watch.unseen(now)
            return
        if beat is not None and (attempt.beat is None or beat.count != attempt.beat.count):
            first = attempt.beat is None
            attempt.beat = beat
            self._reporter.beat(beat)
            if first:
                self._on_started(attempt.number)
            if self._spec.warm_spare and beat.step > 0:
                preload = self._backend.preload(attempt.handle)
                if preload is not None:
                    self._backend.prepare(self._spec, preload)
        silent = attempt.watch.observe(beat, now)
        attempt.lost = attempt.unseen is not None and silent.beat > self._spec.lost_after
        limit = self._spec.stall_timeout
        if limit and silent.progress > limit and not attempt.stalled:
            self._reporter.log.error(
                LogEvent.ATTEMPT_STALLED,
                no_progress_for=silent.progress,
                hint="the stacks of its threads go to output.log, then it is killed",
            )
            attempt.stall(now, silent.progress)
