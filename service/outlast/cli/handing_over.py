"""Handing a job to an engine, and taking it back."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from outlast_checkpoints.storage import Storage

from outlast.cli.tables import print_json
from outlast.cli.where import Place

if TYPE_CHECKING:
    from outlast.engines.base import Standing
    from outlast.lifecycle import Job, Queued
    from outlast.spec import JobSpec


def plan(storage: Storage, spec: JobSpec) -> str:
    """Return what would be handed over. Raises `SpecInvalid`, `BackendUnknown`."""
    from outlast import backends, engines

    if spec.backend not in engines.names():
        backends.get(spec.backend)
    return engines.get(spec.backend).plan(spec, storage).rstrip("\n") + "\n"


def hand_over(place: Place) -> Queued:
    """Hand the job to the engine that its spec names; return where it is found there."""
    from outlast import engines
    from outlast.errors import InvalidTransition
    from outlast.journal import Journal
    from outlast.lifecycle import Queued
    from outlast.submission import load_spec

    spec = load_spec(place.storage)
    handle = engines.get(spec.backend).launch(spec, place.storage)
    queued = Queued(engine=spec.backend, handle=handle)
    if spec.backend != engines.LOCAL:
        with suppress(InvalidTransition):  # it has ended already
            Journal(place.storage).append(queued)
    return queued


def standing(job: Job) -> Standing | None:
    """Return how the job stands with the cluster that has it, None when none has.

    Raises `BackendFailed` when that cannot be known now.
    """
    from outlast import engines

    if job.queued is None:
        return None
    return engines.get(job.queued.engine).poll(job.queued.handle)


def take_back(job: Job) -> None:
    """Take an ended job out of the cluster's queue. Raises `BackendFailed`."""
    from outlast import engines

    if job.queued is not None and job.state.final and standing(job) is not None:
        engines.get(job.queued.engine).stop(job.queued.handle)


def tell(place: Place, root: str, queued: Queued | None, *, as_json: bool) -> None:
    """Say where the job is now; None: nowhere, there was nothing to do."""
    from outlast import fencing
    from outlast.cli.foreground import job_word

    handle: dict[str, Any] = {} if queued is None else queued.handle
    if as_json:
        found = {"job": place.name, "url": place.url, "pid": handle.get("pid")}
        print_json(found | {"queued": None if queued is None else _named(queued)})
    elif queued is not None:
        word = job_word(place, root)
        by = f"supervised by process {handle['pid']}" if "pid" in handle else _words(queued)
        click.echo(f"{place.name}: {by}. outlast logs -f {word}")
        if not fencing.can_fence(place.storage):
            click.echo(f"{place.name}: {fencing.WHY}: {fencing.THEN}", err=True)


def _named(queued: Queued) -> dict[str, Any]:
    return {"engine": queued.engine, "id": queued.handle.get("id")}


def _words(queued: Queued) -> str:
    return f"{queued.engine} has it as {queued.handle.get('id')}"
