"""Takes over a job whose owner is gone, and never one whose owner may be alive."""

from __future__ import annotations

import time
from collections.abc import Callable

from outlast.errors import InvalidTransition, JobBusy
from outlast.job import (
    cluster_slot,
    fault_decision,
    heartbeat,
    process_identity,
    spool_settings,
    stop_note,
)
from outlast.job.events import Ended, Released, StopRequested
from outlast.job.heartbeat import Beat
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast.job.outcome import Outcome, judge
from outlast.job.process_identity import Identity
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import FormatError, NotFound
from outlast_checkpoints.format import layout, lineage
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document

_LOOK_EVERY = 0.2  # seconds between two looks at an owner that may be alive


def new_checkpoint(storage: Storage, attempt: int) -> str | None:
    """Return the newest checkpoint that an attempt committed beyond its start; None if none."""
    try:
        origin = origin_place(storage, attempt)
    except FormatError:
        return None  # its start is unknown, so nothing proves that it advanced
    found = map(CheckpointId.parse, storage.list(layout.CHECKPOINTS))
    own = sorted(name for name in found if name is not None and name.attempt == attempt)
    for checkpoint in reversed(own):
        if checkpoint.place <= origin:
            return None
        if storage.exists(layout.manifest(checkpoint)):
            return str(checkpoint)
    return None


def origin_place(storage: Storage, attempt: int) -> tuple[int, int, int]:
    """Return the place in the training where an attempt started. Raises `FormatError`."""
    path = layout.origin(attempt)
    try:
        origin = lineage.decode(read_document(storage, path), path)
    except NotFound:
        return (0, 0, 0)
    parsed = CheckpointId.parse(origin.checkpoint) if origin.checkpoint else None
    # The checkpoint at step 0 is no progress; otherwise a crash at step 1 would repeat forever.
    return parsed.place if parsed is not None else (0, 0, 0)


def is_gone(owner: Identity | None, beat: Beat | None) -> bool:
    """Return whether nobody acts for a job any more, although its journal names an owner.

    Args:
        owner: Owner of the job, or None.
        beat: Newest heartbeat of its attempt; it decides where the owner cannot be seen from here.
    """
    if owner is None:
        return False
    if owner.local or beat is None or beat.ended is not None:
        return owner.gone()
    return beat.process.gone()


def busy(job_id: str, job: Job) -> JobBusy:
    """Return the error that names the owner of the job."""
    owner = job.owner or Identity(host="?", pid=0, boot_id="")
    return JobBusy(
        job=job_id, state=job.state.value, pid=owner.pid, host=owner.host, attempt=job.attempt
    )


def free(
    storage: Storage,
    journal: Journal,
    spec: JobSpec,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] | None = None,
) -> Job:
    """Return the job once nobody owns it. An owner that is gone is written off in the journal.

    If the cluster has requeued this job onto us, the previous owner is written off immediately,
    dead or alive. Otherwise `quiet` decides.

    Args:
        storage: Storage of the job.
        journal: Journal of the job.
        spec: Spec of the job.
        clock: Returns monotonic seconds.
        sleep: Waits for that many seconds.
        on_wait: Called once with a text about what is waited for.

    Raises:
        JobBusy: another process has the job.
    """
    place = cluster_slot.here()
    while True:
        # Decide and write off from one reading; a second one may find another owner.
        job = None if place is None else journal.existing_job()
        if job is None or place is None or not place.follows(job.slot):
            job = quiet(storage, journal, spec, clock=clock, sleep=sleep, on_wait=on_wait)
        if job.owner is None:
            return job
        _write_off(storage, journal, job, spec)


def quiet(
    storage: Storage,
    journal: Journal,
    spec: JobSpec,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] | None = None,
) -> Job:
    """Return the job once its owner is gone, and write nothing.

    On the same machine and boot, the owner's pid and start time decide immediately. Otherwise its
    journal and heartbeat are watched: unchanged for `lost_after` seconds of this process' clock
    means gone, and any change means alive. Arguments as for `free`.

    Raises:
        JobBusy: the owner is alive; the error names it.
    """
    watch: _Watch | None = None
    while True:
        job = journal.existing_job()
        owner = job.owner
        if owner is None:
            return job
        if owner == process_identity.here() or owner.is_running():
            raise busy(spec.job, job)
        if watch is None or watch.events != len(journal):  # an event is a sign of life too
            watch = _Watch(storage, journal, spec, job, owner, clock)
        if watch.is_running():
            raise busy(spec.job, job)
        if watch.given_up():
            return job
        if on_wait is not None:
            on_wait(watch.message)
            on_wait = None
        sleep(_LOOK_EVERY)


