"""The events of a journal in words."""

from __future__ import annotations

from collections.abc import Sequence

from outlast.cli.display import units
from outlast.job.events import (
    Audited,
    Claimed,
    Ended,
    Event,
    Forked,
    Launched,
    Queued,
    Released,
    Resumed,
    Started,
    StopRequested,
)


def kind(event: Event) -> str:
    """Return the kind of an event, such as "stop-requested"."""
    return str(event.__struct_config__.tag)


def details(event: Event) -> str:
    """Return what an event says beyond its kind, in one line; "" if nothing."""
    match event:
        case Queued():
            said = [f"in {event.engine} as {event.handle['id']}"]
        case Claimed():
            said = [f"attempt {event.attempt}"]
        case Launched():
            said = [f"attempt {event.attempt}", _handle(event.handle.get("pid"))]
        case Started():
            said = [f"attempt {event.attempt}", "it gives signs of life"]
        case Ended():
            said = [f"attempt {event.attempt} {event.outcome.value}", event.reason, *_after(event)]
        case StopRequested():
            said = [f"by {event.by}" if event.by else "", "kill the attempt" if event.now else ""]
        case Released():
            said = [event.reason]
        case Resumed():
            said = [f"by {event.by}" if event.by else ""]
        case Forked():
            said = [f"from {event.checkpoint} of {event.parent}"]
        case Audited():
            where = f"{event.first} to {event.last}"
            said = [f"{where} is exact" if event.exact else f"{where} is NOT exact"]
            said.append(event.difference)
        case _:
            said = []
    return ", ".join(filter(None, said))


def _after(event: Ended) -> Sequence[str]:
    saved = f"saved {event.checkpoint}" if event.checkpoint else ""
    return [saved, f"next attempt in {units.duration(event.delay)}" if event.delay else ""]


def _handle(pid: object) -> str:
    return f"process {pid}" if pid else ""
