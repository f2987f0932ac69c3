"""`holdfast resume`: go on with a job that stopped, failed, or lost its supervisor."""

from __future__ import annotations

import click

from service.cli.group import Verb
from service.cli.options import job_argument, json_option
from service.cli.tables import print_json
from service.cli.where import find_job
from service.exit_codes import DONE


@click.command("resume", cls=Verb)
@job_argument
@click.option("--detach", is_flag=True, help="Supervise it detached, as `holdfast submit` does.")
@json_option("With --detach: print JSON.")
def resume(root: str, job: str, detach: bool, as_json: bool) -> int:
    """Go on with JOB from its last checkpoint, under supervision in the foreground.

    Any machine will do that sees its storage and its script. The job's own options stay as they
    were given; its retry budget starts anew. A job that somebody supervises is refused (exit
    code 5), one that has succeeded is left alone.
    """
    from service.cli.foreground import job_word, supervise
    from service.lifecycle import State
    from service.supervisor import resume as resume_job

    if as_json and not detach:
        raise click.UsageError("--json goes with --detach.")
    place = find_job(root, job)
    pid = None
    if resume_job(place.storage, on_wait=_say).state is State.SUCCEEDED:
        _say(f"{place.name} has succeeded already: nothing to do.")
    elif not detach:
        return supervise(place, root)
    else:
        from service.daemon import start_detached

        pid = start_detached(place.url)
    if as_json:
        print_json({"job": place.name, "url": place.url, "pid": pid})
    elif pid is not None:
        word = job_word(place, root)
        click.echo(f"{place.name}: supervised by process {pid}. holdfast logs -f {word}")
    return DONE


def _say(text: str) -> None:
    click.echo(text, err=True)
