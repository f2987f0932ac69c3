"""Adopts and reaps the orphaned processes of attempts (Linux' child subreaper).

The first process of a container inherits all orphans. A supervisor that keeps warm spares asks to
inherit them, because each spare is forked by the spare before it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

_SET: Final = 36  # prctl's PR_SET_CHILD_SUBREAPER, and …GET…
_GET: Final = 37


def adopt(wanted: bool = True) -> bool:
    """Start (or stop) adopting orphans; return whether that worked."""
    return _prctl(_SET, int(wanted))


def adopting() -> bool:
    """Return whether this process adopts orphans."""
    if os.getpid() == 1:
        return True
    import ctypes

    found = ctypes.c_int()
    return _prctl(_GET, ctypes.byref(found)) and bool(found.value)


def reap(known: Collection[int]) -> None:
    """Reap dead orphans, up to the first child in `known`.

    Other code waits for the `known` children, and for children in the session of this process.
    Attempts and their orphans are in other sessions.
    """
    with suppress(ChildProcessError, ProcessLookupError):
        while True:
            # Look without reaping: other code may wait for it.
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if seen is None or seen.si_pid in known or not adopting():
                return
            if os.getsid(seen.si_pid) == os.getsid(0):
                return
            os.waitpid(seen.si_pid, os.WNOHANG)


def _prctl(option: int, argument: Any) -> bool:
    import ctypes  # imported only when needed

    with suppress(OSError, AttributeError):  # not Linux
        return bool(ctypes.CDLL(None).prctl(option, argument, 0, 0, 0) == 0)
    return False
