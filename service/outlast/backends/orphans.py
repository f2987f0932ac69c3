"""Orphans of the attempts on this machine: whose children they become, and who reaps them.

A container's first process inherits them, and so does a supervisor that has asked for it, as one
does that keeps spares: a spare is handed down from one attempt to the next.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

_SET: Final = 36  # prctl's PR_SET_CHILD_SUBREAPER, and …GET…
_GET: Final = 37


def adopt(wanted: bool = True) -> bool:
    """Have orphans become children of this process, or no more; return whether that was done."""
    return _prctl(_SET, int(wanted))


def adopting() -> bool:
    """Return whether orphans become children of this process."""
    if os.getpid() == 1:
        return True
    import ctypes

    found = ctypes.c_int()
    return _prctl(_GET, ctypes.byref(found)) and bool(found.value)


def reap(known: Collection[int]) -> None:
    """Reap the dead children that nobody here has started, up to the first of the `known`.

    Those have somebody who asks how they ended, and so has whatever this process starts in its own
    session. An attempt is in another one, and so is all that it ever started.
    """
    with suppress(ChildProcessError, ProcessLookupError):
        while True:
            # Looked at without reaping: it may be somebody's
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if seen is None or seen.si_pid in known or not adopting():
                return
            if os.getsid(seen.si_pid) == os.getsid(0):
                return
            os.waitpid(seen.si_pid, os.WNOHANG)


def _prctl(option: int, argument: Any) -> bool:
    import ctypes  # where it is needed, which is seldom

    with suppress(OSError, AttributeError):  # not Linux
        return bool(ctypes.CDLL(None).prctl(option, argument, 0, 0, 0) == 0)
    return False
