"""The supervisor that a cluster starts, repeatedly, until the job is done."""

from __future__ import annotations

import sys
import time
from typing import Final

from outlast import engines, exit_codes
from outlast.errors import EngineFailed, InvalidTransition
from outlast.job import cluster_slot, standard_streams, takeover
from outlast.job.events import Queued
from outlast.job.journal import Journal
from outlast.job.lifecycle import Job, State, exit_code
from outlast.job.submission import load_spec
from outlast.supervisor.stop_requests import StopRequests
from outlast.supervisor.supervisor import Supervisor
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage

_REQUEUED: Final = "the state is saved; {engine} will restart the job as {id}"


def run(storage: Storage, requests: StopRequests | None = None) -> int:
    """Supervise the job in `storage`; return the exit code.

    A job that has ended meanwhile is not started. When this process has to leave before the job
    is done, it asks the cluster to start the job again.
    """
    spec, journal = load_spec(storage), Journal(storage)
    requests = StopRequests() if requests is None else requests

    def rest(seconds: float) -> None:
        if requests.pending:
            raise SystemExit(exit_codes.RESUMABLE)  # nothing has begun
        time.sleep(seconds)

    job = takeover.free(storage, journal, spec, sleep=rest, on_wait=_say)
    _enter(spec.engine, journal)  # only now: of two that were started, one has left
    with requests.signals():  # to the end, because a requeue sends a signal
        if not job.state.final:
            job = Supervisor(storage, requests=requests).run()
        if not job.state.final:
            _come_back(spec.engine, storage, journal)
            return exit_codes.RESUMABLE
    # A job that was stopped on request has not failed for the cluster.
    return exit_codes.DONE if job.state is State.STOPPED else exit_code(job)


def _enter(engine: str, journal: Journal) -> None:
    """Record the job's place in the cluster, if the submitter died before recording it."""
    place, job = cluster_slot.here(), journal.existing_job()
    if place is not None and not job.state.final and _id(job) != place.id:
        _queued(journal, engine, {"id": place.id})


def _come_back(engine: str, storage: Storage, journal: Journal) -> None:
    place = cluster_slot.here()
    if place is None:
        return
    try:
        handle = engines.get(engine).requeue({"id": place.id}, storage)
    except EngineFailed as error:
        _say(f"{error} Resume the job by hand: outlast resume {storage.root}")
        return
    if handle is not None:
        if handle["id"] != _id(journal.existing_job()):
            _queued(journal, engine, handle)
        _say(_REQUEUED.format(engine=engine, id=handle["id"]))


def _queued(journal: Journal, engine: str, handle: engines.base.Handle) -> None:
    try:
        journal.append(Queued(engine=engine, handle=handle))
    except InvalidTransition:
        return  # the job was just stopped


def _id(job: Job) -> str | None:
    return None if job.queued is None else job.queued.handle.get("id")


def _say(text: str) -> None:
    standard_streams.say(f"outlast: {text}")


def main(argv: list[str]) -> int:
    """Supervise the job at the URL `argv[0]`; return the exit code."""
    try:
        requests = StopRequests()
        with requests.signals(for_good=True):
            return run(open_storage(argv[0]), requests)
    except OutlastError as error:
        _say(str(error))
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
