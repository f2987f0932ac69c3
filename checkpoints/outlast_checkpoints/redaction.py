"""Hides credentials in everything that is shown: error messages and log lines.

Every error message and every log line passes through `redact`. Files of a job never contain
credentials in the first place.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Final

HIDDEN: Final = "***"

# user:password@ in any URL; in http(s) URLs also a user alone, which may be a token
_LOGIN: Final = re.compile(r"(?<=://)[^/\s:@?#]*:[^/\s]*@|(?<=http://|ttps://)[^/\s@?#]+@")
_QUERY: Final = re.compile(r"([?&;]([\w.%-]+)=)[^&;#\s'\"<>]+")
_SECRET: Final = re.compile(
    r"token|secret|passw|pwd|credential|signature|key(?:[-_]?id)?$|(?:^|[-_])(?:sig|sas|auth)$",
    re.IGNORECASE,
)
# in Azure's connection strings
_ACCOUNT: Final = re.compile(
    r"((?:AccountKey|SharedAccessKey|SharedAccessSignature)=)[^;\s'\"]+", re.IGNORECASE
)
_HEADER: Final = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:[\w-]+ )?)[^\s'\",;]+", re.IGNORECASE
)
# Secrets that the clients of object stores read from the environment.
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
_SHORTEST: Final = 6  # characters; a shorter secret would match ordinary words


def redact(text: str) -> str:
    """Return `text` with "***" in place of every credential found in it.

    Found are: user and password in URLs, query values with a name like a secret's (tokens,
    signatures, SAS), keys in Azure's connection strings, Authorization headers, and the secrets
    that this process' environment holds for the clients of object stores.
    """
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """Return a `redact` for many texts that reads the environment only once, now."""
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
    """Return whether a URL contains a credential that `redact` would hide."""
    return redact(url) != url
