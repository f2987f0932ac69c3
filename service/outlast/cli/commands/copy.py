"""`outlast copy`: copy a whole job to another folder or bucket and verify the copy."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from outlast.cli.display import units
from outlast.cli.display.progress_bar import Bar
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, absolute, find_job
from outlast.cli.options import job_argument, json_option
from outlast.exit_codes import DIVERGED, DONE
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format import layout

if TYPE_CHECKING:
    from outlast_checkpoints.store.copy_job import Copied


@click.command("copy", cls=Verb)
@job_argument
@click.argument("dest", metavar="DEST")
@json_option()
def copy(root: str, job: str, dest: str, as_json: bool) -> int:
    """Copy JOB to DEST, the folder or URL of the new job, and verify every byte there.

    DEST with a trailing slash means DEST/JOB. Repeat the command to continue an interrupted copy,
    or to update a copy after JOB has continued. JOB is only read. A job that is being trained is
    refused (exit code 5).

    You can resume the copy. Damaged files of JOB are copied unchanged and reported (exit code 65).
    """
    from outlast.cli.handover import refuse_running
    from outlast_checkpoints.storage import open_storage
    from outlast_checkpoints.store.copy_job import copy_job

    place = find_job(root, job)
    url = _url(dest, place)
    if url == place.url:
        raise UsageError(
            field="DEST", problem="it is the folder of JOB itself", hint="Name another folder."
        )
    refuse_running(place.storage)
    with Bar(f"copying {place.name}") as bar:
        copied = copy_job(place.storage, open_storage(url), meter=bar)
    waiting = _waiting(place)
    if waiting:
        say(
            f"{units.count(len(waiting), 'checkpoint')} of {place.name} wait on this machine to be "
            "sent to its storage. They are not in the copy. Run `outlast resume` for JOB here to "
            "send them, then copy again.",
            err=True,
        )
    if as_json:
        print_json(
            {
                "job": place.name,
                "url": url,
                "checkpoints": [str(checkpoint) for checkpoint in copied.checkpoints],
                **asdict(copied.tally),
                "waiting": waiting,
                "damages": [str(damage) for damage in copied.damages],
            }
        )
    else:
        _print_copied(url, copied)
    return DIVERGED if copied.damages else DONE


def _url(dest: str, place: Place) -> str:
    whole = f"{dest}{place.name}" if dest.endswith("/") else dest
    return absolute(whole).rstrip("/")


def _waiting(place: Place) -> list[str]:
    """Return the checkpoints that wait on this machine to be sent to the job's storage."""
    from outlast_checkpoints.store.spool import Spool

    spool = Spool.found(place.storage)
    names = () if spool is None else spool.waiting()
    return [str(one) for one in names if not place.storage.exists(layout.manifest(one))]


def _print_copied(url: str, copied: Copied) -> None:
    for damage in copied.damages:
        say(f"DAMAGED  {damage}  (in the source as well)")
    counts = [
        f"{units.size(count)} {what}"
        for count, what in (
            (copied.tally.written, "copied"),
            (copied.tally.kept, "already there"),
            (copied.tally.linked, "shared"),
        )
        if count
    ]
    say(
        f"{url}: {units.count(len(copied.checkpoints), 'checkpoint')}, "
        f"{units.count(copied.tally.files, 'file')}, {', '.join(counts)}; every byte verified. "
        f"To continue the copy, run `outlast resume {url}`."
    )
