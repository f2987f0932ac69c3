"""Measures commands as a user runs them, and empties the page cache where that is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

OUTLAST = (sys.executable, "-m", "outlast")
_CACHES = Path("/proc/sys/vm/drop_caches")
_ROOT = Path(__file__).parents[2]


class Took(NamedTuple):
    """Wall time in seconds, and peak resident memory in MB (10^6 bytes)."""

    seconds: float
    memory: float


def take(command: Sequence[str]) -> Took:
    """Run a command to its end and discard its output. Raises `CalledProcessError`."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Took(seconds, usage.ru_maxrss * 1024 / 1e6)


def seconds(*command: str) -> float:
    """Return the wall time of a command in seconds."""
    return take(command).seconds


def forget_files() -> bool:
    """Empty the page cache; return whether that is allowed here."""
    os.sync()
    try:
        _CACHES.write_text("3")
    except OSError:
        return False
    return True
