"""For how long a storage goes on trying before it says that it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

USUAL: Final = 20.0  # seconds: what a busy store or a server that is restarted takes
BRIEF: Final = 3.0  # for what is soon done again anyway: a heartbeat, a look at one

_seconds: ContextVar[float] = ContextVar("patience", default=USUAL)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Let each storage call in the block give up `seconds` after its first failure.

    0 is one try. Of this thread alone. Only what may pass by itself is tried again at all.
    """
    before = _seconds.set(seconds)
    try:
        yield
    finally:
        _seconds.reset(before)


def seconds() -> float:
    """Return for how long a call that begins now may be tried again."""
    return _seconds.get()
