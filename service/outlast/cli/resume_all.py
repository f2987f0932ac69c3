"""Jobs of a root that are not finished and that nobody is at work on, brought back to work."""

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

_AT_ONCE: Final = 64  # each may have to wait until an owner is certainly gone


@dataclass(frozen=True)
class Came:
    """What became of a job. queued: where it is now, when it was brought back. note: else why."""

    place: Place
    how: Literal["started", "at work", "left alone", "failed"]
    note: str = ""
    queued: Queued | None = None


def unfinished(root: str) -> list[Place]:
    """Return the places of all jobs below `root` that have not ended, the last touched first."""
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


def take_up(place: Place) -> Came | None:
    """Make the job ready for a supervisor; return what is in the way, None when nothing is."""
    from outlast.errors import JobBusy
    from outlast.job.journal import Journal
    from outlast.job.submission import load_spec
    from outlast.job.submission import take_up as take_up_job

    try:
        spec = load_spec(place.storage)
        if spec.script is None and spec.module is None:
            return Came(place, "left alone", "it was started by hand, without a script")
        job = Journal(place.storage).job()
        there = None if job is None else standing(job)
        if there is not None and there.queued:
            return Came(place, "at work", f"it is in the queue already: {there}")
        job = take_up_job(place.storage)
        if job.state.final:
            return Came(place, "left alone", f"it is {job.state.value}")
    except JobBusy as error:
        return Came(place, "at work", str(error))
    except OutlastError as error:
        return Came(place, "failed", str(error))
    return None


def bring_back(place: Place) -> Came:
    """Have the job supervised, detached, unless somebody has it or it has ended."""
    from outlast.errors import DaemonFailed

    in_the_way = take_up(place)
    if in_the_way is not None:
        return in_the_way
    try:
        return Came(place, "started", queued=hand_over(place))
    except DaemonFailed as error:
        if error.fields.get("code") in (JOB_BUSY, SUPERSEDED):  # somebody else was faster
            return Came(place, "at work", "somebody else has just taken it up")
        return Came(place, "failed", str(error))
    except OutlastError as error:
        return Came(place, "failed", str(error))


def bring_all_back(root: str, *, as_json: bool) -> int:
    """Bring every unfinished job below `root` back; return 0, or 1 when one could not be."""
    places = unfinished(root)
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as workers:
        came = list(workers.map(bring_back, places))
    if as_json:
        print_json([_row(one) for one in came])
    else:
        for one in came:
            _tell(one, root)
        if not came:
            click.echo(f"Nothing is unfinished in {absolute(root)}.", err=True)
    return FAILED if any(one.how == "failed" for one in came) else DONE


def _tell(came: Came, root: str) -> None:
    if came.queued is not None:
        tell(came.place, root, came.queued, as_json=False)
    else:
        click.echo(f"{came.place.name}: {came.how}: {came.note}", err=True)


def _row(came: Came) -> dict[str, Any]:
    handle: dict[str, Any] = {} if came.queued is None else came.queued.handle
    return {
        "job": came.place.name,
        "url": came.place.url,
        "how": came.how,
        "note": came.note,
        "pid": handle.get("pid"),
    }
