"""A small JSON document together with the hash of its exact bytes.

`{"checksum":"xxh3:<32 hex digits>","body":<JSON>}` with nothing before or after: each byte is
either fixed or hashed, so a single flipped, missing or added one is found.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
import xxhash

from outlast_checkpoints.errors import FormatError, FormatTooNew

T = TypeVar("T")

# What decoding raises for what is no JSON, is something else, is no text, or is nested without end.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_HEAD = b'{"checksum":"'
_MIDDLE = b'","body":'
_TAIL = b"}"
_DIGITS = len("xxh3:") + 32


class _Format(msgspec.Struct):
    format: int


def checksum(data: bytes) -> str:
    """Return the hash of `data` as it is written in manifests: "xxh3:" and 32 hex digits."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(data)}"


def seal(value: msgspec.Struct) -> bytes:
    """Return the document that holds `value`."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2)
    return b"".join((_HEAD, checksum(body).encode(), _MIDDLE, body, _TAIL))


def unseal(data: bytes, path: str, kind: type[T], known: int) -> T:
    """Return the value of a document found at `path`.

    known: the newest format number that can be read. Raises `FormatError`, `FormatTooNew`.
    """
    start = len(_HEAD) + _DIGITS + len(_MIDDLE)
    body = data[start : -len(_TAIL)]
    expected = b"".join((_HEAD, checksum(body).encode(), _MIDDLE, body, _TAIL))
    if data != expected:
        raise FormatError(path=path, reason="its checksum does not fit its content")
    try:
        found = msgspec.json.decode(body, type=_Format).format
        if found > known:
            raise FormatTooNew(path=path, found=found, known=known)
        return msgspec.json.decode(body, type=kind)
    except UNREADABLE as error:
        raise FormatError(path=path, reason=str(error)) from error
