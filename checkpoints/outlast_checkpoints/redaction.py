"""Hides credentials in everything that is shown: error messages and log lines.

Every error message and every log line passes through `redact`. Files of a job never contain
credentials in the first place.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "***"

# user:password@ in any URL; in http(s) URLs also a user alone, which may be a token
_LOGIN: Final = re.compile(r"(?<=://)[^/\s:@?#]*:[^/\s]*@|(?<=http://|ttps://)[^/\s@?#]+@")
# The secret key of an object store may contain slashes.
_STORE_URL: Final = re.compile(r"\b(?:s3a?|gs|gcs|az|abfss?|adl)://\S+", re.IGNORECASE)
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
_COOKIE: Final = re.compile(
    r"(\b(?:set-)?cookie['\"]?\s*[:=]\s*['\"]?|(?<![\w-])x-[\w-]{0,40}(?:token|key)['\"]?\s*[:=]\s*['\"]?)"
    r"[^'\"\r\n]+",
    re.IGNORECASE,
)
_BEARER: Final = re.compile(r"(\bbearer )(?=[^\s'\",;]*\d)[^\s'\",;]{6,}", re.IGNORECASE)
_ASSIGNED: Final = re.compile(
    r"((?<![\w-])(?:[\w-]{0,40}[_-])?(?:(?:password|passwd|passphrase)['\"]?\s*[:=]|(?:pwd|secret|api[_-]?key|"
    r"(?:access|secret|account)[_-]?key|(?:access|auth|session|sas)[_-]?token)['\"]?=)\s*['\"]?)"
    r"[^\s'\",;&]+",
    re.IGNORECASE,
)
# Credentials that are recognised by their own form. The issuers publish these forms so that
# scanners find them (docs.github.com "secret scanning patterns", RFC 7519, RFC 7468).
_FORMS: Final = re.compile(
    r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}|\bhf_[A-Za-z0-9]{30,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{35}|\bxox[abeprs]-[\w-]{10,}|\bsk-[\w-]{32,}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_FORMS_BEGIN: Final = (
    *("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "hf_", "AKIA", "ASIA"),
    *("AIza", "xox", "sk-", "eyJ", "-----BEGIN"),
)
_LABELLED: Final = {  # each with words, one of which stands in all that it finds
    _HEADER: ("authorization",),
    _COOKIE: ("cookie", "x-"),
    _BEARER: ("bearer",),
    _ASSIGNED: ("passw", "passphrase", "pwd", "secret", "key", "token"),
}
# Names of variables and options whose values are secrets, in parts between underscores.
_NAMED: Final = re.compile(
    r"(?:^|_)(?:(?:ACCESS|API|AUTH|PRIVATE|SECRET|SAS)?_?(?:TOKEN|KEY)(?:_ID)?|SECRETS?|BEARER|"
    r"(?:PG|DB|MYSQL|REDIS)?(?:PASS|PASSWORD|PASSWD|PWD)|PASSPHRASE|CREDENTIALS?|CREDS?|PAT|DSN|"
    r"AUTH|COOKIES?|SESSIONS?|WEBHOOKS?(?:_URL)?)(?:_|$)",
    re.IGNORECASE,
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

    Found are: user and password in URLs; query values with a name like a secret's (tokens,
    signatures, SAS); keys in Azure's connection strings; Authorization, Cookie and X-…-Token
    headers; `password=…` and the like; tokens of GitHub, GitLab, Hugging Face, Slack, Google and
    AWS, JSON web tokens and private keys by their form; and the secrets that the environment of
    this process holds for the clients of object stores, also when quoted for JSON or a URL.
    """
    return redactor()(text)


def redactor() -> Callable[[str], str]:
    """Return a `redact` for many texts that reads the environment only once, now."""
    values = (os.environ.get(name, "") for name in _VARIABLES)
    spellings = {
        spelled: None
        for value in values
        if len(value) >= _SHORTEST
        for spelled in _spellings(value)
    }
    return functools.partial(_redact, list(spellings))


def _spellings(secret: str) -> tuple[str, ...]:
    """Return a secret as it stands in plain text, in JSON and in URLs."""
    quoted = quote(secret, safe="")
    lower = re.sub("%..", lambda found: found[0].lower(), quoted)
    return secret, json.dumps(secret)[1:-1], quoted, lower, quote_plus(secret)


def _redact(secrets: list[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _LOGIN.sub(f"{HIDDEN}@", _STORE_URL.sub(_hide_login, text))
    if "=" in text:
        text = _ACCOUNT.sub(rf"\1{HIDDEN}", _QUERY.sub(_hide, text))
    if any(mark in text for mark in _FORMS_BEGIN):  # nearly no text has one
        text = _FORMS.sub(HIDDEN, text)
    lower = text.lower()
    for pattern, marks in _LABELLED.items():
        if any(mark in lower for mark in marks):
            text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def _hide_login(found: re.Match[str]) -> str:
    scheme, _, rest = found[0].partition("://")
    login, at, path = rest.rpartition("@")
    return f"{scheme}://{HIDDEN}@{path}" if at and ":" in login.partition("/")[0] else found[0]


def _hide(found: re.Match[str]) -> str:
    return f"{found[1]}{HIDDEN}" if _SECRET.search(found[2]) else found[0]


def names_secret(name: str) -> bool:
    """Return whether a variable or option has the name of a secret: "DB_PASS", "--api-key"."""
    return _NAMED.search(name.lstrip("-").replace("-", "_")) is not None


def carries_credentials(url: str) -> bool:
    """Return whether a URL contains a credential that `redact` would hide."""
    return redact(url) != url
