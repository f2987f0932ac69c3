"""`outlast verify`: check the stored bytes of one job, or of all jobs below a root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from outlast.cli.display import units
from outlast.cli.display.progress_bar import Bar
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, absolute, find_job, jobs_below
from outlast.cli.options import json_option, root_option
from outlast.errors import JobNotFound
from outlast.exit_codes import DIVERGED, DONE
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format import layout

if TYPE_CHECKING:
    from outlast_checkpoints.history import HistoryReader
    from outlast_checkpoints.store.verify import Audited

_COUNTED = {"history": "rows", "journal": "events"}


@click.command("verify", cls=Verb)
@click.argument("job", metavar="[JOB|ROOT]", required=False)
@root_option()
@click.option(
    "--deep/--quick",
    default=True,
    show_default=True,
    help="Read and hash every byte, or check only manifests and sizes.",
)
@json_option()
def verify(root: str, job: str | None, deep: bool, as_json: bool) -> int:
    """Verify everything that JOB has stored: checkpoints, history, journal and spec.

    With a ROOT, or without an argument, verify all jobs below it. Several files are read at a
    time, and a file that checkpoints share is read once.

    The exit code is 65 when something is damaged. A resume uses the newest good checkpoint.
    """
    place = None if job is None else _find(root, job)
    if place is not None:
        ((found, problem),) = _verified([place], deep=deep)
        if problem is not None:
            raise problem
        if as_json:
            print_json(found)
        else:
            _print_job(found)
        return DONE if found["good"] else DIVERGED
    url = absolute(root if job is None else job)
    verified = _verified(jobs_below(url), deep=deep)
    jobs = [found for found, _ in verified]
    if as_json:
        good = all(found["good"] for found in jobs)
        print_json({"root": url, "good": good, "deep": deep, "jobs": jobs})
    else:
        _print_root(url, jobs)
    if any(not found["good"] and "problem" not in found for found in jobs):
        return DIVERGED
    return max((problem.exit_code for _, problem in verified if problem), default=DONE)


def _find(root: str, job: str) -> Place | None:
    """Return the place of a job; None for a root. Raises `JobNotFound` when it is neither."""
    try:
        return find_job(root, job)
    except JobNotFound:
        if jobs_below(job):
            return None
        raise


def _verified(
    places: Sequence[Place], *, deep: bool
) -> list[tuple[dict[str, Any], OutlastError | None]]:
    """Return the JSON fields of each job, and the error that ended its verification early."""
    from outlast_checkpoints.store.checkpoint_store import CheckpointStore
    from outlast_checkpoints.store.verify import audit

    stores = [CheckpointStore(place.storage) for place in places]
    what = f"verifying {places[0].name}" if len(places) == 1 else f"verifying {len(places)} jobs"
    with Bar(what) as bar:
        audits = audit(stores, deep=deep, meter=bar)
    verified: list[tuple[dict[str, Any], OutlastError | None]] = []
    for place, store, found in zip(places, stores, audits, strict=True):
        known: dict[str, Any] = {"job": place.name, "url": place.url}
        try:
            if found.problem is not None:
                raise found.problem
            parts = _parts(place)
            checked = [_checked(one) for one in found.checkpoints]
            good = all(one["good"] for one in [*checked, *parts.values()])
            told = {"checkpoints": checked, "orphans": store.orphans(), **parts}
            verified.append(({**known, "good": good, "deep": deep, **told}, None))
        except OutlastError as error:
            verified.append(({**known, "good": False, "deep": deep, "problem": str(error)}, error))
    return verified


def _parts(place: Place) -> dict[str, dict[str, Any]]:
    """Verify the spec, journal, history and origins of a job."""
    from outlast.job import spec as specs
    from outlast.job.journal import Journal
    from outlast_checkpoints.format.lineage import read_lineage
    from outlast_checkpoints.history import HistoryReader

    storage = place.storage
    parts: dict[str, dict[str, Any]] = {
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
    return parts


def _count_rows(history: HistoryReader) -> int:
    return sum(len(some.steps) for some in history.columns())


def _part(count: Callable[[], int]) -> dict[str, Any]:
    """Return whether `count` could read everything, and what it counted."""
    try:
        return {"good": True, "entries": count(), "damage": None}
    except OutlastError as error:
        return {"good": False, "entries": None, "damage": str(error)}


def _checked(one: Audited) -> dict[str, Any]:
    damages = [{"file": damage.file, "reason": damage.reason} for damage in one.damages]
    told: dict[str, Any] = {
        "checkpoint": str(one.checkpoint),
        "good": not damages,
        "damages": damages,
    }
    if one.manifest is not None and not damages:
        told |= {"files": len(one.manifest.files), "size": one.manifest.size}
    return told


def _print_job(found: dict[str, Any]) -> None:
    how = "every byte read" if found["deep"] else "sizes only"
    for one in found["checkpoints"]:
        if one["good"]:
            files = f"{one['files']} files, {units.size(one['size'])}, {how}"
            click.echo(f"good     {one['checkpoint']}  {files}")
    for damage in _damages(found):
        click.echo(f"DAMAGED  {damage}")
    for name, what in _COUNTED.items():
        if found[name]["good"]:
            click.echo(f"good     {name}  {units.number(found[name]['entries'])} {what}")
    if found["orphans"]:
        click.echo(
            f"{len(found['orphans'])} folders hold no checkpoint of this lineage (unfinished, or "
            "of superseded attempts); `outlast prune` deletes the old ones."
        )
    total = len(found["checkpoints"])
    good = sum(one["good"] for one in found["checkpoints"])
    click.echo(f"{good} of {total} checkpoints are good." if total else "No checkpoints yet.")


def _damages(found: dict[str, Any]) -> list[str]:
    """Return one line for each damage of a job."""
    if "problem" in found:
        return [found["problem"]]
    lines = [
        f"{one['checkpoint']}  {damage['file']}: {damage['reason']}"
        for one in found["checkpoints"]
        for damage in one["damages"]
    ]
    parts = ("history", "journal", "spec", "origins")
    return lines + [f"{name}  {found[name]['damage']}" for name in parts if not found[name]["good"]]


def _print_root(url: str, jobs: list[dict[str, Any]]) -> None:
    for found in jobs:
        if found["good"]:
            size = sum(one["size"] for one in found["checkpoints"])
            click.echo(
                f"good     {found['job']}  {len(found['checkpoints'])} checkpoints, "
                f"{units.size(size)}, {units.number(found['history']['entries'])} rows"
            )
        kind = "UNKNOWN" if "problem" in found else "DAMAGED"
        for damage in _damages(found):
            click.echo(f"{kind}  {found['job']}  {damage}")
    good = sum(found["good"] for found in jobs)
    click.echo(f"{good} of {len(jobs)} jobs in {url} are good." if jobs else f"No jobs in {url}.")
