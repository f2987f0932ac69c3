"""Azure: reads Scheduled Events every second, and acknowledges them when the state is saved.

https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from outlast.job.log_events import LogEvent
from outlast.notices.base import Notice, OnEvent, Unanswered
from outlast.notices.last_to_leave import last_to_leave, take_part
from outlast.notices.metadata_server import LINK_LOCAL, URL, Metadata, unexpected

EVENTS: Final = "metadata/scheduledevents?api-version=2020-07-01"
NAME: Final = "metadata/instance/compute/name?api-version=2021-02-01&format=text"
# Events that end a training. A Freeze passes within seconds.
TAKING: Final = {
    "Preempt": "the spot machine is evicted",
    "Terminate": "the machine is deleted",
    "Reboot": "the machine is rebooted",
    "Redeploy": "the machine is moved to another host",
}
_FIRST: Final = 125.0  # seconds; the first request enables the service, in up to two minutes


class Event(msgspec.Struct, frozen=True, rename="pascal"):
    """One event in Azure's format. `not_before` is "" once the event has begun."""

    event_id: str
    event_type: str
    resources: list[str] | None = None
    event_status: str = "Scheduled"
    not_before: str | None = ""
    description: str | None = ""

    def affects(self, machine: str | None) -> bool:
        """Return whether the event is about this machine; a group gets all its events."""
        if not machine or not self.resources:
            return True
        return machine.lower() in {name.lstrip("_").lower() for name in self.resources}

    def within(self, now: float) -> float | None:
        """Return the seconds left at `now` (unix seconds); None if unknown."""
        try:
            return max(0.0, parsedate_to_datetime(self.not_before or "").timestamp() - now)
        except ValueError:
            return None


class _Document(msgspec.Struct, frozen=True, rename="pascal"):
    events: list[Event] = []


class Azure:
    """The metadata service of an Azure machine."""

    name = "azure"

    def __init__(self, environ: Mapping[str, str] = os.environ, *, pause: float = 1.0) -> None:
        self._server = Metadata(environ.get(URL) or LINK_LOCAL, {"Metadata": "true"})
        self._machine: str | None = None
        self._asked = False
        self._logged: set[str] = set()
        self._noticed: Event | None = None
        self._part = take_part()
        self.pause = pause

    def look(self, on_event: OnEvent) -> Notice | None:
        answer = self._server.ask(EVENTS, timeout=5.0 if self._asked else _FIRST)
        self._asked = True
        if answer.status != 200:
            raise unexpected(EVENTS, answer)
        for event in parse_events(answer.text):
            if not event.affects(self._name()):
                continue
            if event.event_type in TAKING:
                self._noticed = event
                why = TAKING[event.event_type]
                return Notice.now(self.name, why, event.within(time.time()))
            if event.event_id not in self._logged:
                self._logged.add(event.event_id)
                said = f"{event.event_type}: {event.description or ''}".rstrip(": ")
                on_event(
                    LogEvent.EVENT_SCHEDULED, {"message": said, "hint": "the training continues"}
                )
        return None

    def _name(self) -> str | None:
        if self._machine is None:
            with suppress(Unanswered):
                answer = self._server.ask(NAME)
                self._machine = answer.text.strip() if answer.status == 200 else None
        return self._machine

    def acknowledge(self) -> bool:
        """Let Azure begin the event early.

        This is not done for an event that affects other machines too, nor while another training
        on this machine is still watching, because it may not have saved.
        """
        event = self._noticed
        if event is None or len(event.resources or []) > 1 or not last_to_leave(self._part):
            return False
        body = json.dumps({"StartRequests": [{"EventId": event.event_id}]})
        kind = {"Content-Type": "application/json"}
        return self._server.ask(EVENTS, method="POST", headers=kind, body=body).status == 200


def parse_events(text: str) -> list[Event]:
    """Return the events in Azure's document. Raises `Unanswered`."""
    try:
        return msgspec.json.decode(text, type=_Document).events
    except msgspec.DecodeError as error:
        raise Unanswered(f"{EVENTS}: {error}, {text[:100]!r}") from error
