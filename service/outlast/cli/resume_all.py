"""Resumes the unfinished jobs of a root that nobody supervises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.handover import hand_over, print_place
from outlast.cli.job_address import Place, absolute, naming
from outlast.engines import queue_state
from outlast.exit_codes import DONE, FAILED, JOB_BUSY, SUPERSEDED
from outlast_checkpoints.errors import named

if TYPE_CHECKING:
    from outlast.job.events import Queued

_AT_ONCE: Final = 64  # each may have to wait until the previous owner is certainly gone


@dataclass(frozen=True)
class Result:
    """The result of resuming one job."""

    place: Place
    """The place of the job."""
    how: Literal["started", "busy", "skipped", "failed"]
    """What happened."""
    note: str = ""
    """Why the job was not started."""
    queued: Queued | None = None
    """Where the engine has the job, if it was started."""


def unfinished(root: str) -> list[Place]:
    """Return the places of all unfinished jobs below `root`, most recently updated first."""
    from outlast.job import listing
    from outlast_checkpoints.storage import open_storage

    with naming("--root"):
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


def make_ready(place: Place, root: str, *, trust: bool) -> Result | None:
    """Make the job ready for a supervisor; return a result when it cannot be started."""
    from outlast.cli.trust_gate import check_trusted
    from outlast.errors import JobBusy
    from outlast.job.journal import Journal
    from outlast.job.submission import load_spec, resume_unfinished

    try:
        check_trusted(place, root, trust=trust)
        spec = load_spec(place.storage)
        if spec.script is None and spec.module is None:
            return Result(place, "skipped", "it has no script, because it was started by hand")
        job = Journal(place.storage).job()
        there = None if job is None else queue_state(job)
        if there is not None and there.queued:
            return Result(place, "busy", f"it is already in the queue: {there}")
        job = resume_unfinished(place.storage)
        if job.state.final:
            return Result(place, "skipped", f"it is {job.state.value}")
    except JobBusy as error:
        return Result(place, "busy", str(error))
    except Exception as error:  # noqa: BLE001  (one job does not stop the others)
        return Result(place, "failed", str(named(error)))
    return None


def resume_detached(place: Place, root: str, *, trust: bool) -> Result:
    """Start a detached supervisor for the job, unless it is busy or has ended."""
    from outlast.errors import DaemonFailed

    refused = make_ready(place, root, trust=trust)
    if refused is not None:
        return refused
    try:
        return Result(place, "started", queued=hand_over(place))
    except DaemonFailed as error:
        if error.fields.get("code") in (JOB_BUSY, SUPERSEDED):  # another process was first
            return Result(place, "busy", "another process has just taken it")
        return Result(place, "failed", str(error))
    except Exception as error:  # noqa: BLE001  (as above)
        return Result(place, "failed", str(named(error)))


def resume_all(root: str, *, trust: bool, as_json: bool) -> int:
    """Resume every unfinished job below `root`; return 0, or 1 when one failed."""
    places = unfinished(root)
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as workers:
        results = list(workers.map(lambda one: resume_detached(one, root, trust=trust), places))
    if as_json:
        print_json([_row(one) for one in results])
    else:
        for one in results:
            _print_result(one, root)
        if not results:
            say(f"No unfinished job in {absolute(root)}.", err=True)
    return FAILED if any(one.how == "failed" for one in results) else DONE


def _print_result(result: Result, root: str) -> None:
    if result.queued is not None:
        print_place(result.place, root, result.queued, as_json=False)
    else:
        say(f"{result.place.name}: {result.how}: {result.note}", err=True)


def _row(result: Result) -> dict[str, Any]:
    handle: dict[str, Any] = {} if result.queued is None else result.queued.handle
    return {
        "job": result.place.name,
        "url": result.place.url,
        "how": result.how,
        "note": result.note,
        "pid": handle.get("pid"),
    }