class _Watch:
    """Watches an owner that may be alive."""

    def __init__(
        self,
        storage: Storage,
        journal: Journal,
        spec: JobSpec,
        job: Job,
        owner: Identity,
        clock: Callable[[], float],
    ) -> None:
        self.owner = owner
        self._storage, self._spec, self._job, self._clock = storage, spec, job, clock
        self._started = clock()
        self.events = len(journal)
        self._first = heartbeat.read(storage, job.attempt) if job.in_flight else None
        self._silence = heartbeat.Watch(self._started)
        self._orphan = self._find_orphan()
        if owner.gone():
            self._limit = spec.grace if self._orphan is not None else 0.0
            self.message = (
                f"the supervisor is gone; waiting for attempt {job.attempt} to save and leave"
            )
        else:
            self._limit = spec.lost_after + (0.0 if job.in_flight else job.delay)
            self.message = f"{owner} has the job; waiting {self._limit:.0f} s for a sign of life"

    def given_up(self) -> bool:
        """Return whether the owner counts as gone."""
        if self.owner.gone() and (self._orphan is None or self._orphan.gone()):
            return True
        if self._orphan is not None and self._saving():
            return False  # its save in progress may finish
        return self._clock() - self._started >= self._limit

    def is_running(self) -> bool:
        """Return whether the owner has shown a sign of life."""
        return not self.owner.gone() and self._beaten()

    def _saving(self) -> bool:
        beat = heartbeat.read(self._storage, self._job.attempt)
        silent = self._silence.observe(beat, self._clock()).beat
        saving = beat is not None and beat.activity == "saving"
        return saving and silent < self._spec.lost_after

    def _beaten(self) -> bool:
        if not self._job.in_flight:
            return False
        beat = heartbeat.read(self._storage, self._job.attempt)
        return beat is not None and (self._first is None or beat.count != self._first.count)

    def _find_orphan(self) -> Identity | None:
        """Return the process of the attempt if it is on this machine and is not the owner."""
        beat = self._first
        if beat is None or beat.ended is not None:
            return None
        return beat.process if beat.process != self.owner and beat.process.local else None


def _write_off(storage: Storage, journal: Journal, job: Job, spec: JobSpec) -> None:
    """Record that the owner is gone, unless the journal has changed meanwhile.

    A stop that the owner could not record, because the storage was away, is recorded first.
    """
    try:
        spool = spool_settings.existing_spool(storage, spec)
        if spool is not None and (note := stop_note.take(spool.storage, job.attempt)) is not None:
            job = journal.append(StopRequested(by=note.by, now=note.now))
        if job.in_flight:
            journal.append(ended_unseen(storage, job, spec))
            job = journal.existing_job()
        if job.state is State.WAITING and not job.in_flight:
            journal.append(Released(reason=f"{job.owner} is gone"))
    except InvalidTransition:
        return  # the caller looks again


def ended_unseen(storage: Storage, job: Job, spec: JobSpec) -> Ended:
    """Return the end of an attempt that nobody watched, from its last heartbeat."""
    beat = heartbeat.read(storage, job.attempt)
    code = None if beat is None else beat.ended
    outcome, reason = judge(code, None, None if beat is None else beat.error)
    if outcome is Outcome.LOST:
        reason = f"{job.owner} is gone, and attempt {job.attempt} shows no sign of life"
    decided = fault_decision.decide(storage, spec, job, beat, outcome, reason)
    checkpoint = new_checkpoint(storage, job.attempt)
    return Ended(
        attempt=job.attempt,
        outcome=decided.outcome,
        reason=decided.reason,
        rollback=decided.rollback,
        exit_code=code,
        advanced=checkpoint is not None,
        checkpoint=checkpoint,
        reached=None if beat is None else beat.reached(),
    )
