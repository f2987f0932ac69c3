"""Amazon EC2: reads `spot/instance-action` through IMDSv2 every five seconds.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from outlast.job.log_events import LogEvent
from outlast.notices.base import Notice, OnEvent, Unanswered
from outlast.notices.metadata_server import LINK_LOCAL, URL, Answer, Metadata, unexpected

TOKEN: Final = "latest/api/token"
ACTION: Final = "latest/meta-data/spot/instance-action"
REBALANCE: Final = "latest/meta-data/events/recommendations/rebalance"
WITHIN: Final = 120.0
_LIFE: Final = 21600  # seconds; the longest life of a token


class Aws:
    """The metadata service of an EC2 instance.

    Amazon's variable AWS_EC2_METADATA_SERVICE_ENDPOINT changes its address.
    """

    name = "aws"

    def __init__(self, environ: Mapping[str, str] = os.environ, *, pause: float = 5.0) -> None:
        own = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
        self._server = Metadata(environ.get(URL) or own or LINK_LOCAL)
        self._token: str | None = None
        self._logged: set[str] = set()
        self.pause = pause

    def look(self, on_event: OnEvent) -> Notice | None:
        found = self._ask(ACTION)
        if found is not None:
            action, within = parse_action(found, time.time())
            if action in ("stop", "terminate"):
                why = f"the spot instance will {action}"
                return Notice.now(self.name, why, within)
            # The machine hibernates with its memory and continues later.
            self._log_once(on_event, LogEvent.SPOT_ACTION_ANNOUNCED, found)
        if (rebalance := self._ask(REBALANCE)) is not None:
            self._log_once(on_event, LogEvent.REBALANCE_RECOMMENDED, rebalance)
        return None

    def _log_once(self, on_event: OnEvent, event: str, said: str) -> None:
        if said not in self._logged:
            self._logged.add(said)
            on_event(event, {"message": said[:200], "hint": "the training continues"})

    def _ask(self, path: str) -> str | None:
        """Return the text at a path; None if there is none (404)."""
        answer = self._with_token(path)
        if answer.status == 401:  # the token has expired, or the machine hibernated
            self._token = None
            answer = self._with_token(path)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise unexpected(path, answer)
        return answer.text

    def _with_token(self, path: str) -> Answer:
        if self._token is None:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": str(_LIFE)}
            answer = self._server.ask(TOKEN, method="PUT", headers=life)
            token = answer.text.strip()
            if answer.status != 200 or not token.isascii() or not token.isprintable():
                raise unexpected(TOKEN, answer)
            self._token = token
        return self._server.ask(path, headers={"X-aws-ec2-metadata-token": self._token})

    def acknowledge(self) -> bool:
        return False  # Amazon expects no answer


def parse_action(text: str, now: float) -> tuple[str, float]:
    """Return the action, and the seconds left at `now` (unix seconds), at most 120.

    Raises:
        Unanswered: the text is not valid.
    """
    try:
        said: dict[str, Any] = json.loads(text)
        action, at = str(said["action"]), datetime.fromisoformat(str(said["time"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Unanswered(f"{ACTION}: {text[:100]!r}") from error
    moment = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    # The clock of this machine may be wrong; Amazon never promises more than this.
    return action, min(WITHIN, max(0.0, moment.timestamp() - now))
