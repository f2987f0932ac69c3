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
    """Run SCRIPT under supervision in the foreground, as `python SCRIPT ARGS` would.

    All options go before SCRIPT; what follows it is the script's own. Each can come from a
    OUTLAST_* variable (--save-every: OUTLAST_SAVE_EVERY) or from --config; the command line
    goes before the environment, that before the file.

    After a crash or a preemption it is started again and goes on from its last checkpoint.
    Ctrl-C once saves and stops, twice stops at once. A --name that exists already is refused,
    unless --resume-if-exists is given; `outlast resume` goes on with it.
    """
    from outlast import engines
    from outlast.cli.summary import supervise

    if options["engine"] != engines.LOCAL and options["engine"] in engines.names():
        problem = f"{options['backend']} runs jobs from its queue, not in the foreground"
        raise UsageError(field="--engine", problem=problem, hint="Use `outlast submit`.")
    place, finished = prepare(ctx, command, options)
    return DONE if finished else supervise(place, options["root"])
