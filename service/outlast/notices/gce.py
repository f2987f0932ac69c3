"""Google Compute Engine: waits for `preempted`, and reads `maintenance-event` in between.

https://cloud.google.com/compute/docs/instances/spot and
https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from outlast.job.log_events import LogEvent
from outlast.notices.base import Notice, OnEvent
from outlast.notices.metadata_server import LINK_LOCAL, URL, Answer, Metadata, unexpected

PREEMPTED: Final = "instance/preempted"
MAINTENANCE: Final = "instance/maintenance-event"
PREEMPTED_WITHIN: Final = 30.0
MAINTENANCE_WITHIN: Final = 60.0
WAIT: Final = 20  # seconds that the server may hold back an answer
_PREFIX: Final = "computeMetadata/v1/"
_TERMINATE: Final = "TERMINATE_ON_HOST_MAINTENANCE"


class Gce:
    """The metadata server of a GCE machine; Google's GCE_METADATA_HOST changes its address."""

    name = "gce"

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.pause = 0.0
        base = environ.get(URL) or environ.get("GCE_METADATA_HOST") or LINK_LOCAL
        self._server = Metadata(base, {"Metadata-Flavor": "Google"})
        self._etag: str | None = None
        self._maintenance = "NONE"

    def look(self, on_event: OnEvent) -> Notice | None:
        first, asked_at = self._etag is None, time.monotonic()
        preempted = self._look_preempted()
        # The server waits. If it does not, pause here instead.
        self.pause = 0.0 if first or time.monotonic() - asked_at > 1.0 else 1.0
        if preempted:
            return Notice.now(self.name, "the machine is preempted", PREEMPTED_WITHIN)
        # Google gives notice only to machines that read this.
        event = self._ask(MAINTENANCE).text.strip()
        if event == _TERMINATE:
            why = "the machine is terminated for maintenance of its host"
            return Notice.now(self.name, why, MAINTENANCE_WITHIN)
        if event not in ("NONE", self._maintenance):
            on_event(
                LogEvent.HOST_MAINTENANCE_ANNOUNCED,
                {"event_type": event, "hint": "the training continues"},
            )
        self._maintenance = event
        return None

    def _look_preempted(self) -> bool:
        query, wait = "", 0.0
        if self._etag is not None:
            asked = {"wait_for_change": "true", "timeout_sec": WAIT, "last_etag": self._etag}
            query, wait = f"?{urlencode(asked)}", float(WAIT)
        answer = self._ask(PREEMPTED, query, wait)
        said = answer.text.strip().upper()
        if said not in ("TRUE", "FALSE"):
            raise unexpected(PREEMPTED, answer)
        self._etag = answer.headers.get("etag")
        return said == "TRUE"

    def _ask(self, key: str, query: str = "", wait: float = 0.0) -> Answer:
        answer = self._server.ask(f"{_PREFIX}{key}{query}", timeout=wait + 5.0)
        if answer.status != 200 or answer.headers.get("metadata-flavor") != "Google":
            raise unexpected(key, answer)
        return answer

    def acknowledge(self) -> bool:
        return False  # Google expects no answer
