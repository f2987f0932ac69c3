"""Requests to a metadata server: plain HTTP, without proxies and redirects."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from outlast.notices.base import Unanswered

LINK_LOCAL: Final = "http://169.254.169.254"
URL: Final = "OUTLAST_METADATA_URL"
_LONGEST: Final = 1 << 20  # bytes; answers have a few hundred


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    """Status code."""
    headers: Mapping[str, str]
    """Headers, with names in lower case."""
    text: str
    """Body."""


class Metadata:
    """The metadata server at the URL `base`; `headers` are sent with each request."""

    def __init__(self, base: str, headers: Mapping[str, str] | None = None) -> None:
        self._base = base if "://" in base else f"http://{base}"
        self._headers = dict(headers or {})

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
        timeout: float = 5.0,
    ) -> Answer:
        """Return the answer, with any status. Raises `Unanswered` if there is none."""
        connection: http.client.HTTPConnection | None = None
        try:
            base = urlsplit(self._base)
            connection = http.client.HTTPConnection(base.hostname or "", base.port, timeout=timeout)
            prefix = base.path.rstrip("/")
            asked = {**self._headers, **(headers or {})}
            connection.request(method, f"{prefix}/{path}", body=body, headers=asked)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            text = answer.read(_LONGEST).decode("utf-8", errors="replace")
            return Answer(answer.status, headers, text)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        finally:
            if connection is not None:
                connection.close()


def unexpected(path: str, answer: Answer) -> Unanswered:
    """Return the error that describes an unexpected answer."""
    said = " ".join(answer.text.split())[:100]
    return Unanswered(f"{path}: status {answer.status}, {said!r}")
