"""`holdfast checkpoints`, `verify` and `prune`: what is kept, whether it is good, what may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from checkpoints import layout
from checkpoints.errors import HoldfastError
from service.cli import words
from service.cli.group import Verb
from service.cli.history import processes
from service.cli.options import job_argument, json_option, retention
from service.cli.tables import print_json, print_table
from service.cli.where import Place, find_job
from service.exit_codes import DIVERGED, DONE

if TYPE_CHECKING:
    from checkpoints.history import HistoryReader
    from checkpoints.layout import CheckpointId
    from checkpoints.store import CheckpointStore

MOST_METRICS = 3


@click.command("checkpoints", cls=Verb)
@job_argument
@json_option("Print a JSON array.")
def checkpoints(root: str, job: str, as_json: bool) -> None:
    """List the checkpoints of JOB, oldest first."""
    from checkpoints.store import CheckpointStore

    store = CheckpointStore(find_job(root, job).storage)
    found = [describe(store, checkpoint) for checkpoint in store.ids()]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No checkpoints yet.")
        return
    print_table(
        ["CHECKPOINT", "STEP", "EPOCH", "SAVED FOR", "SIZE", "SAVED AT", "METRICS"],
        [_line(one) for one in found],
    )


def describe(store: CheckpointStore, checkpoint: CheckpointId) -> dict[str, Any]:
    """Return what `--json` tells of a checkpoint; a damaged manifest is said in "damage"."""
    known: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "phase": checkpoint.phase,
        "step": checkpoint.step,
        "stage": checkpoint.stage.name.lower(),
        "attempt": checkpoint.attempt,
    }
    try:
        manifest = store.manifest(checkpoint)
    except HoldfastError as error:
        return {**known, "damage": str(error)}
    progress = manifest.progress
    return {
        **known,
        "phase_name": progress.phase_name,
        "epoch": progress.epoch,
        "batch": progress.batch,
        "reason": manifest.reason,
        "parent": manifest.parent,
        "size": manifest.size,
        "files": [
            {"name": entry.name, "size": entry.size, "hash": entry.hash} for entry in manifest.files
        ],
        "metrics": dict(manifest.metrics),
        "created": words.moment(manifest.created),
        "held_ms": manifest.held_ms,
        "writer": dict(manifest.writer),
        "damage": None,
    }


def _line(one: dict[str, Any]) -> list[str]:
    if one["damage"]:
        return [one["checkpoint"], words.number(one["step"]), "-", "-", "-", "-", one["damage"]]
    metrics = sorted(one["metrics"].items(), key=lambda item: item[0] != "loss")[:MOST_METRICS]
    return [
        one["checkpoint"],
        words.number(one["step"]),
        str(one["epoch"]),
        one["reason"],
        words.size(one["size"]),
        words.local(one["created"]),
        "  ".join(f"{name} {words.metric(value)}" for name, value in metrics),
    ]


@click.command("verify", cls=Verb)
@job_argument
@click.option(
    "--deep/--quick",
    default=True,
    show_default=True,
    help="Read and hash every byte, or only look at manifests and sizes.",
)
@json_option()
def verify(root: str, job: str, deep: bool, as_json: bool) -> int:
    """Check all that JOB has stored: checkpoints, history, journal.

    Exit code 65 when something is damaged; a resume uses the newest checkpoint that is good.
    """
    found = verify_job(find_job(root, job), deep=deep)
    if as_json:
        print_json(found)
    else:
        _print_verified(found)
    return DONE if found["good"] else DIVERGED


def verify_job(place: Place, *, deep: bool) -> dict[str, Any]:
    """Return what `holdfast verify --json` prints."""
    from checkpoints.history import HistoryReader
    from checkpoints.lineage import read_lineage
    from checkpoints.store import CheckpointStore
    from service import spec as specs
    from service.journal import Journal

    storage = place.storage
    store = CheckpointStore(storage)
    parts: dict[str, Any] = {
        "spec": _part(lambda: len([specs.decode(storage.read(layout.SPEC))])),
        "journal": _part(lambda: len(Journal(storage).read())),
        "history": _part(lambda: _count_rows(HistoryReader(storage))),
    }
    _, origins = read_lineage(storage)
    parts["origins"] = {
        "good": not origins,
        "entries": None,
        "damage": "; ".join(map(str, origins)) or None,
    }
    checked = [_verify_one(store, checkpoint, deep=deep) for checkpoint in store.ids()]
    good = all(one["good"] for one in checked) and all(part["good"] for part in parts.values())
    return {
        "job": place.name,
        "url": place.url,
        "good": good,
        "deep": deep,
        "checkpoints": checked,
        "orphans": store.orphans(),
        **parts,
    }


def _count_rows(history: HistoryReader) -> int:
    return sum(len(some.steps) for some in history.columns(processes()))


def _part(count: Callable[[], int]) -> dict[str, Any]:
    """Return whether all of it could be read, which `count` tries."""
    try:
        return {"good": True, "entries": count(), "damage": None}
    except HoldfastError as error:
        return {"good": False, "entries": None, "damage": str(error)}


def _verify_one(store: CheckpointStore, checkpoint: CheckpointId, *, deep: bool) -> dict[str, Any]:
    found = store.verify(checkpoint) if deep else _look(store, checkpoint)
    damages = [{"file": damage.file, "reason": damage.reason} for damage in found]
    one: dict[str, Any] = {"checkpoint": str(checkpoint), "good": not damages, "damages": damages}
    if not damages:
        manifest = store.manifest(checkpoint)
        one |= {"files": len(manifest.files), "size": manifest.size}
    return one


def _look(store: CheckpointStore, checkpoint: CheckpointId) -> list[Any]:
    """Return the damage that manifest and sizes alone tell."""
    from checkpoints.errors import CheckpointDamaged, NotFound
    from checkpoints.store import Damage

    try:
        manifest = store.manifest(checkpoint)
    except CheckpointDamaged as error:
        return [Damage(str(checkpoint), error.fields["file"], error.fields["reason"])]
    damages = []
    for entry in manifest.files:
        try:
            size = store.storage.size(layout.checkpoint_file(checkpoint, entry.name))
        except NotFound:
            damages.append(Damage(str(checkpoint), entry.name, "it is missing"))
            continue
        if size != entry.size:
            reason = f"it has {size} bytes instead of {entry.size}"
            damages.append(Damage(str(checkpoint), entry.name, reason))
    return damages


def _print_verified(found: dict[str, Any]) -> None:
    how = "every byte read" if found["deep"] else "sizes only"
    for one in found["checkpoints"]:
        if one["good"]:
            files = f"{one['files']} files, {words.size(one['size'])}, {how}"
            click.echo(f"good     {one['checkpoint']}  {files}")
        for damage in one["damages"]:
            click.echo(f"DAMAGED  {one['checkpoint']}  {damage['file']}: {damage['reason']}")
    counted = {"history": "rows", "journal": "events"}
    for name in ("history", "journal", "spec", "origins"):
        part = found[name]
        if not part["good"]:
            click.echo(f"DAMAGED  {name}  {part['damage']}")
        elif name in counted:
            click.echo(f"good     {name}  {words.number(part['entries'])} {counted[name]}")
    if found["orphans"]:
        click.echo(
            f"{len(found['orphans'])} folders are no checkpoints of this line (cut short, or of "
            "attempts that were superseded); `holdfast prune` deletes the old ones."
        )
    total = len(found["checkpoints"])
    good = sum(one["good"] for one in found["checkpoints"])
    click.echo(f"{good} of {total} checkpoints are good." if total else "No checkpoints yet.")


@click.command("prune", cls=Verb)
@job_argument
@click.option(
    "--keep", type=retention, metavar="WHICH", help="As in `holdfast run`.  [default: the job's]"
)
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@json_option()
def prune(root: str, job: str, keep: str | None, dry_run: bool, as_json: bool) -> None:
    """Delete checkpoints of JOB that --keep does not want, and what attempts left unfinished.

    Never deleted: the newest good checkpoint, each finished phase's end, and what a running
    attempt resumed from.
    """
    from checkpoints.retention import Keep
    from checkpoints.store import CheckpointStore
    from service import spec as specs

    place = find_job(root, job)
    wanted = Keep.parse(keep or specs.decode(place.storage.read(layout.SPEC)).keep)
    store = CheckpointStore(place.storage)
    deleted = store.prune(wanted, dry_run=dry_run)
    if as_json:
        print_json({"deleted": deleted, "dry_run": dry_run, "keep": str(wanted)})
        return
    for name in deleted:
        click.echo(f"{'would delete' if dry_run else 'deleted'} {name}")
    if not deleted:
        click.echo(f"Nothing to delete: {wanted} keeps all there is.")
