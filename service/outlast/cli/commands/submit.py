"""`outlast submit`: train under supervision, detached or in the queue of a cluster."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from outlast.cli.job_address import below
from outlast.cli.new_job import ScriptVerb, command_argument, named, new_spec, prepare
from outlast.cli.options import chosen, cluster_options, job_options, json_option
from outlast.exit_codes import DONE
from outlast_checkpoints.errors import OutlastError, UsageError


@click.command("submit", cls=ScriptVerb)
@job_options
@cluster_options
@click.option("--dry-run", is_flag=True, help="Print what would be submitted, and submit nothing.")
@json_option("Print JSON with job, url, pid and queued.")
@command_argument
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    command: tuple[str, ...],
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    """Run SCRIPT under supervision, detached from this terminal.

    With --engine slurm or kubernetes, the job runs on a cluster. The cluster restarts it until
    it is done: after a preemption, at the end of its time limit, and after the loss of its node.

    `outlast submit` takes the options of `outlast run`, --dry-run, --json and those of Slurm.
    `outlast logs -f JOB` follows the job, and `outlast stop JOB` stops it.
    """
    from outlast.cli.handover import hand_over, plan, print_place
    from outlast.job.events import StopRequested
    from outlast.job.journal import Journal

    given = chosen(options)
    if given and options["engine"] == "local":
        raise UsageError(
            field=f"--{given[0][0]}",
            problem="it applies only to jobs in the queue of a cluster",
            hint="Add --engine slurm.",
        )
    options["engine_option"] = (*options["engine_option"], *given)
    if dry_run:
        name, what = named(ctx, command, options)
        spec = new_spec(ctx, name, what, options)
        click.echo(plan(below(options["root"], name).storage, spec), nl=False)
        return DONE
    place, finished = prepare(ctx, command, options)
    try:
        queued = None if finished else hand_over(place)
    except OutlastError:
        # Nothing runs the job, so it is not pending. `outlast resume` takes it up.
        with suppress(OutlastError):
            Journal(place.storage).append(StopRequested(by="a submission that failed"))
        raise
    print_place(place, options["root"], queued, as_json=as_json)
    return DONE
