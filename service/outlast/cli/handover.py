"""Hands a job to its engine, and prints where the job is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from outlast.cli.display.say import say
from outlast.cli.display.tables import print_json
from outlast.cli.job_address import Place, job_reference
from outlast_checkpoints.storage.base import Storage

if TYPE_CHECKING:
    from outlast.job.events import Queued
    from outlast.job.spec import JobSpec


def plan(storage: Storage, spec: JobSpec) -> str:
    """Return what the engine would start. Raises `SpecInvalid`, `PluginUnknown`."""
    from outlast import backends, engines

    backends.get(spec.backend)
    return engines.get(spec.engine).plan(spec, storage).rstrip("\n") + "\n"


def hand_over(place: Place) -> Queued:
    """Hand the job to the engine that its spec names; return its place there."""
    from outlast import engines
    from outlast.errors import InvalidTransition
    from outlast.job.events import Queued
    from outlast.job.journal import Journal
    from outlast.job.submission import load_spec

    spec = load_spec(place.storage)
    handle = engines.get(spec.engine).launch(spec, place.storage)
    queued = Queued(engine=spec.engine, handle=handle)
    if spec.engine != engines.LOCAL:
        with suppress(InvalidTransition):  # it has already ended
            Journal(place.storage).append(queued)
    return queued


def refuse_running(storage: Storage) -> None:
    """Raise `JobBusy` when somebody trains the job; wait until that is known."""
    from outlast.job import takeover
    from outlast.job.journal import Journal
    from outlast.job.submission import load_spec

    journal = Journal(storage)
    if journal.job() is not None:
        spec = load_spec(storage)
        takeover.quiet(storage, journal, spec, on_wait=lambda text: say(text, err=True))


def print_place(place: Place, root: str, queued: Queued | None, *, as_json: bool) -> None:
    """Print where the job is now. `queued` None: nothing was started."""
    from outlast.job import fencing_check

    handle: dict[str, Any] = {} if queued is None else queued.handle
    if as_json:
        found = {"job": place.name, "url": place.url, "pid": handle.get("pid")}
        print_json(found | {"queued": None if queued is None else _as_json(queued)})
    elif queued is not None:
        word = job_reference(place, root)
        by = f"supervised by process {handle['pid']}" if "pid" in handle else _as_text(queued)
        say(f"{place.name}: {by}. outlast logs -f {word}")
        if not fencing_check.can_fence(place.storage):
            say(f"{place.name}: {fencing_check.why(place.storage)}: {fencing_check.HINT}", err=True)


def _as_json(queued: Queued) -> dict[str, Any]:
    return {"engine": queued.engine, "id": queued.handle.get("id")}


def _as_text(queued: Queued) -> str:
    return f"queued in {queued.engine} as {queued.handle.get('id')}"
