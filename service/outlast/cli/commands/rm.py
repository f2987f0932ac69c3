"""`outlast rm`: delete jobs that have ended."""

from __future__ import annotations

import time

import click

from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, absolute, find_job, jobs_below, naming
from outlast.cli.options import json_option, root_option
from outlast.cli.values import duration
from outlast.errors import JobNotFound
from outlast.exit_codes import DONE, FAILED
from outlast_checkpoints.errors import OutlastError


@click.command("rm", cls=Verb)
@click.argument("jobs", metavar="[JOB]...", nargs=-1)
@root_option()
@click.option(
    "--older-than",
    type=duration,
    metavar="TIME",
    help="Delete only jobs that ended longer ago than this; without JOB, all of the root.",
)
@click.option("--dry-run", is_flag=True, help="List what would be deleted, and delete nothing.")
@json_option("Print a JSON array.")
def remove(
    root: str, jobs: tuple[str, ...], older_than: float | None, dry_run: bool, as_json: bool
) -> int:
    """Delete each JOB with its checkpoints, history and logs, and its spool on this machine.

    A job that has not ended is refused (exit code 5); with --older-than and no JOB, such jobs are
    left alone. Repeat the command after an interruption.
    """
    if not jobs and older_than is None:
        raise click.UsageError("Name the jobs to delete, or give --older-than.")
    places = [_find(root, job) for job in jobs] if jobs else jobs_below(root)
    if older_than is not None:
        places = [place for place in places if _ended_for(place) > older_than]
    rows, failed = [], None
    for place in places:
        try:
            _remove(place, dry_run=dry_run)
        except OutlastError as error:
            if len(places) == 1:
                raise
            failed = error
            say(f"{place.name}: {error}", err=True)
            continue
        rows.append({"job": place.name, "url": place.url, "dry_run": dry_run})
        if not as_json:
            say(f"{'would delete' if dry_run else 'deleted'} {place.url}")
    if as_json:
        print_json(rows)
    elif not places:
        say(f"Nothing to delete in {absolute(root)}.")
    return DONE if failed is None else FAILED


def _find(root: str, job: str) -> Place:
    """Return the place of a job, also of one that is half deleted and has no spec."""
    from outlast.job.removal import is_half_removed
    from outlast_checkpoints.storage import open_storage

    try:
        return find_job(root, job)
    except JobNotFound:
        plain = "://" not in job and "/" not in job
        with naming("JOB"):
            url = absolute(f"{absolute(root).rstrip('/')}/{job}" if plain else job).rstrip("/")
            storage = open_storage(url)
        if not is_half_removed(storage):
            raise
        return Place(storage, url, url.rsplit("/", 1)[-1])


def _ended_for(place: Place) -> float:
    """Return for how many seconds a job has been over, by this machine's clock; else -1."""
    from outlast.job.journal import Journal

    try:
        entry = Journal(place.storage).newest()
    except OutlastError as error:
        say(f"{place.name}: {error}", err=True)
        return -1.0
    return time.time() - entry.at if entry is not None and entry.state.final else -1.0


def _remove(place: Place, *, dry_run: bool) -> None:
    from outlast.job import removal
    from outlast.job.trust import check_owner
    from outlast_checkpoints.storage import open_storage

    check_owner(place.storage, place.name)
    if dry_run:
        removal.check_ended(place.storage, place.name)
    else:
        removal.remove(open_storage(place.url.rpartition("/")[0] or "/"), place.name)
