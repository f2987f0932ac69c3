"""`outlast stop`: save and stop jobs, or kill them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, absolute, find_job
from outlast.cli.options import json_option, root_option
from outlast.cli.values import duration
from outlast.exit_codes import DONE, FAILED, RESUMABLE
from outlast_checkpoints.errors import OutlastError, StorageError, StorageFull

if TYPE_CHECKING:
    from outlast.job.lifecycle import Job

LOOK_EVERY = 0.2  # seconds between two looks


@click.command("stop", cls=Verb)
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@root_option()
@click.option("--all", "everything", is_flag=True, help="Stop every unfinished job of the root.")
@click.option(
    "--now", is_flag=True, help="Kill the jobs; their work since the last checkpoint is lost."
)
@click.option(
    "--wait",
    type=duration,
    metavar="TIME",
    help="Wait for the jobs to stop. Exit with code 75 if that takes longer than TIME.",
)
@json_option("Print JSON: an object for one JOB, an array for several or --all.")
def stop(
    root: str,
    jobs: tuple[str, ...],
    everything: bool,
    now: bool,
    wait: float | None,
    as_json: bool,
) -> int:
    """Save and stop each JOB. Its supervisor may run on any machine.

    Without --wait, the command only asks the jobs to stop. It asks all of them before it waits for
    any. `outlast resume` resumes a stopped job.

    If the storage cannot be reached, a supervisor on this machine is asked through its spool.
    """
    from outlast.cli.resume_all import unfinished
    from outlast.engines import remove_from_queue
    from outlast.job.journal import Journal
    from outlast.job.lifecycle import describe
    from outlast.job.trust import check_owner
    from outlast.supervisor.supervisor import request_stop
    from outlast_checkpoints.storage.retry_budget import BRIEF, patience

    if bool(jobs) == everything:
        raise click.UsageError(
            "Name the jobs to stop, or stop all jobs of the root with --all, but not both."
        )
    # All are looked up before any is stopped, so a wrong name stops none.
    try:
        with patience(BRIEF):
            places = unfinished(root) if everything else [find_job(root, job) for job in jobs]
    except StorageError as error:
        code = _stop_here(root, jobs, now=now, as_json=as_json, error=error)
        return RESUMABLE if wait is not None and code == DONE else code
    found, failed = {}, False
    for place in places:
        try:
            check_owner(place.storage, place.name)
            found[place.url] = request_stop(place.storage, now=now)
            _leave_note(place, found[place.url], now=now)
        except OutlastError as error:
            if isinstance(error, StorageFull):
                say(f"{place.name}: {_by_signal(place)}", err=True)
            if len(places) == 1:
                raise
            failed = True
            say(f"{place.name}: {error}", err=True)
    places = [place for place in places if place.url in found]
    until = time.monotonic() + (wait or 0.0)
    for place in places:
        journal = Journal(place.storage)
        while wait is not None and not found[place.url].state.final and time.monotonic() < until:
            time.sleep(LOOK_EVERY)
            found[place.url] = job = journal.existing_job()
            if not job.state.final and job.owner is not None and job.owner.gone():
                found[place.url] = request_stop(place.storage, now=now)  # writes it off
        remove_from_queue(found[place.url], place.storage)
    if as_json:
        rows = [
            {"job": place.name, "url": place.url, "state": found[place.url].state.value}
            for place in places
        ]
        print_json(rows[0] if len(jobs) == 1 else rows)
    else:
        for place in places:
            say(f"{place.name}: {describe(found[place.url])}")
        if not places and not failed:
            say(f"No unfinished job in {absolute(root)}.", err=True)
    left = wait is not None and not all(job.state.final for job in found.values())
    return FAILED if failed else RESUMABLE if left else DONE


def _by_signal(place: Place) -> str:
    """Return how to stop a job whose storage has no room for the request."""
    from outlast.job.journal import Journal

    owner = Journal(place.storage).existing_job().owner
    who = "its supervisor" if owner is None else str(owner)
    return f"the request needs a little space; without it, send SIGTERM to {who}"


def _leave_note(place: Place, job: Job, *, now: bool) -> None:
    """Tell a supervisor on this machine that cannot reach the storage, although we can."""
    from outlast.cli.job_status import newest_beat
    from outlast.job import process_identity, stop_note
    from outlast.job.spool_settings import existing_spool
    from outlast.job.submission import load_spec

    if job.state.final or place.storage.capabilities.local:
        return
    spec = load_spec(place.storage)
    spool, beat = existing_spool(place.storage, spec), newest_beat(place.storage, spec, job.attempt)
    if spool is not None and beat is not None and beat.away_since is not None:
        note = stop_note.StopNote(by=str(process_identity.here()), now=now)
        stop_note.leave(spool.storage, job.attempt, note)


def _stop_here(
    root: str, jobs: tuple[str, ...], *, now: bool, as_json: bool, error: StorageError
) -> int:
    """Stop jobs whose storage cannot be reached, through their supervisors on this machine."""
    from outlast.cli import offline_status
    from outlast.job import process_identity

    by = str(process_identity.here())
    asked = [offline_status.ask_to_stop(root, job, by=by, now=now) for job in jobs]
    told = [one for one in asked if one is not None]
    if not told:
        raise error
    for job, one in zip(jobs, asked, strict=True):
        if one is None:
            say(f"{job}: {error}", err=True)
        elif not as_json:
            say(
                f"{one['job']}: its supervisor on this machine was asked to stop attempt "
                f"{one['attempt']}. The storage cannot be reached: {error.fields['reason']}"
            )
    if as_json:
        rows = [{**one, "state": None, "reason": str(error)} for one in told]
        print_json(rows[0] if len(jobs) == 1 else rows)
    return FAILED if len(told) < len(jobs) else DONE
