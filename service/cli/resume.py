"""`holdfast resume`: go on with a job that stopped, failed, or lost its supervisor."""

from __future__ import annotations

import click

from service.cli.group import Verb
from service.cli.options import job_argument, json_option
from service.cli.where import find_job
from service.exit_codes import DONE


@click.command("resume", cls=Verb)
@job_argument
@click.option("--detach", is_flag=True, help="Supervise it detached, as `holdfast submit` does.")
@json_option("With --detach: print JSON.")
def resume(root: str, job: str, detach: bool, as_json: bool) -> int:
    """Go on with JOB from its last checkpoint, under supervision in the foreground.

    Any machine will do that sees its storage and its script; a job of a cluster goes into its queue
    again. The job's own options stay as they were given; its retry budget starts anew. A job that
    somebody supervises is refused (exit code 5), one that has succeeded is left alone.
    """
    from service import engines
    from service.cli.foreground import supervise
    from service.cli.handing_over import hand_over, standing, tell
    from service.journal import Journal
    from service.lifecycle import State
    from service.submission import load_spec
    from service.supervisor import resume as resume_job

    place = find_job(root, job)
    detach = detach or load_spec(place.storage).backend != engines.LOCAL
    if as_json and not detach:
        raise click.UsageError("--json goes with --detach.")
    before = Journal(place.storage).existing_job()
    if not before.state.final and (there := standing(before)) is not None and there.queued:
        _say(f"{place.name} is in the queue already: {there}.")
        tell(place, root, before.queued, as_json=as_json)
        return DONE
    queued = None
    if resume_job(place.storage, on_wait=_say).state is State.SUCCEEDED:
        _say(f"{place.name} has succeeded already: nothing to do.")
    elif not detach:
        return supervise(place, root)
    else:
        queued = hand_over(place)
    tell(place, root, queued, as_json=as_json)
    return DONE


def _say(text: str) -> None:
    click.echo(text, err=True)
