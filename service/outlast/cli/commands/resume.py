"""`outlast resume`: resume a job that stopped, failed or lost its supervisor."""

from __future__ import annotations

import click

from outlast.cli.checkpoint_choice import HELP
from outlast.cli.display.say import say
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, find_job
from outlast.cli.options import json_option, root_option
from outlast.cli.trust_gate import check_trusted, trust_option
from outlast.exit_codes import DONE


@click.command("resume", cls=Verb)
@click.argument("job", metavar="[JOB]", required=False)
@root_option()
@click.option("--latest", is_flag=True, help="Resume the most recently active unfinished job.")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Resume all unfinished jobs of the root, detached. Use it after a reboot, or on the next "
    "spot machine.",
)
@click.option(
    "--from",
    "start",
    metavar="CHECKPOINT",
    help=f"Continue from this checkpoint instead of the last one: {HELP}",
)
@click.option(
    "--detach", is_flag=True, help="Run the supervisor detached, as `outlast submit` does."
)
@trust_option
@json_option("With --detach or --all: print JSON.")
def resume(
    root: str,
    job: str | None,
    latest: bool,
    everything: bool,
    start: str | None,
    detach: bool,
    trust: bool,
    as_json: bool,
) -> int:
    """Resume JOB from its last checkpoint, under supervision in the foreground.

    Any machine that can read the job's storage and script can resume it. A cluster's job returns
    to the queue. The job keeps its options, and --max-retries counts from zero again. A job that
    somebody supervises is refused (exit code 5). A succeeded job is left unchanged.

    A job that you have not submitted on this machine needs --trust once, because its folder says
    what runs. Without it, the command shows what would run. A folder of another user is refused.

    --latest and --all select unfinished jobs that nobody supervises. A job that succeeded, failed
    or was stopped is not unfinished; resume a stopped or failed job by its name. The exit code is
    0 when there is nothing to do. It is 1 when --all could not resume some of the jobs; the others
    are resumed.

    --from also continues a job that has failed or succeeded. What the job saved and logged beyond
    that checkpoint no longer counts, but stays until `outlast prune`; --from with one of those
    checkpoints, by its ID, undoes it.
    """
    if (job is not None) + latest + everything != 1:
        raise click.UsageError("Give exactly one of JOB, --latest and --all.")
    if start is not None and job is None:
        raise click.UsageError("--from requires JOB.")
    if everything:
        from outlast.cli.resume_all import resume_all

        return resume_all(root, trust=trust, as_json=as_json)
    if job is None and (job := _latest(root, trust=trust)) is None:
        return DONE
    return _resume(root, job, start=start, trust=trust, detach=detach, as_json=as_json)


def _latest(root: str, *, trust: bool) -> str | None:
    """Return the URL of the most recently active unfinished job; None when there is none."""
    from outlast.cli.resume_all import make_ready, unfinished

    for place in unfinished(root):
        refused = make_ready(place, root, trust=trust)
        if refused is None:
            return place.url
        _say(f"{place.name}: {refused.how}: {refused.note}")
    _say(f"No unfinished job in {root} is free to resume.")
    return None


def _resume(
    root: str, job: str, *, start: str | None, trust: bool, detach: bool, as_json: bool
) -> int:
    from outlast import engines
    from outlast.cli.handover import hand_over, print_place
    from outlast.cli.summary import supervise
    from outlast.job.journal import Journal
    from outlast.job.lifecycle import State
    from outlast.job.submission import load_spec
    from outlast.supervisor.supervisor import resume as resume_job

    place = find_job(root, job)
    check_trusted(place, root, trust=trust)
    detach = detach or load_spec(place.storage).engine != engines.LOCAL
    if as_json and not detach:
        raise click.UsageError("--json requires --detach.")
    before = Journal(place.storage).job()
    if (
        before is not None
        and not before.state.final
        and (there := engines.queue_state(before)) is not None
        and there.queued
    ):
        _say(f"{place.name} is already in the queue: {there}.")
        print_place(place, root, before.queued, as_json=as_json)
        return DONE
    queued = None
    if start is not None:
        _rewind(place, start)
    if resume_job(place.storage, on_wait=_say).state is State.SUCCEEDED:
        _say(f"{place.name} has already succeeded; there is nothing to do.")
    elif not detach:
        return supervise(place, root)
    else:
        queued = hand_over(place)
    print_place(place, root, queued, as_json=as_json)
    return DONE


def _rewind(place: Place, start: str) -> None:
    from outlast.cli.checkpoint_choice import select
    from outlast.job.rewind import rewind
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore

    chosen = select(CheckpointStore(place.storage), start, _say, field="--from")
    rewind(place.storage, chosen.id, on_wait=_say)
    _say(f"{place.name}: it continues from {chosen.checkpoint}.")


def _say(text: str) -> None:
    say(text, err=True)
