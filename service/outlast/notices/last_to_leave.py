"""Several trainings on one machine: the last one that leaves may say that it can be taken."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Final

_FOLDER = Path(tempfile.gettempdir())
_NAME: Final = "outlast-watching.lock"


def take_part() -> int | None:
    """Show that a training of this machine watches; return what to give to `last_to_leave`.

    That is an open file with a shared lock, which ends with the process. None: it cannot be shown.
    """
    path = _FOLDER / _NAME
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # somebody is just leaving as the last one
        os.close(file)
        return None
    return file


def last_to_leave(part: int | None) -> bool:
    """Return whether nobody else takes part any more; whoever asks does so no longer."""
    if part is None:
        return False
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(part)
    return True
