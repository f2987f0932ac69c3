"""The normal form of a folder or URL: two spellings of one place become one text.

Stores disagree about a key such as `a//b` or `/a`: some write it and then do not list it. A name
in which the job is looked up must also be the one under which its spool is found.
"""

from __future__ import annotations

import os
import re
from typing import Final, NoReturn
from urllib.parse import quote, unquote_to_bytes

from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.redaction import carries_credentials

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://(.*)", re.DOTALL)
_ONE_SLASH: Final = re.compile(r"(s3a?|gc?s|az|abfss?|https?|memory):/", re.IGNORECASE)
_FILE: Final = re.compile(r"(?:file|local):(?=/)", re.IGNORECASE)
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SAME: Final = {"s3a": "s3", "gcs": "gs", "abfss": "abfs"}
_PORTS: Final = {"http": ":80", "https": ":443"}
_IN_WEB_PATHS: Final = "!$&'()*+,;=:@-._~"  # what a path of a web address need not encode


def is_url(address: str) -> bool:
    """Return whether an address is a URL of another storage than this machine's folders."""
    return _URL.match(address) is not None and _FILE.match(address) is None


def normal(address: str) -> str:
    """Return the normal form of a folder or URL.

    A folder becomes an absolute path. In a URL the scheme is in lower case, and repeated slashes,
    ".", ".." and a slash at the end are gone. `file:` URLs become folders. Web addresses get one
    form of %-codes. Everywhere else, `file:` included, %-codes are part of the name.

    Args:
        address: A folder or URL.

    Raises:
        UsageError: The address is empty, has another meaning on another system, or leaves its
            bucket.
    """
    if not address:
        raise UsageError(
            field="storage", problem="the folder is empty", hint="Give a folder or URL."
        )
    if found := _FILE.match(address):
        return _folder(_file_path(address, address[found.end() :]))
    url = _URL.fullmatch(address)
    return _folder(address) if url is None else _normal_url(address, url[1].lower(), url[2])


def _normal_url(address: str, scheme: str, rest: str) -> str:
    if _CONTROL.search(rest):
        _refuse(address, "it contains a control character", "Check for a line break at its end.")
    if "\\" in rest:
        _refuse(address, "it contains a backslash", "Separate the parts of a URL by '/'.")
    if "::" in scheme:
        if "cache::" in scheme:
            _refuse(address, "a cache shows old listings", "Give the URL of the store itself.")
        return address  # of several file systems; fsspec knows what its parts mean
    scheme = _SAME.get(scheme, scheme)
    if scheme == "memory":
        return "memory://" + "/".join(_parts(address, rest))
    host, _, path = rest.partition("/")
    if not host:
        _refuse(address, "it names no bucket", f"Write for example {scheme}://bucket/jobs.")
    if scheme in _PORTS:
        if carries_credentials(address):
            return address  # the client refuses it, and says where credentials belong
        if "?" in rest or "#" in rest:
            _refuse(address, "it has a query", "A folder has none: leave it out.")
        host = host.lower().removesuffix(_PORTS[scheme])
        return "/".join([f"{scheme}://{host}", *map(_web_part, _parts(address, path))])
    return "/".join([f"{scheme}://{host}", *_parts(address, path)])


def _parts(address: str, path: str) -> list[str]:
    """Return the parts of a URL's path, without empty ones and dots."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                _refuse(address, "'..' leaves its bucket", "Write the URL without '..'.")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return parts


def _web_part(part: str) -> str:
    return quote(unquote_to_bytes(part), safe=_IN_WEB_PATHS)


def _file_path(address: str, rest: str) -> str:
    """Return the path in a file URL, of which `rest` follows "file:"."""
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    if host.lower() not in ("", "localhost"):
        _refuse(
            address,
            f"it names a folder of the machine {host!r}",
            "Write file:///folder for a folder of this machine.",
        )
    if not path:
        _refuse(address, "it names no folder", "Write for example file:///data/jobs.")
    return path


def _folder(path: str) -> str:
    if "\0" in path:
        _refuse(path, "it contains NUL", "No name of a folder contains it.")
    if found := _ONE_SLASH.match(path):
        _refuse(
            path,
            f"it begins with {found[0]!r}, with one slash only",
            f"A URL begins with {found[0]}/; pathlib.Path removes one slash. "
            f"For a folder of this name write ./{found[0]}…",
        )
    if _DRIVE.match(path) or path.startswith("\\\\") or ("\\" in path and "/" not in path):
        _refuse(
            path,
            "it is a path of Windows",
            "Separate folders by '/', and name a folder or bucket that this machine sees.",
        )
    if path.startswith("~"):
        path = os.path.expanduser(path)  # noqa: PTH111  (Path has no error for an unknown user)
        if path.startswith("~"):
            _refuse(path, "this home folder is unknown", "Write the whole path, or ./~…")
    # not resolve(): symbolic links stay, because they may differ on another machine
    return "/" + os.path.abspath(path).lstrip("/")  # noqa: PTH100  ("//a" is "/a" on Linux)


def _refuse(address: str, problem: str, hint: str) -> NoReturn:
    raise UsageError(field="storage", problem=f"{address!r} is refused: {problem}", hint=hint)
