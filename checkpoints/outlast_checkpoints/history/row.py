"""One history row as a line of JSON, and back."""

from __future__ import annotations

from typing import Any

import msgspec

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format import layout, typed_json
from outlast_checkpoints.format.manifest import number_from_json, number_to_json
from outlast_checkpoints.format.sealed_json import UNREADABLE

Row = dict[str, Any]

_LARGEST = 1 << 62  # of counters such as step


def encode(row: Row) -> bytes:
    """Return a row as a line of JSON without its newline. NaN and infinities become strings."""
    line = _encode(row)
    if b"null" in line:  # NaN and infinities encode as null
        line = _encode(_spelled(row))
    return line


def decode(text: bytes, attempt: int, at: int) -> Row:
    """Decode the line at byte `at` of an attempt's history. Raises `FormatError`."""
    try:
        row = typed_json.decode(text, Row)
    except UNREADABLE as error:
        raise damaged(attempt, f"it is damaged at byte {at}: {error}") from error
    for key, fits in _KNOWN.items():
        if key in row and not fits(row[key]):
            raise damaged(attempt, f"it is damaged at byte {at}: {key} is {row[key]!r:.60}")
    if b'NaN"' in text or b'Infinity"' in text:
        for key, value in row.items():
            if isinstance(value, dict):
                row[key] = {name: number_from_json(inner) for name, inner in value.items()}
            elif key not in ("kind", "name"):
                row[key] = number_from_json(value)
    return row


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_mapping(value: Any) -> bool:
    return type(value) is dict


_KNOWN = {"kind": _is_text, "phase": _is_count, "step": _is_count, "logs": _is_mapping}


def kinds(lines: bytes) -> list[str] | None:
    """Return the kind of each line, or None if any line cannot be read."""
    try:
        found = _kinds(lines)
    except UNREADABLE:
        return None
    return [row.kind for row in found] if len(found) == lines.count(b"\n") else None


def mention(kind: str) -> bytes:
    """Return bytes that every row of a kind contains, so that other rows need no decoding."""
    return b'"kind":' + msgspec.json.encode(kind)


def epoch(row: Row) -> tuple[int, int] | None:
    """Return phase and epoch of a row, or None if it has none. They never decrease."""
    number = row.get("epoch")
    return (int(row.get("phase", 0)), number) if isinstance(number, int) else None


def place(row: Row) -> tuple[int, int, int]:
    """Return a row's place in the training. Rows are ordered by it."""
    rank = {"phase": 0, "step": 1, "epoch": 2}.get(str(row.get("kind")), 1)
    return int(row.get("phase", 0)), int(row.get("step", 0)), rank


def damaged(attempt: int, reason: str) -> FormatError:
    """Return the error for a damaged history of an attempt."""
    return FormatError(
        path=layout.attempt_dir(attempt), reason=f"the history of attempt {attempt}: {reason}"
    )


def _plain(value: Any) -> Any:
    """Convert a numpy scalar or a tensor to a Python number, for the encoder."""
    if hasattr(value, "numpy"):
        value = value.numpy()
    if hasattr(value, "item"):
        return value.item()
    raise NotImplementedError(f"a {type(value).__name__} cannot be a value of a history row")


class _Kind(msgspec.Struct, gc=False):
    kind: str = ""


_kinds = msgspec.json.Decoder(_Kind).decode_lines
_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelled(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled(inner) for inner in value]
    if value is None or isinstance(value, (str, int)):
        return value
    plain = value if isinstance(value, float) else _plain(value)
    return number_to_json(plain) if isinstance(plain, float) else plain
