"""`outlast verify`: check the stored bytes of one job, or of all jobs below a root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from outlast.cli.display import units
from outlast.cli.display.progress_bar import Bar
from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.group import Verb
from outlast.cli.job_address import Place, absolute, find_job, jobs_below, naming
from outlast.cli.options import json_option, root_option
from outlast.errors import JobNotFound
from outlast.exit_codes import DIVERGED, DONE
from outlast_checkpoints.errors import OutlastError, named
from outlast_checkpoints.storage.documents import is_signed

if TYPE_CHECKING:
    from outlast_checkpoints.history import HistoryReader
    from outlast_checkpoints.storage.base import Storage
    from outlast_checkpoints.store.verify import Audited

_COUNTED = {"history": "rows", "journal": "events"}
_HASHES_ONLY = "The hashes match. They are not authenticated: no key is set (--key-file)."
_AUTHENTICATED = (
    "Authenticated with the key: all documents, files and the history up to the newest checkpoint."
)


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

    With ROOT, a folder or URL that holds jobs, verify all of them. Without an argument, verify all
    jobs below --root. Files are read in parallel, and a file that checkpoints share is read once.

    With --key-file, the documents and hashes must also be those that a holder of the key wrote.
    Without a key, only accidents are found: whoever can write a job can change its hashes.

    The exit code is 65 when something is damaged or not authentic. A resume uses the newest good
    checkpoint, but refuses a job with a document that is not authentic.
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
    with naming("--root" if job is None else "JOB"):
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
        if jobs_below(job) or _is_empty_root(job):
            return None
        raise


def _is_empty_root(root: str) -> bool:
    from outlast_checkpoints.storage import open_storage

    storage = open_storage(absolute(root))
    folder = storage.local_path("")
    return folder is not None and folder.is_dir() and storage.list("") == []


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
            details = {"checkpoints": checked, "orphans": store.orphans(), **parts}
            details["authenticated"] = good and is_signed(place.storage)
            verified.append(({**known, "good": good, "deep": deep, **details}, None))
        except Exception as unexpected:  # noqa: BLE001  (one job does not stop the others)
            error = named(unexpected)
            verified.append(({**known, "good": False, "deep": deep, "problem": str(error)}, error))
    return verified


def _parts(place: Place) -> dict[str, dict[str, Any]]:
    """Verify the spec, journal, history and origins of a job."""
    from outlast.job.submission import load_spec
    from outlast_checkpoints.format.lineage import read_lineage
    from outlast_checkpoints.history import HistoryReader

    storage = place.storage
    parts: dict[str, dict[str, Any]] = {
        "spec": _part(lambda: len([load_spec(storage)])),
        "journal": _part(lambda: _count_events(storage)),
        "history": _part(lambda: _count_rows(HistoryReader(storage))),
    }
    _, origins = read_lineage(storage)
    parts["origins"] = {
        "good": not origins,
        "entries": None,
        "damage": "; ".join(map(str, origins)) or None,
    }
    return parts


def _count_events(storage: Storage) -> int:
    from outlast.job.journal import Journal
    from outlast.job.journal_evidence import check_complete

    if is_signed(storage):
        check_complete(storage)
    return len(Journal(storage).read())


def _count_rows(history: HistoryReader) -> int:
    return sum(len(some.steps) for some in history.columns())


def _part(count: Callable[[], int]) -> dict[str, Any]:
    """Return whether `count` could read everything, and what it counted."""
    try:
        return {"good": True, "entries": count(), "damage": None}
    except Exception as error:  # noqa: BLE001  (whatever it is, it names this part)
        return {"good": False, "entries": None, "damage": str(named(error))}


def _checked(one: Audited) -> dict[str, Any]:
    damages = [{"file": damage.file, "reason": damage.reason} for damage in one.damages]
    details: dict[str, Any] = {
        "checkpoint": str(one.checkpoint),
        "good": not damages,
        "damages": damages,
    }
    if one.manifest is not None and not damages:
        details |= {"files": len(one.manifest.files), "size": one.manifest.size}
    return details


def _print_job(found: dict[str, Any]) -> None:
    how = "every byte read" if found["deep"] else "sizes only"
    for one in found["checkpoints"]:
        if one["good"]:
            files = f"{one['files']} files, {units.size(one['size'])}, {how}"
            say(f"good     {one['checkpoint']}  {files}")
    for damage in _damages(found):
        say(f"DAMAGED  {damage}")
    for name, what in _COUNTED.items():
        if found[name]["good"]:
            say(f"good     {name}  {units.number(found[name]['entries'])} {what}")
    if found["orphans"]:
        say(
            f"{len(found['orphans'])} folders hold no checkpoint of this lineage (unfinished, or "
            "of superseded attempts); `outlast prune` deletes the old ones."
        )
    total = len(found["checkpoints"])
    good = sum(one["good"] for one in found["checkpoints"])
    say(f"{good} of {total} checkpoints are good." if total else "No checkpoints yet.")
    if found["good"]:
        say(_AUTHENTICATED if found["authenticated"] else _HASHES_ONLY)


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
            say(
                f"good     {found['job']}  {len(found['checkpoints'])} checkpoints, "
                f"{units.size(size)}, {units.number(found['history']['entries'])} rows"
            )
        kind = "UNKNOWN" if "problem" in found else "DAMAGED"
        for damage in _damages(found):
            say(f"{kind}  {found['job']}  {damage}")
    good = sum(found["good"] for found in jobs)
    say(f"{good} of {len(jobs)} jobs in {url} are good." if jobs else f"No jobs in {url}.")
    if good:
        ours = all(found["authenticated"] for found in jobs if found["good"])
        say(_AUTHENTICATED if ours else _HASHES_ONLY)
