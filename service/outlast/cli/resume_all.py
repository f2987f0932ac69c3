"""Resumes the unfinished jobs of a root that nobody supervises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from outlast.cli.display.tables import print_json
from outlast.cli.handover import hand_over, tell
from outlast.cli.job_address import Place, absolute
from outlast.engines import standing
from outlast.exit_codes import DONE, FAILED, JOB_BUSY, SUPERSEDED
from outlast_checkpoints.errors import OutlastError

if TYPE_CHECKING:
    from outlast.job.events import Queued

_AT_ONCE: Final = 64  # each may have to wait until the previous owner is certainly gone


@dataclass(frozen=True)
class Result:
    """The result of resuming one job."""

    place: Place
    """The place of the job."""
    how: Literal["started", "at work", "left alone", "failed"]
    """What happened."""
    note: str = ""
    """Why the job was not started."""
    queued: Queued | None = None
    """Where the engine has the job, if it was started."""


def unfinished(root: str) -> list[Place]:
    """Return the places of all unfinished jobs below `root`, most recently updated first."""
    from outlast.job import listing
    from outlast_checkpoints.storage import open_storage

    home = absolute(root).rstrip("/") or "/"
    storage = open_storage(home)
    found = [
        (one.entry.at if one.entry else 0.0, one.name)
        for one in listing.listed(storage)
        if one.entry is None or not one.entry.state.final
    ]
    return [
        Place(storage.sub(name), f"{home.rstrip('/')}/{name}", name)
        for _, name in sorted(found, reverse=True)
    ]


def take_up(place: Place) -> Result | None:
    """Make the job ready for a supervisor; return a result when it cannot be started."""
    from outlast.errors import JobBusy
    from outlast.job.journal import Journal
    from outlast.job.submission import load_spec
    from outlast.job.submission import take_up as take_up_job

    try:
        spec = load_spec(place.storage)
        if spec.script is None and spec.module is None:
            return Result(place, "left alone", "it has no script, because it was started by hand")
        job = Journal(place.storage).job()
        there = None if job is None else standing(job)
        if there is not None and there.queued:
            return Result(place, "at work", f"it is already in the queue: {there}")
        job = take_up_job(place.storage)
        if job.state.final:
            return Result(place, "left alone", f"it is {job.state.value}")
    except JobBusy as error:
        return Result(place, "at work", str(error))
    except OutlastError as error:
        return Result(place, "failed", str(error))
    return None


def bring_back(place: Place) -> Result:
    """Start a detached supervisor for the job, unless it is busy or has ended."""
    from outlast.errors import DaemonFailed

    in_the_way = take_up(place)
    if in_the_way is not None:
        return in_the_way
    try:
        return Result(place, "started", queued=hand_over(place))
    except DaemonFailed as error:
        if error.fields.get("code") in (JOB_BUSY, SUPERSEDED):  # another process was first
            return Result(place, "at work", "another process has just taken it")
        return Result(place, "failed", str(error))
    except OutlastError as error:
        return Result(place, "failed", str(error))


def bring_all_back(root: str, *, as_json: bool) -> int:
    """Resume every unfinished job below `root`; return 0, or 1 when one failed."""
    places = unfinished(root)
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as workers:
        results = list(workers.map(bring_back, places))
    if as_json:
        print_json([_row(one) for one in results])
    else:
        for one in results:
            _tell(one, root)
        if not results:
            click.echo(f"No unfinished job in {absolute(root)}.", err=True)
    return FAILED if any(one.how == "failed" for one in results) else DONE


def _tell(result: Result, root: str) -> None:
    if result.queued is not None:
        tell(result.place, root, result.queued, as_json=False)
    else:
        click.echo(f"{result.place.name}: {result.how}: {result.note}", err=True)


def _row(result: Result) -> dict[str, Any]:
    handle: dict[str, Any] = {} if result.queued is None else result.queued.handle
    return {
        "job": result.place.name,
        "url": result.place.url,
        "how": result.how,
        "note": result.note,
        "pid": handle.get("pid"),
    }
