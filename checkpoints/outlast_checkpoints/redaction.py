"""Credentials that URLs and the words of clients carry: kept out of everything that is shown.

Every message of an error and every line of a log passes through `redact`. Nothing here decides
what is stored: credentials are never given to a job's files in the first place.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Final

HIDDEN: Final = "***"

# user:password@ of any URL; of the web's also a user alone, which may be a token
_LOGIN: Final = re.compile(r"(?<=://)[^/\s:@?#]*:[^/\s]*@|(?<=http://|ttps://)[^/\s@?#]+@")
_QUERY: Final = re.compile(r"([?&;]([\w.%-]+)=)[^&;#\s'\"<>]+")
_SECRET: Final = re.compile(
    r"token|secret|passw|pwd|credential|signature|key(?:[-_]?id)?$|(?:^|[-_])(?:sig|sas|auth)$",
    re.IGNORECASE,
)
# of Azure's connection strings
_ACCOUNT: Final = re.compile(
    r"((?:AccountKey|SharedAccessKey|SharedAccessSignature)=)[^;\s'\"]+", re.IGNORECASE
)
_HEADER: Final = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:[\w-]+ )?)[^\s'\",;]+", re.IGNORECASE
)
# What the clients of object stores read from the environment, and somebody could sign with.
_VARIABLES: Final = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
)
_SHORTEST: Final = 6  # of what is looked for as it is; anything shorter stands in other words too


def redact(text: str) -> str:
    """Return `text` with "***" in the place of every credential that it can be seen to hold.

    Those are user and password of URLs, values of their queries named like a secret (tokens,
    signatures, SAS), keys of Azure's connection strings, Authorization headers, and what this
    process' environment gives to the clients of object stores.
    """
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """Return `redact` for many texts at once, with what the environment gives now."""
    values = (os.environ.get(name, "") for name in _VARIABLES)
    return functools.partial(_redact, [value for value in values if len(value) >= _SHORTEST])


def _redact(secrets: list[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _LOGIN.sub(f"{HIDDEN}@", text)
    if "=" in text:
        text = _ACCOUNT.sub(rf"\1{HIDDEN}", _QUERY.sub(_hide, text))
    return _HEADER.sub(rf"\1{HIDDEN}", text)


def _hide(found: re.Match[str]) -> str:
    return f"{found[1]}{HIDDEN}" if _SECRET.search(found[2]) else found[0]


def carries_credentials(url: str) -> bool:
    """Return whether a URL holds what `redact` would hide."""
    return redact(url) != url
