"""How long a storage retries before it raises the error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

USUAL: Final = 20.0  # seconds; enough for a busy store or a restarting server
BRIEF: Final = 3.0  # seconds; for calls that are repeated soon anyway, such as heartbeats

_seconds: ContextVar[float] = ContextVar("patience", default=USUAL)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Make each storage call in the block give up `seconds` after its first failure.

    0 means a single try. It applies to this thread only, and to failures that may pass.
    """
    before = _seconds.set(seconds)
    try:
        yield
    finally:
        _seconds.reset(before)


def seconds() -> float:
    """Return how many seconds a call that begins now may be retried."""
    return _seconds.get()
