"""Observe, transition, act: keeps one job going until it is done, stopped or out of retries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from outlast import backends, exit_codes
from outlast.backends.base import Backend, Exit
from outlast.errors import BackendFailed, InvalidTransition, SpecInvalid
from outlast.job import (
    cluster_slot,
    deadline,
    fencing_check,
    heartbeat,
    lifecycle,
    process_identity,
    spool_settings,
    takeover,
)
from outlast.job.events import Ended, Event, Launched, Released, Started, StopRequested
from outlast.job.heartbeat import Beat
from outlast.job.journal import Entry, Journal
from outlast.job.lifecycle import Action, Job, Launch, Leave, State, StopAttempt, Wait
from outlast.job.outcome import Outcome
from outlast.job.submission import load_spec, request_stop, resume, submit
from outlast.supervisor import backoff
from outlast.supervisor.observer import Observer, Voice
from outlast.supervisor.running_attempt import Flight
from outlast.supervisor.stop_requests import Summons
from outlast.supervisor.storage_outage import Outage
from outlast_checkpoints.errors import StorageError, Superseded
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.retry_budget import USUAL, patience

__all__ = ["Observer", "Supervisor", "request_stop", "resume", "submit"]

POLL: Final = 0.03  # seconds between two looks at the child
OUTPUT_EVERY: Final = 0.2
JOURNAL_EVERY: Final = 1.0
STORAGE_PATIENCE: Final = 60.0  # how long an event that this machine's disk does not take waits
LEAVING: Final = 5.0  # how long one that a store elsewhere does not, when there is nothing else


class Supervisor:
    """Runs the job in `storage`: claims it, launches attempts, watches them, tries again.

    SIGINT once: save and stop; twice: at once. SIGTERM, SIGHUP, SIGUSR1 or a cloud's notice: this
    machine is about to be taken, so the attempt saves and the job is left for somebody to resume.
    summons: where these are heard already, when they shall not be missed before or after.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        observer: Observer | None = None,
        backend: Backend | None = None,
        summons: Summons | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._storage = storage
        self._spec = load_spec(storage)
        self._voice = Voice(storage, self._spec.job, observer)
        self._summons = summons or Summons()
        self._backend = backend or backends.get(self._spec.backend)
        self._clock = clock
        self._sleep = sleep
        self._me = process_identity.here()
        self._journal = Journal(storage)
        self._seen = 0  # events acted upon
        self._stops_asked = 0
        self._flight: Flight | None = None
        self._claim_at: float | None = None
        self._done = False
        self._spool = spool_settings.spool_of(storage, self._spec)
        self._outage = Outage(clock)
        self._landed_at = 0.0
        self._over = False  # the training has ended by itself
        self._released = False
        self._read_journal_at = 0.0

    def run(self) -> Job:
        """Supervise until the job is final or this process has to leave; return the job.

        `lifecycle.exit_code(job)` is what to exit with. Raises `JobBusy` when somebody else has
        the job, `Superseded` when somebody else took it over.
        """
        self._seen = len(self._journal.read())
        job = self._journal.existing_job()
        if job.state.final:
            return job
        hurry = False
        try:
            with self._summons.signals():
                self._claim()
                self._keep_going()
        except Superseded:
            hurry = True
            raise
        finally:
            self._abandon(hurry=hurry)
            self._summons.close(left=self._released)
            self._backend.close()
            self._voice.close(away=self._outage.since is not None)
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
        if not (job.in_flight and job.owner == self._me):  # by a claim whose answer was lost
            self._claim()

    def _keep_going(self) -> None:
        while True:
            self._act()
            if self._done:
                return
            if self._heed_signals():
                return
            self._outage.catch_up()
            if self._waits_in_vain():
                return
            if self._flight is not None:
                self._observe(self._flight)
            elif self._may_claim() and self._outage.ask(self._claim_again):
                self._claim_at = None
                continue
            if self._clock() - self._read_journal_at >= JOURNAL_EVERY:
                self._read_journal_at = self._clock()
                self._outage.ask(self._read_journal)
                if self._outage.since is None:
                    self._voice.flush()
            if self._seen == len(self._journal):
                self._sleep(POLL)

    def _read_journal(self) -> None:
        self._journal.read()

    # --- act -------------------------------------------------------------------------------

    def _act(self) -> None:
        """Do what the journal's new events ask for; doing it may add more events."""
        while self._seen < len(self._journal):
            self._seen += 1
            entry = self._journal.entry(self._seen)
            job = self._journal.job_after(self._seen)
            if entry.by != self._me and not isinstance(entry.event, StopRequested):
                self._give_way(entry, job)
            self._voice.event(entry, job)
            for action in self._journal.actions_after(self._seen):
                self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Launch(attempt=attempt):
                self._launch(attempt)
            case StopAttempt(now=now):
                if self._flight is not None:
                    self._flight.stop(self._clock(), "now" if now else "stop")
            case Wait(seconds=seconds):
                self._claim_at = self._clock() + seconds
            case Leave():
                self._done = True

    def _launch(self, attempt: int) -> None:
        self._open_log(attempt)
        try:
            handle = self._backend.launch(self._spec, self._storage, attempt)
        except (BackendFailed, SpecInvalid) as error:
            fatal = isinstance(error, SpecInvalid)
            self._end(attempt, Outcome.REJECTED if fatal else Outcome.CRASHED, str(error))
            return
        self._flight = Flight(
            self._spec, self._storage, self._backend, handle, attempt, self._clock()
        )
        self._append(Launched(attempt=attempt, handle=handle))

    def _give_way(self, entry: Entry, job: Job) -> None:
        """Somebody else has written this attempt off: what it still does counts for nothing."""
        mine = self._flight.attempt if self._flight is not None else job.attempt
        by = max(job.attempt, mine + 1)
        self._log.error("superseded", by=by, owner=str(entry.by))
        raise Superseded(attempt=mine, by=by)

    # --- observe ---------------------------------------------------------------------------

    def _heed_signals(self) -> bool:
        """Do what signals and notices ask for; return whether this supervisor has to leave now."""
        summons = self._summons
        summons.hear(self._log)
        while self._stops_asked < min(summons.interrupts, 2):
            self._stops_asked += 1
            now = self._stops_asked == 2
            self._append(StopRequested(by="Ctrl-C", now=now))
            if self._outage.waiting and self._flight is not None:
                self._flight.stop(self._clock(), "now" if now else "stop")
                then = "the attempt is told now, the storage when it is back"
                self._log.warning("stop requested", by="Ctrl-C", now=now, then=then)
        if summons.terminated is not None:
            if self._flight is not None:
                self._ask_to_leave(self._flight)
            elif self._seen == len(self._journal):
                if not self._released:
                    self._released = True
                    self._log.warning("leaving", why=summons.terminated)
                    self._append(Released(reason=summons.story))
                return not self._outage.waiting
        return False

    def _ask_to_leave(self, flight: Flight) -> None:
        """Let the attempt save and leave, by when the cloud takes the machine if it said so."""
        now, notice, spec = self._clock(), self._summons.notice, self._spec
        if notice is None or notice.within is None:
            flight.stop(now, "preempted")
        elif not flight.noticed:
            flight.noticed = True
            limit = spec.grace_is_limit
            within = notice.time_to_leave(time.monotonic(), spec.grace, limit=limit)
            beside = self._storage if self._spool is None else self._spool.storage
            deadline.write(beside, flight.attempt, notice.story, within)
            flight.stop(now, "preempted", within)
            flight.hurry(now, within)

    def _observe(self, flight: Flight) -> None:
        now = self._clock()
        end: Exit | None = None
        try:
            end = self._backend.poll(flight.handle)
            flight.unseen = None
        except BackendFailed as error:
            flight.unseen = str(error)
        if end is not None or now >= flight.output_at:
            flight.output_at = now + OUTPUT_EVERY
            self._pass_on(flight, now, last=end is not None)
        if end is not None or now >= flight.beat_at:
            flight.beat_at = now + self._spec.heartbeat_every / 2
            self._look_at_heartbeat(flight, now)
        if end is None and flight.overdue(now):
            self._log.warning("killed", why=flight.why)
        if end is not None:
            self._landed(flight, end)
        elif flight.lost:
            with suppress(BackendFailed):
                self._backend.kill(flight.handle)
            self._landed(flight, Exit())

    def _pass_on(self, flight: Flight, now: float, *, last: bool) -> None:
        output = self._backend.output(flight.handle, flight.output_seen)
        flight.output_seen += len(output)
        if output:
            self._voice.output(output)
        if now < flight.rows_at and not last:
            return
        # Elsewhere rows arrive as segments, and each look for a new one is paid for.
        flight.rows_at = now if self._storage.capabilities.append else now + JOURNAL_EVERY
        rows: list[dict[str, Any]] = []
        self._outage.ask(lambda: rows.extend(flight.tail.read()))
        for row in rows:
            self._voice.log_row(row)

    def _look_at_heartbeat(self, flight: Flight, now: float) -> None:
        beat, seen = self._beat_of(flight)
        if not seen:
            flight.watch.unseen(now)
            return
        if beat is not None and (flight.beat is None or beat.count != flight.beat.count):
            first = flight.beat is None
            flight.beat = beat
            self._voice.beat(beat)
            if first:
                self._append(Started(attempt=flight.attempt))
            if self._spec.warm_spare and beat.preload is not None and beat.step > 0:
                self._backend.prepare(self._spec, beat.preload)
        silent = flight.watch.observe(beat, now)
        flight.lost = flight.unseen is not None and silent.beat > self._spec.lost_after
        limit = self._spec.stall_timeout
        if limit and silent.progress > limit and not flight.stalled:
            self._log.error("stalled", no_progress_for=silent.progress, then="stacks, then kill")
            flight.stall(now, silent.progress)

    def _beat_of(self, flight: Flight) -> tuple[Beat | None, bool]:
        """Return the attempt's newest beat, and whether it could be looked at.

        While the storage is away it may be on this machine.
        """
        found: list[Beat | None] = []
        if self._outage.ask(lambda: found.append(heartbeat.read(self._storage, flight.attempt))):
            return found[0], True
        aside = self._beat_aside(flight.attempt)
        before = 0 if flight.beat is None else flight.beat.count
        return (aside, True) if aside is not None and aside.count >= before else (None, False)

    def _beat_aside(self, attempt: int) -> Beat | None:
        with suppress(StorageError):
            return None if self._spool is None else heartbeat.read(self._spool.storage, attempt)
        return None

    def _last_beat(self, attempt: int) -> Beat | None:
        """Return the last that an attempt has said, on the store or, that being away, here."""
        found = [heartbeat.read(self._storage, attempt), self._beat_aside(attempt)]
        return max(filter(None, found), key=lambda beat: beat.count, default=None)

    def _landed(self, flight: Flight, end: Exit) -> None:
        self._flight = None
        self._landed_at = self._clock()
        self._over = end.code in (exit_codes.DONE, exit_codes.STORAGE_FAILED)
        self._outage.do(lambda: self._conclude(flight, end))

    def _conclude(self, flight: Flight, end: Exit) -> None:
        """Record how an attempt ended; done again from the beginning when storage is away."""
        self._backend.finish(flight.handle, self._storage, flight.attempt)
        last = self._last_beat(flight.attempt)
        if flight.beat is None and last is not None:
            self._write(Started(attempt=flight.attempt))
        flight.beat = last or flight.beat
        code, signum = end.code, end.signal
        ended = None if flight.beat is None else flight.beat.ended
        if ended is not None and code is None:
            code, signum = ended, None  # it had said how it ends before something else ended it
        if code == exit_codes.SUPERSEDED:
            self._journal.read()
            self._act()  # raises when it is so
        error = None if flight.beat is None else flight.beat.error
        outcome, reason = judge(code, signum, error)
        if flight.verdict is not None and code != exit_codes.DONE:
            outcome, reason = flight.verdict
        elif flight.unseen is not None and end == Exit():
            outcome, reason = Outcome.LOST, f"no heartbeat, and {flight.unseen}"
        if outcome is Outcome.PREEMPTED and self._journal.existing_job().state is State.STOPPING:
            outcome = Outcome.STOPPED
        self._record_end(flight.attempt, outcome, reason, code=code, signum=signum)

    def _end(self, attempt: int, outcome: Outcome, reason: str) -> None:
        self._outage.do(lambda: self._record_end(attempt, outcome, reason))

    def _record_end(
        self,
        attempt: int,
        outcome: Outcome,
        reason: str,
        *,
        code: int | None = None,
        signum: int | None = None,
    ) -> None:
        checkpoint: str | None = None
        beat: Beat | None = None
        try:
            checkpoint = self._new_checkpoint(attempt)
            beat = self._last_beat(attempt)
        except StorageError:
            if self._spool is not None:
                raise  # it is told when the store is back
        job = self._journal.existing_job()
        fruitless = lifecycle.fruitless_after(job, checkpoint is not None)
        self._write(
            Ended(
                attempt=attempt,
                outcome=outcome,
                reason=reason,
                exit_code=code,
                signal=signum,
                advanced=checkpoint is not None,
                checkpoint=checkpoint,
                delay=backoff.delay(self._spec, fruitless, outcome),
                reached=None if beat is None else beat.reached(),
            )
        )

    # --- around ----------------------------------------------------------------------------

    def _append(self, event: Event) -> None:
        """Write an event, now or when storage is back: the attempt goes on meanwhile."""
        self._outage.do(lambda: self._write(event))

    def _write(self, event: Event) -> None:
        try:
            self._journal.append(event)
        except InvalidTransition:
            self._act()  # raises when somebody else has the job now
            if not isinstance(event, StopRequested | Released):  # it ended at the same moment
                raise

    def _waits_in_vain(self) -> bool:
        """Whether to leave, since all that is left is to wait for a storage that is away.

        Raises its `StorageError` when that is for longer than anybody has patience for.
        """
        outage = self._outage
        if outage.since is None or not (outage.waiting or self._claim_at is not None):
            return False
        if self._spool is None:
            limit, since = STORAGE_PATIENCE, outage.since
        elif self._flight is not None:
            return False
        else:
            since = max(outage.since, self._landed_at)
            if self._summons.pending and self._clock() - since > LEAVING:
                self._log.warning("leaving", why="the storage does not take what there is to tell")
                return True
            limit = spool_settings.wait_at_end() if self._over else math.inf
        if self._clock() - since > limit and outage.error is not None:
            raise outage.error
        return False

    def _new_checkpoint(self, attempt: int) -> str | None:
        """Return the newest checkpoint of an attempt beyond its start, on the store or here."""
        found = takeover.new_checkpoint(self._storage, attempt)
        if found is not None or self._spool is None:
            return found
        origin = takeover.origin_place(self._storage, attempt)
        newest = self._spool.waiting(attempt)[-1:]
        return str(newest[0]) if newest and newest[0].place > origin else None

    @property
    def _log(self) -> FilteringBoundLogger:
        return self._voice.log

    def _open_log(self, attempt: int) -> None:
        first = self._outage.log is None
        self._voice.close(away=self._outage.since is not None)
        self._voice.open(attempt)
        self._outage.log = self._voice.log
        if first:
            fencing_check.warn(self._storage, self._log)
            self._summons.listen(self._spec.preemption)

    def _abandon(self, *, hurry: bool) -> None:
        """Whatever went wrong here: leave no attempt behind that nobody watches.

        hurry: what it could still save would not count.
        """
        flight, self._flight = self._flight, None
        if flight is None:
            return
        flight.stop(self._clock(), "now" if hurry else "preempted")
        with suppress(BackendFailed):
            while self._backend.poll(flight.handle) is None:
                flight.overdue(self._clock())
                self._sleep(POLL)

    def interrupt(self) -> None:
        """Do what Ctrl-C does, for a supervisor that is not in the main thread."""
        self._summons.interrupt()

    def terminate(self) -> None:
        """Do what SIGTERM does, for a supervisor that is not in the main thread."""
        self._summons.terminate("SIGTERM")
