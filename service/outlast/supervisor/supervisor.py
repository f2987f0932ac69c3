"""Keeps one job running until it is done, stopped or out of retries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from structlog.typing import FilteringBoundLogger

from outlast import backends, exit_codes
from outlast.backends.base import Backend, Exit
from outlast.errors import BackendFailed, InvalidTransition, JobUnknown, SpecInvalid
from outlast.job import (
    cluster_slot,
    fencing_check,
    process_identity,
    spool_settings,
    stop_note,
    takeover,
)
from outlast.job.events import Audited, Event, Launched, Released, Started, StopRequested
from outlast.job.journal import Entry, Journal
from outlast.job.lifecycle import Action, Job, Launch, Leave, State, StopAttempt, Wait
from outlast.job.log_events import LogEvent
from outlast.job.outcome import Outcome
from outlast.job.submission import load_spec, request_stop, resume, submit
from outlast.supervisor.attempt_monitor import AttemptMonitor
from outlast.supervisor.attempt_records import AttemptRecords
from outlast.supervisor.background_audit import BackgroundAudit
from outlast.supervisor.job_presence import JobPresence
from outlast.supervisor.observer import Observer, Reporter
from outlast.supervisor.running_attempt import RunningAttempt
from outlast.supervisor.stop_requests import StopRequests
from outlast.supervisor.storage_outage import StorageOutage
from outlast.supervisor.time_limit import TimeLimit
from outlast_checkpoints.errors import StorageError, Superseded
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.retry_budget import USUAL, patience

__all__ = ["Observer", "Supervisor", "request_stop", "resume", "submit"]

POLL: Final = 0.03  # seconds between two looks at the process
JOURNAL_EVERY: Final = 1.0  # seconds between two looks at the journal
STORAGE_PATIENCE: Final = 60.0  # seconds that events wait for this machine's disk
LEAVING: Final = 5.0  # seconds that a leaving supervisor waits for a store


class Supervisor:
    """Claims a job, launches its attempts, watches them and retries them.

    The first SIGINT saves and stops the job, the second one kills the attempt. On SIGTERM, SIGHUP,
    SIGUSR1 or a cloud's notice, the attempt saves and leaves, and anybody may resume the job.

    Args:
        storage: Storage of the job.
        observer: Sees states, heartbeats, output and log lines.
        backend: Launches the attempts; default: the one that the spec names.
        requests: Collects signals and notices. Pass one that is installed already, to miss none
            before or after `run`.
        clock: Returns monotonic seconds.
        sleep: Waits for that many seconds.

    Raises:
        JobUnknown: there is no job in the storage.
        SpecInvalid: its spec cannot be read.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        observer: Observer | None = None,
        backend: Backend | None = None,
        requests: StopRequests | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._storage = storage
        self._spec = load_spec(storage)
        self._reporter = Reporter(storage, self._spec.job, observer)
        self._requests = requests or StopRequests()
        self._backend = backend or backends.get(self._spec.backend)
        self._clock = clock
        self._sleep = sleep
        self._me = process_identity.here()
        self._journal = Journal(storage)
        self._seen = 0  # number of events acted upon
        self._stops_asked = 0
        self._running: RunningAttempt | None = None
        self._claim_at: float | None = None
        self._done = False
        self._spool = spool_settings.spool_of(storage, self._spec)
        self._outage = StorageOutage(clock)
        self._records = AttemptRecords(self._spec, storage, self._spool, self._outage)
        self._monitor = AttemptMonitor(
            self._spec,
            storage,
            self._backend,
            self._records,
            self._outage,
            self._reporter,
            lambda attempt: self._append(Started(attempt=attempt)),
        )
        self._audit = BackgroundAudit(self._spec, storage, lambda: self._log, clock())
        self._attempt_ended_at = 0.0
        self._finished = False  # the training ended without being asked to
        self._released = False
        self._read_journal_at = 0.0
        self._presence = JobPresence(storage, clock)
        self._limit = TimeLimit(self._spec.max_duration, clock)

    def run(self) -> Job:
        """Supervise until the job is final or this process has to leave; return the job.

        The process should exit with `lifecycle.exit_code(job)`.

        Raises:
            JobBusy: another process has the job.
            Superseded: another process took the job over.
        """
        self._seen = len(self._journal.read())
        job = self._journal.existing_job()
        if job.state.final:
            return job
        kill = False
        try:
            with self._requests.signals():
                self._claim()
                self._supervise()
        except (JobUnknown, Superseded):
            kill = True
            raise
        finally:
            self._audit.close()
            self._abandon(kill=kill)
            self._requests.close(left=self._released)
            self._backend.close()
            self._reporter.close(away=self._outage.since is not None)
        return self._known_job()

    def _known_job(self) -> Job:
        with suppress(StorageError), patience(USUAL if self._outage.since is None else 0.0):
            return self._journal.existing_job()
        return self._journal.job_after(len(self._journal))

    def _claim(self) -> None:
        try:
            self._journal.claim(self._me, cluster_slot.here())
        except InvalidTransition:
            job = self._journal.existing_job()
            if job.state.final:
                return  # stopped a moment ago
            raise takeover.busy(self._spec.job, job) from None

    def _may_claim(self) -> bool:
        return self._claim_at is not None and self._clock() >= self._claim_at

    def _claim_again(self) -> None:
        job = self._journal.existing_job()
        if not (job.in_flight and job.owner == self._me):  # a claim whose answer was lost
            self._claim()

    def _supervise(self) -> None:
        while True:
            self._act()
            if self._done:
                self._await_audit()
                return
            if self._handle_requests():
                return
            self._outage.catch_up()
            if self._waits_too_long():
                return
            if self._running is not None:
                end = self._monitor.look(self._running, self._clock())
                self._audit.look(self._running.beat, self._clock())
                if end is not None:
                    self._attempt_ended(self._running, end)
            elif self._may_claim() and self._outage.ask(self._claim_again):
                self._claim_at = None
                continue
            if self._clock() - self._read_journal_at >= JOURNAL_EVERY:
                self._read_journal_at = self._clock()
                self._outage.ask(self._journal.read)
                self._look_for_stops()
                self._outage.ask(self._presence.look)
                if self._outage.since is None:
                    self._reporter.flush()
            if self._seen == len(self._journal):
                self._sleep(POLL)

    def _await_audit(self) -> None:
        """Let an audit end that has begun, if the job has succeeded and nobody is in a hurry."""
        succeeded = self._journal.job_after(len(self._journal)).state is State.SUCCEEDED
        while succeeded and self._audit.running and not self._requests.pending:
            self._sleep(POLL)
            self._audit.look(None, self._clock())
        self._outage.ask(self._journal.read)
        self._act()

    def _look_for_stops(self) -> None:
        """Take a stop request that somebody left in the spool, and look at the time limit."""
        attempt = self._journal.job_after(len(self._journal)).attempt
        note = self._spool and stop_note.take(self._spool.storage, attempt)
        if note := note or self._limit.look(self._journal):
            self._requests.stop(note)

    # --- act -------------------------------------------------------------------------------

    def _act(self) -> None:
        """Perform the actions of new journal events; they may add further events."""
        while self._seen < len(self._journal):
            self._seen += 1
            entry = self._journal.entry(self._seen)
            job = self._journal.job_after(self._seen)
            if entry.by != self._me and not isinstance(entry.event, StopRequested | Audited):
                self._raise_superseded(entry, job)
            self._reporter.event(entry, job)
            for action in self._journal.actions_after(self._seen):
                self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Launch(attempt=attempt):
                self._launch(attempt)
            case StopAttempt(now=now):
                self._audit.stop()
                if self._running is not None:
                    self._running.stop(self._clock(), "now" if now else "stop")
            case Wait(seconds=seconds):
                self._claim_at = self._clock() + seconds
            case Leave():
                self._done = True

    def _launch(self, attempt: int) -> None:
        self._open_log(attempt)
        try:
            handle = self._backend.launch(self._spec, self._storage, attempt)
        except (BackendFailed, SpecInvalid) as error:
            lasting = FileNotFoundError | NotADirectoryError | PermissionError
            fatal = isinstance(error, SpecInvalid) or isinstance(error.__cause__, lasting)
            outcome, reason = Outcome.REJECTED if fatal else Outcome.CRASHED, str(error)
            self._outage.do(lambda: self._end(attempt, outcome, reason, Exit()))
            return
        self._running = RunningAttempt(
            self._spec, self._storage, self._backend, handle, attempt, self._clock()
        )
        self._append(Launched(attempt=attempt, handle=handle))

    def _raise_superseded(self, entry: Entry, job: Job) -> None:
        """Raise `Superseded`: another process has written off this attempt."""
        mine = self._running.number if self._running is not None else job.attempt
        by = max(job.attempt, mine + 1)
        self._log.error(LogEvent.SUPERSEDED, by=by, owner=str(entry.by))
        raise Superseded(attempt=mine, by=by)

    # --- observe ---------------------------------------------------------------------------

    def _handle_requests(self) -> bool:
        """Act on signals and notices; return whether this supervisor has to leave now."""
        requests = self._requests
        requests.hear(self._log)
        while self._stops_asked < min(requests.interrupts, 2):
            self._stops_asked += 1
            now = self._stops_asked == 2
            self._append(StopRequested(by=requests.by, now=now))
            if self._outage.waiting and self._running is not None:
                self._running.stop(self._clock(), "now" if now else "stop")
                hint = "the attempt stops now; the storage is informed when it is back"
                self._log.warning(LogEvent.STOP_REQUESTED, by=requests.by, now=now, hint=hint)
        if requests.terminated is not None:
            if self._running is not None:
                self._ask_to_leave(self._running)
            elif self._seen == len(self._journal):
                if not self._released:
                    self._released = True
                    self._log.warning(LogEvent.SUPERVISOR_LEFT, why=requests.terminated)
                    self._append(Released(reason=requests.reason))
                return not self._outage.waiting
        return False

    def _ask_to_leave(self, running: RunningAttempt) -> None:
        """Ask the attempt to save and leave, within the time that a cloud's notice allows."""
        self._audit.stop()
        now, notice, spec = self._clock(), self._requests.notice, self._spec
        if notice is None or notice.within is None:
            running.stop(now, "preempted")
        elif not running.noticed:
            running.noticed = True
            limit = spec.grace_is_limit
            within = notice.time_to_leave(time.monotonic(), spec.grace, limit=limit)
            self._records.write_deadline(running.number, notice.description, within)
            running.stop(now, "preempted", within)
            running.shorten(now, within)

    def _attempt_ended(self, running: RunningAttempt, end: Exit) -> None:
        self._running = None
        self._attempt_ended_at = self._clock()
        self._finished = end.code in (exit_codes.DONE, exit_codes.STORAGE_FAILED)
        self._outage.do(lambda: self._record_end(running, end))

    def _record_end(self, running: RunningAttempt, end: Exit) -> None:
        """Record how an attempt ended. It is repeated from the start while the storage is away."""
        self._backend.finish(running.handle, self._storage, running.number)
        last = self._records.last_beat(running.number)
        if running.beat is None and last is not None:
            self._write(Started(attempt=running.number))
        running.beat = last or running.beat
        reported = running.reported_end(end)
        if reported.code == exit_codes.SUPERSEDED:
            self._journal.read()
            self._act()  # raises when a newer attempt was claimed
        outcome, reason = running.judged(end)
        if outcome is Outcome.PREEMPTED and self._journal.existing_job().state is State.STOPPING:
            outcome = Outcome.STOPPED
        self._end(running.number, outcome, reason, reported)

    def _end(self, attempt: int, outcome: Outcome, reason: str, end: Exit) -> None:
        ended = self._records.ended(attempt, outcome, reason, end, self._journal.existing_job())
        self._write(ended)

    # --- around ----------------------------------------------------------------------------

    def _append(self, event: Event) -> None:
        """Append an event, now or when the storage is back; the attempt continues meanwhile."""
        self._outage.do(lambda: self._write(event))

    def _write(self, event: Event) -> None:
        try:
            self._journal.append(event)
        except InvalidTransition:
            self._act()  # raises when another process has the job now
            if not isinstance(event, StopRequested | Released):  # it ended at the same moment
                raise

    def _waits_too_long(self) -> bool:
        """Return whether to leave, because only waiting for the storage is left.

        Raises:
            StorageError: the storage has been away for too long.
        """
        outage = self._outage
        if outage.since is None or not (outage.waiting or self._claim_at is not None):
            return False
        if self._spool is None:
            limit, since = STORAGE_PATIENCE, outage.since
        elif self._running is not None:
            return False
        else:
            since = max(outage.since, self._attempt_ended_at)
            if self._requests.pending and self._clock() - since > LEAVING:
                why = "the storage does not accept the last events"
                self._log.warning(LogEvent.SUPERVISOR_LEFT, why=why)
                self._requests.leave_note(self._spool.storage, self._known_job().attempt)
                return True
            limit = spool_settings.wait_at_end() if self._finished else math.inf
        if self._clock() - since > limit and outage.error is not None:
            raise outage.error
        return False

    @property
    def _log(self) -> FilteringBoundLogger:
        return self._reporter.log

    def _open_log(self, attempt: int) -> None:
        first = self._outage.log is None
        self._reporter.close(away=self._outage.since is not None)
        self._reporter.open(attempt)
        self._outage.log = self._reporter.log
        if first:
            fencing_check.warn(self._storage, self._log)
            self._requests.listen(self._spec.preemption)

    def _abandon(self, *, kill: bool) -> None:
        """End a running attempt, so that none stays behind unwatched.

        Args:
            kill: Kill it at once, because nothing that it saves would count.
        """
        running, self._running = self._running, None
        if running is None:
            return
        running.stop(self._clock(), "now" if kill else "preempted")
        with suppress(BackendFailed):
            while self._backend.poll(running.handle) is None:
                running.overdue(self._clock())
                self._sleep(POLL)

    def interrupt(self) -> None:
        """Act as on Ctrl-C, for a supervisor outside the main thread."""
        self._requests.interrupt()

    def terminate(self) -> None:
        """Act as on SIGTERM, for a supervisor outside the main thread."""
        self._requests.terminate("SIGTERM")
