"""Submits, resumes and stops jobs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from outlast.errors import InvalidTransition, JobBusy, JobExists, JobRemoved, JobUnknown
from outlast.job import process_identity, takeover, trust
from outlast.job import spec as specs
from outlast.job.events import Resumed, StopRequested, Submitted
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import AlreadyExists, NotFound, StorageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document


def load_spec(storage: Storage) -> JobSpec:
    """Return the spec of the job in `storage`.

    Raises:
        JobUnknown: there is no job.
        SpecInvalid: the spec cannot be read.
    """
    try:
        return specs.decode(read_document(storage, layout.SPEC))
    except NotFound as error:
        raise JobUnknown(root=storage.root) from error


def submit(root: Storage, spec: JobSpec) -> Job:
    """Create the job `spec.job` below `root`. It is PENDING until a supervisor runs it.

    Raises:
        JobExists: a job of this name exists.
        JobForeign: another user has made a folder of this name.
    """
    storage, document = root.sub(spec.job), specs.encode(spec)
    trust.check_owner(storage, spec.job)  # somebody may have made the folder in a shared root
    try:
        storage.create(layout.SPEC, document)
    except AlreadyExists as error:
        raise JobExists(job=spec.job, root=root.root) from error
    except StorageError:
        folder = storage.local_path("")
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()  # only if it is empty
        raise
    trust.remember(document, storage.root)
    return _submitted(Journal(storage), spec)


def resume(
    storage: Storage,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] | None = None,
) -> Job:
    """Make a job ready for `Supervisor.run`, with a new retry budget if it had ended.

    A supervisor that is gone is written off. A job that has succeeded is returned unchanged.

    Args:
        storage: Storage of the job.
        clock: Returns monotonic seconds.
        sleep: Waits for that many seconds.
        on_wait: Called once with a text about what is waited for.

    Raises:
        JobUnknown: there is no job.
        JobBusy: another process has the job.
    """
    job = resume_unfinished(storage, clock=clock, sleep=sleep, on_wait=on_wait)
    if job.state in (State.STOPPED, State.FAILED):
        journal = Journal(storage)
        with suppress(
            InvalidTransition
        ):  # another process resumed it; the winner of the claim runs it
            return journal.append(Resumed(by=str(process_identity.here())))
        return journal.existing_job()
    return job


def resume_unfinished(
    storage: Storage,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[str], None] | None = None,
) -> Job:
    """Make an unfinished job ready for `Supervisor.run`; return an ended job unchanged.

    Like `resume`, it writes off a supervisor that is gone; arguments and errors are the same.
    """
    spec = load_spec(storage)
    journal = Journal(storage)
    _submitted(journal, spec)
    return takeover.free(storage, journal, spec, clock=clock, sleep=sleep, on_wait=on_wait)


def request_stop(storage: Storage, now: bool = False, *, by: str | None = None) -> Job:
    """Ask the supervisor of a job to save and stop it; return the job.

    The supervisor sees the request within about a second, on any machine. If the owner is gone,
    the job is stopped immediately.

    Args:
        storage: Storage of the job.
        now: Kill the attempt instead of letting it save.
        by: Who wants it; default: this process.

    Raises:
        JobUnknown: there is no job.
    """
    spec = load_spec(storage)
    journal = Journal(storage)
    job = _submitted(journal, spec)
    if not job.state.final:
        with suppress(InvalidTransition):  # the job ended at the same moment
            job = journal.append(StopRequested(by=by or str(process_identity.here()), now=now))
        job = journal.existing_job()
    if not job.state.final and job.owner is not None and job.owner.gone():
        with suppress(JobBusy):  # another process took it over at the same moment
            return takeover.free(storage, journal, spec)
    return job


def _submitted(journal: Journal, spec: JobSpec) -> Job:
    """Return the job; submit it now if its submitter died after writing the spec."""
    if journal.job() is None:
        with suppress(InvalidTransition):  # another process did so at the same moment
            journal.append(Submitted(max_retries=spec.max_retries))
    job = journal.existing_job()
    if job.state is State.REMOVED:
        raise JobRemoved(root=journal.root)
    return job
