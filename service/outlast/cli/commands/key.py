"""`outlast key`: make a key file, replace its key, and sign a job with it."""

from __future__ import annotations

from pathlib import Path

import click

from outlast.cli.display import units
from outlast.cli.display.say import say
from outlast.cli.group import Verb
from outlast.cli.job_address import find_job
from outlast.cli.options import job_argument
from outlast.exit_codes import DIVERGED, DONE
from outlast_checkpoints.errors import UsageError

_file = click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))


@click.group("key", no_args_is_help=True)
def key() -> None:
    """Make and replace the keys that authenticate jobs.

    A job that is run with --key-file is signed: whoever can write its folder, but does not have the
    key, can change nothing that is used. The first key of the file signs, and all its keys verify.
    """


@key.command("new", cls=Verb)
@_file
def new(file: Path) -> None:
    """Create FILE with a new random key, readable only by you.

    Keep a copy of it away from the jobs. Without the key, signed jobs cannot be resumed.
    """
    from outlast_checkpoints.storage import key_file

    ring = key_file.create(file)
    say(f"{file}: key {ring.ids[0]}. Use it with --key-file {file}, or set OUTLAST_KEY_FILE.")


@key.command("rotate", cls=Verb)
@_file
def rotate(file: Path) -> None:
    """Put a new random key first in FILE. The keys that it has still verify.

    Run `outlast key sign JOB` for each job that shall last, then delete the old lines of FILE.
    Running jobs sign with the old key until their next attempt, so keep the old lines until then.
    """
    from outlast_checkpoints.storage import key_file

    ring = key_file.rotate(file)
    say(f"{file}: key {ring.ids[0]} signs from now on; {', '.join(ring.ids[1:])} still verify.")


@key.command("sign", cls=Verb)
@job_argument
@click.option(
    "--trust",
    is_flag=True,
    help="Sign also what no key of the file has signed, as it is: a job from before the key, or "
    "one whose key is lost. Look at the job first.",
)
def sign(root: str, job: str, trust: bool) -> int:
    """Sign all documents of JOB with the first key of --key-file.

    Use it after `outlast key rotate`, or with --trust for a job that was made without a key. A job
    that is being trained is refused (exit code 5). Damaged documents are reported and left as they
    are (exit code 65).
    """
    from outlast.cli.handover import refuse_running
    from outlast.job.trust import check_owner
    from outlast_checkpoints.storage.documents import unsigned
    from outlast_checkpoints.storage.signed import SignedStorage
    from outlast_checkpoints.store.sign_job import sign_job

    place = find_job(root, job)
    storage = place.storage
    if not isinstance(storage, SignedStorage):
        raise UsageError(
            field="--key-file",
            problem="no key is set",
            hint="Make one with `outlast key new FILE`.",
        )
    check_owner(storage, place.name)
    refuse_running(unsigned(storage) if trust else storage)
    done = sign_job(storage, trust=trust)
    for path, reason in done.left.items():
        say(f"DAMAGED  {path}  {reason}")
    say(
        f"{place.name}: {units.count(done.signed, 'document')} signed with key "
        f"{storage.keys.ids[0]}; {done.kept} had been signed with it."
    )
    return DIVERGED if done.left else DONE
