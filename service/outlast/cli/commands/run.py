"""`outlast run`: train under supervision, in the foreground."""

from __future__ import annotations

from typing import Any

import click

from outlast.cli.new_job import ScriptVerb, command_argument, prepare
from outlast.cli.options import job_options
from outlast.exit_codes import DONE
from outlast_checkpoints.errors import UsageError


@click.command("run", cls=ScriptVerb)
@job_options
@command_argument
@click.pass_context
def run(ctx: click.Context, /, command: tuple[str, ...], **options: Any) -> int:
    """Run SCRIPT as `python SCRIPT ARGS` would, under supervision in the foreground.

    Put all options before SCRIPT; everything after it belongs to the script. An option can also
    come from an OUTLAST_* variable (OUTLAST_SAVE_EVERY for --save-every) or from --config. The
    command line overrides the environment, and the environment overrides the file.

    After a crash or a preemption, the script restarts and resumes from its last checkpoint. The
    first Ctrl-C saves and stops the job, the second one kills it. If the job --name exists, the
    command fails unless you give --resume-if-exists; `outlast resume` resumes such a job.
    """
    from outlast import engines
    from outlast.cli.summary import supervise

    if options["engine"] != engines.LOCAL and options["engine"] in engines.names():
        problem = f"{options['engine']} runs jobs from a queue, not in the foreground"
        raise UsageError(field="--engine", problem=problem, hint="Use `outlast submit`.")
    place, finished = prepare(ctx, command, options)
    return DONE if finished else supervise(place, options["root"])
