"""`outlast fork`: a new job that starts from a checkpoint of another one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from outlast.cli.checkpoint_choice import HELP, select
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, absolute, below, find_job, job_reference
from outlast.cli.options import json_option, root_option, some_job_options

if TYPE_CHECKING:
    from outlast.job.spec import JobSpec


@click.command("fork", cls=Verb)
@click.argument("job", metavar="JOB")
@click.argument("name", metavar="NEW")
@click.argument("args", metavar="[-- ARGS]...", nargs=-1, type=click.UNPROCESSED)
@root_option()
@click.option(
    "--at",
    "start",
    metavar="CHECKPOINT",
    default="latest",
    show_default=True,
    help=f"Where to start: {HELP}",
)
@json_option()
@click.pass_context
def fork(
    ctx: click.Context,
    /,
    root: str,
    job: str,
    name: str,
    args: tuple[str, ...],
    start: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the job NEW beside JOB, which starts from a checkpoint of JOB. `outlast resume` runs it.

    NEW has JOB's script, options and history up to the checkpoint. Options that are given replace
    those of JOB, and ARGS replace the arguments of its script. JOB is only read and may be
    training. Its files are linked where possible, so a fork takes little space, and JOB can be
    pruned or deleted.

    Unchanged, NEW ends byte for byte as JOB. The optimizer with its learning rate is that of the
    checkpoint, as after any resume.
    """
    from outlast.cli.trust_gate import check_trusted
    from outlast.job.fork import fork as fork_job
    from outlast_checkpoints.storage import open_storage
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore

    place = find_job(root, job)
    check_trusted(place, root, trust=False)
    chosen = select(CheckpointStore(place.storage), start, _warn, field="--at")
    home = place.url.rpartition("/")[0] or "/"
    new = below(home, name)
    spec = _spec(ctx, place, name, args, options)
    fork_job(place.storage, open_storage(absolute(home)), spec, chosen.id)
    if as_json:
        print_json({"job": name, "url": new.url, "parent": place.url, "at": chosen.checkpoint})
    else:
        word = job_reference(new, root)
        say(f"{new.url}: forked from {chosen.checkpoint} of {place.name}. outlast resume {word}")


# Not what decides the numbers: a fork trains as its parent until the script says otherwise.
_CHANGEABLE = frozenset(
    {"save_every", "keep", "on_save_error", "audit_every", "on_nan", "rollback", "max_retries",
     "backoff", "backoff_max", "max_duration", "stall_timeout", "grace", "warm_spare", "tag", "env",
     "python"}
)  # fmt: skip
fork.params += some_job_options(_CHANGEABLE)


def _spec(
    ctx: click.Context, place: Place, name: str, args: tuple[str, ...], options: dict[str, Any]
) -> JobSpec:
    """Return the parent's spec with the options that were given."""
    import msgspec

    from outlast.job.submission import load_spec

    parent = load_spec(place.storage)
    given = {
        key: value
        for key, value in options.items()
        if ctx.get_parameter_source(key) is ParameterSource.COMMANDLINE
    }
    tags = {**parent.tags, **dict(given.pop("tag", ()))}
    env = {**parent.env, **dict(given.pop("env", ()))}
    if "grace" in given:
        given["grace_is_limit"] = True
    if args:
        given["args"] = list(args)
    return msgspec.structs.replace(
        parent, job=name, created=time.time(), tags=tags, env=env, **given
    )


def _warn(text: str) -> None:
    say(text, err=True)
