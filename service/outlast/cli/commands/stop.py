"""`outlast stop`: save and stop a job, or kill it."""

from __future__ import annotations

import time

import click

from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.options import duration, job_argument, json_option
from outlast.exit_codes import DONE, RESUMABLE

LOOK_EVERY = 0.2  # seconds between two looks


@click.command("stop", cls=Verb)
@job_argument
@click.option(
    "--now", is_flag=True, help="Kill the job; its work since the last checkpoint is lost."
)
@click.option(
    "--wait",
    type=duration,
    metavar="TIME",
    help="Wait for the job to stop. Exit with code 75 if that takes longer than TIME.",
)
@json_option()
def stop(root: str, job: str, now: bool, wait: float | None, as_json: bool) -> int:
    """Save and stop JOB. Its supervisor may run on any machine.

    `outlast resume` resumes a stopped job.
    """
    from outlast.engines import take_back
    from outlast.job.journal import Journal
    from outlast.job.lifecycle import describe
    from outlast.supervisor.supervisor import request_stop

    place = find_job(root, job)
    found = request_stop(place.storage, now=now)
    if wait is not None:
        journal = Journal(place.storage)
        until = time.monotonic() + wait
        while not found.state.final and time.monotonic() < until:
            time.sleep(LOOK_EVERY)
            found = journal.existing_job()
    take_back(found)
    if as_json:
        print_json({"job": place.name, "url": place.url, "state": found.state.value})
    else:
        click.echo(f"{place.name}: {describe(found)}")
    return DONE if wait is None or found.state.final else RESUMABLE
