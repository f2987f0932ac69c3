"""`outlast events`: what happened to a job, when, and who did it."""

from __future__ import annotations

import click

from outlast.cli.display import units
from outlast.cli.display.tables import print_json_line, print_table
from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.options import job_argument, json_option


@click.command("events", cls=Verb)
@job_argument
@json_option("Print JSON Lines: one event a line, as it is stored.")
def events(root: str, job: str, as_json: bool) -> None:
    """Show what happened to JOB, oldest first: when, what, and which process did it.

    STATE is the state of the job after the event. The times are those of the clocks of the machines
    that wrote them.
    """
    import msgspec

    from outlast.cli.display import event_text
    from outlast.job.journal import Journal

    journal = Journal(find_job(root, job).storage)
    journal.existing_job()
    entries = journal.read()
    if as_json:
        for entry in entries:
            print_json_line({**msgspec.to_builtins(entry), "at": units.moment(entry.at)})
        return
    print_table(
        ["#", "AT", "EVENT", "STATE", "BY", "DETAILS"],
        [
            [
                str(entry.seq),
                units.when(entry.at),
                event_text.kind(entry.event),
                entry.state.value,
                str(entry.by),
                event_text.details(entry.event),
            ]
            for entry in entries
        ],
    )
