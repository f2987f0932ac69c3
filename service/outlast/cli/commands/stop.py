"""`outlast stop`: save and stop jobs, or kill them."""

from __future__ import annotations

import time

import click

from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import absolute, find_job
from outlast.cli.options import duration, json_option, root_option
from outlast.exit_codes import DONE, FAILED, RESUMABLE
from outlast_checkpoints.errors import OutlastError

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
    """
    from outlast.cli.resume_all import unfinished
    from outlast.engines import take_back
    from outlast.job.journal import Journal
    from outlast.job.lifecycle import describe
    from outlast.supervisor.supervisor import request_stop

    if bool(jobs) == everything:
        raise click.UsageError(
            "Name the jobs to stop, or stop all jobs of the root with --all, but not both."
        )
    # All are looked up before any is stopped, so a wrong name stops none.
    places = unfinished(root) if everything else [find_job(root, job) for job in jobs]
    found, failed = {}, False
    for place in places:
        try:
            found[place.url] = request_stop(place.storage, now=now)
        except OutlastError as error:
            if len(places) == 1:
                raise
            failed = True
            click.echo(f"{place.name}: {error}", err=True)
    places = [place for place in places if place.url in found]
    until = time.monotonic() + (wait or 0.0)
    for place in places:
        journal = Journal(place.storage)
        while wait is not None and not found[place.url].state.final and time.monotonic() < until:
            time.sleep(LOOK_EVERY)
            found[place.url] = journal.existing_job()
        take_back(found[place.url])
    if as_json:
        rows = [
            {"job": place.name, "url": place.url, "state": found[place.url].state.value}
            for place in places
        ]
        print_json(rows[0] if len(jobs) == 1 else rows)
    else:
        for place in places:
            click.echo(f"{place.name}: {describe(found[place.url])}")
        if not places and not failed:
            click.echo(f"No unfinished job in {absolute(root)}.", err=True)
    left = wait is not None and not all(job.state.final for job in found.values())
    return FAILED if failed else RESUMABLE if left else DONE
