"""Sealed documents: JSON together with the hash of its exact bytes.

The file is `{"checksum":"xxh3:<32 hex digits>","body":<JSON>}`, with nothing before or after. Every
byte is either fixed or hashed, so a single flipped, missing or added byte is detected.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import xxhash

from outlast_checkpoints.errors import FormatError, FormatTooNew
from outlast_checkpoints.format import typed_json

T = TypeVar("T")

# What decoding raises for invalid JSON, a wrong type, invalid UTF-8, and endless nesting.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_HEAD = b'{"checksum":"'
_MIDDLE = b'","body":'
_TAIL = b"}"
_DIGITS = len("xxh3:") + 32


class _Format(msgspec.Struct):
    format: int


def checksum(data: bytes) -> str:
    """Return the hash of `data` as manifests write it: "xxh3:" and 32 hex digits."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"


def seal(value: msgspec.Struct) -> bytes:
    """Return the sealed document of `value`."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2)
    return b"".join((_HEAD, checksum(body).encode(), _MIDDLE, body, _TAIL))


def unseal(data: bytes, path: str, kind: type[T], known: int) -> T:
    """Return the value of the sealed document read from `path`.

    known: the newest format number that this code reads. Raises `FormatError`, `FormatTooNew`.
    """
    start = len(_HEAD) + _DIGITS + len(_MIDDLE)
    body = data[start : -len(_TAIL)]
    expected = b"".join((_HEAD, checksum(body).encode(), _MIDDLE, body, _TAIL))
    if data != expected:
        raise FormatError(path=path, reason="its checksum does not match its content")
    try:
        found = typed_json.decode(body, _Format).format
        if found > known:
            raise FormatTooNew(path=path, found=found, known=known)
        return typed_json.decode(body, kind)
    except UNREADABLE as error:
        raise FormatError(path=path, reason=str(error)) from error
