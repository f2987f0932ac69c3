"""`outlast prune`: delete checkpoints that retention does not keep, and leftovers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from outlast.cli.display import units
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, find_job
from outlast.cli.options import job_argument, json_option
from outlast.cli.values import duration, retention
from outlast_checkpoints.format import layout

if TYPE_CHECKING:
    from outlast_checkpoints.store.garbage import Leftover


@click.command("prune", cls=Verb)
@job_argument
@click.option(
    "--keep",
    type=retention,
    metavar="WHICH",
    help="Checkpoints to keep, as in `outlast run`.  [default: the job's]",
)
@click.option(
    "--older-than",
    type=duration,
    metavar="TIME",
    default="1d",
    show_default=True,
    help="Keep leftovers younger than this, because somebody may still be writing them.",
)
@click.option(
    "--dry-run", is_flag=True, help="List what would be deleted and why, and delete nothing."
)
@json_option()
def prune(
    root: str, job: str, keep: str | None, older_than: float, dry_run: bool, as_json: bool
) -> None:
    """Delete the checkpoints of JOB that --keep does not keep, and leftovers of its attempts.

    These are never deleted: the newest good checkpoint, the end of each finished phase, the
    checkpoint that a running attempt resumed from, and files that a manifest names or that a
    commit in progress may name.

    Leftovers are uncommitted checkpoints, temporary files and unfinished uploads to S3. The clock
    of the storage measures their age.
    """
    from outlast.job.submission import load_spec
    from outlast.job.trust import check_owner
    from outlast_checkpoints.format.retention import Keep
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore
    from outlast_checkpoints.store.garbage import leftovers

    place = find_job(root, job)
    check_owner(place.storage, place.name)
    wanted = Keep.parse(keep) if keep else load_spec(place.storage).retention
    unwanted = CheckpointStore(place.storage).unwanted(wanted)
    left = leftovers(place.storage, older_than=older_than, training=_is_running(place))
    ours = {layout.checkpoint_dir(checkpoint) for checkpoint in unwanted}
    left = [one for one in left if one.path not in ours and _folder(one) not in ours]
    if not dry_run:
        store = CheckpointStore(place.storage)
        for checkpoint in unwanted:
            store.delete(checkpoint)
        for one in left:
            one.delete(place.storage)
    if as_json:
        print_json(
            {
                "deleted": [str(checkpoint) for checkpoint in unwanted],
                "reasons": {str(checkpoint): reason for checkpoint, reason in unwanted.items()},
                "leftovers": [
                    {"path": one.path, "reason": one.reason, "age": one.age, "size": one.size}
                    for one in left
                ],
                "dry_run": dry_run,
                "keep": str(wanted),
            }
        )
        return
    done = "would delete" if dry_run else "deleted"
    for checkpoint, reason in unwanted.items():
        say(f"{done} {checkpoint}  ({reason})")
    for one in left:
        size = f", {units.size(one.size)}" if one.size else ""
        say(f"{done} {one.path}  ({one.reason}{size}, {units.duration(one.age)} old)")
    if not unwanted and not left:
        say(f"Nothing to delete: {wanted} keeps every checkpoint.")


def _folder(one: Leftover) -> str:
    return one.path.rpartition("/")[0]


def _is_running(place: Place) -> bool:
    """Return whether somebody may be training the job, without waiting to find out."""
    from outlast.job.journal import Journal

    job = Journal(place.storage).job()
    return job is not None and job.owner is not None and not job.owner.gone()
