"""Errors of a script: whether another attempt may get further, and how a heartbeat quotes them."""

from __future__ import annotations

from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.redaction import redact


def is_transient(error: BaseException) -> bool:
    """Return whether the script may get further in another attempt."""
    if isinstance(error, OSError):
        lasting = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
        return not isinstance(error, lasting)
    return isinstance(error, MemoryError | OutlastError) or not isinstance(error, Exception)


def short(text: str, limit: int = 500) -> str:
    """Return `text` on one line of at most `limit` characters, with credentials hidden."""
    line = " ".join(redact(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
