"""What a user asks of a job: that it exists, that it goes on, that it stops."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from outlast.errors import InvalidTransition, JobBusy, JobExists, JobUnknown
from outlast.job import process_identity, takeover
from outlast.job import spec as specs
from outlast.job.events import Resumed, StopRequested, Submitted
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import AlreadyExists, NotFound
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage, read_document


def load_spec(storage: Storage) -> JobSpec:
    """Return the spec of the job in `storage`. Raises `JobUnknown`, `SpecInvalid`."""
    try:
        return specs.decode(read_document(storage, layout.SPEC))
    except NotFound as error:
        raise JobUnknown(root=storage.root) from error


def submit(root: Storage, spec: JobSpec) -> Job:
    """Make the job `spec.job` below `root`; it is PENDING until a supervisor runs it.

    Raises `JobExists`.
    """
    storage = root.sub(spec.job)
    try:
        storage.create(layout.SPEC, specs.encode(spec))
    except AlreadyExists as error:
        raise JobExists(job=spec.job, root=root.root) from error
    return _submitted(Journal(storage), spec)


def resume(
    storage: Storage,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] | None = None,
) -> Job:
    """Make a job ready for `Supervisor.run`, with a fresh retry budget when it had ended.

    A supervisor that is gone is written off (see `succession.free`; on_wait: told what is waited
    for). A job that SUCCEEDED is returned as it is. Raises `JobUnknown`, `JobBusy`.
    """
    job = take_up(storage, clock=clock, sleep=sleep, on_wait=on_wait)
    if job.state in (State.STOPPED, State.FAILED):
        journal = Journal(storage)
        with suppress(InvalidTransition):  # somebody else resumed it; who wins the claim runs it
            return journal.append(Resumed(by=str(process_identity.here())))
        return journal.existing_job()
    return job


def take_up(
    storage: Storage,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] | None = None,
) -> Job:
    """Make a job that has not ended ready for `Supervisor.run`; else return it as it is.

    A supervisor that is gone is written off, as by `resume`. Raises `JobUnknown`, `JobBusy`.
    """
    spec = load_spec(storage)
    journal = Journal(storage)
    _submitted(journal, spec)
    return takeover.free(storage, journal, spec, clock=clock, sleep=sleep, on_wait=on_wait)


def request_stop(storage: Storage, now: bool = False, *, by: str | None = None) -> Job:
    """Ask whoever runs the job to save and stop, or (now) to kill it; return the job as it is.

    The supervisor sees the request within about a second, on whatever machine it is. With an
    owner that is gone the job is stopped at once. Raises `JobUnknown`.
    """
    spec = load_spec(storage)
    journal = Journal(storage)
    job = _submitted(journal, spec)
    if not job.state.final:
        with suppress(InvalidTransition):  # it ended at the same moment
            job = journal.append(StopRequested(by=by or str(process_identity.here()), now=now))
        job = journal.existing_job()
    if not job.state.final and job.owner is not None and job.owner.gone():
        with suppress(JobBusy):  # somebody took it over at the same moment
            return takeover.free(storage, journal, spec)
    return job


def _submitted(journal: Journal, spec: JobSpec) -> Job:
    """Return the job, submitted now if its submitter died after writing the spec."""
    if journal.job() is None:
        with suppress(InvalidTransition):  # somebody else did so at the same moment
            journal.append(Submitted(max_retries=spec.max_retries))
    return journal.existing_job()
