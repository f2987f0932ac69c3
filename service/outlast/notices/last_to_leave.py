"""Finds the last of several trainings on a machine, which may tell the cloud to take it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Final

_FOLDER = Path(tempfile.gettempdir())
_NAME: Final = "outlast-watching.lock"


def take_part() -> int | None:
    """Register a training of this machine; return the file for `last_to_leave`.

    The file has a shared lock, which ends with the process. None: registering failed.
    """
    try:
        file = _open(_FOLDER / _NAME)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # another training is just leaving as the last one
        os.close(file)
        return None
    return file


def _open(path: Path) -> int:
    """Open the file for reading, which is enough to lock it, also if another user has made it.

    O_CREAT on another user's file in /tmp is refused (fs.protected_regular, kernel.org sysctl/fs).
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    try:
        file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:  # another training was first
        return os.open(path, flags)
    os.fchmod(file, 0o644)  # whatever the umask is
    return file


def last_to_leave(part: int | None) -> bool:
    """Unregister a training; return whether no other one is left."""
    if part is None:
        return False
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(part)
    return True
