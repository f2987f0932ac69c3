"""`outlast resume`: resume a job that stopped, failed or lost its supervisor."""

from __future__ import annotations

import click

from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.options import json_option, root_option
from outlast.exit_codes import DONE


@click.command("resume", cls=Verb)
@click.argument("job", metavar="[JOB]", required=False)
@root_option()
@click.option("--latest", is_flag=True, help="Resume the most recently active unfinished job.")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Resume all unfinished jobs of the root, detached. Use it after a reboot.",
)
@click.option(
    "--detach", is_flag=True, help="Run the supervisor detached, as `outlast submit` does."
)
@json_option("With --detach or --all: print JSON.")
def resume(
    root: str, job: str | None, latest: bool, everything: bool, detach: bool, as_json: bool
) -> int:
    """Resume JOB from its last checkpoint, under supervision in the foreground.

    Any machine that can read the job's storage and script can resume it. A job of a cluster goes
    back into the queue. The job keeps its options, and its retry budget starts anew. A job that is
    being supervised is refused (exit code 5), and a job that has succeeded stays as it is.

    --latest and --all take only jobs that have not ended and that nobody supervises. Resume a
    stopped or failed job by its name. The exit code is 0 when there is nothing to do, and 1 when
    --all could not resume some of the jobs; the others are resumed.
    """
    if (job is not None) + latest + everything != 1:
        raise click.UsageError("Give exactly one of JOB, --latest and --all.")
    if everything:
        from outlast.cli.resume_all import bring_all_back

        return bring_all_back(root, as_json=as_json)
    if job is None and (job := _latest(root)) is None:
        return DONE
    return _resume(root, job, detach=detach, as_json=as_json)


def _latest(root: str) -> str | None:
    """Return the URL of the most recently active unfinished job; None when there is none."""
    from outlast.cli.resume_all import take_up, unfinished

    for place in unfinished(root):
        in_the_way = take_up(place)
        if in_the_way is None:
            return place.url
        _say(f"{place.name}: {in_the_way.how}: {in_the_way.note}")
    _say(f"No unfinished job in {root} is free to resume.")
    return None


def _resume(root: str, job: str, *, detach: bool, as_json: bool) -> int:
    from outlast import engines
    from outlast.cli.handover import hand_over, tell
    from outlast.cli.summary import supervise
    from outlast.job.journal import Journal
    from outlast.job.lifecycle import State
    from outlast.job.submission import load_spec
    from outlast.supervisor.supervisor import resume as resume_job

    place = find_job(root, job)
    detach = detach or load_spec(place.storage).engine != engines.LOCAL
    if as_json and not detach:
        raise click.UsageError("--json requires --detach.")
    before = Journal(place.storage).existing_job()
    if not before.state.final and (there := engines.standing(before)) is not None and there.queued:
        _say(f"{place.name} is already in the queue: {there}.")
        tell(place, root, before.queued, as_json=as_json)
        return DONE
    queued = None
    if resume_job(place.storage, on_wait=_say).state is State.SUCCEEDED:
        _say(f"{place.name} has already succeeded; there is nothing to do.")
    elif not detach:
        return supervise(place, root)
    else:
        queued = hand_over(place)
    tell(place, root, queued, as_json=as_json)
    return DONE


def _say(text: str) -> None:
    click.echo(text, err=True)
