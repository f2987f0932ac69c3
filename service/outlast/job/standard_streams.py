"""Standard streams that are closed, full, or of an encoding that lacks characters."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final

_NAMES: Final = ("stdin", "stdout", "stderr")


def open_closed() -> None:
    """Open /dev/null in place of each standard stream that this process was started without.

    Otherwise the next file that is opened would get the stream's number, and prints would end up
    in it.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # stays open if the other one is replaced


def say(text: str) -> None:
    """Print a line to stderr, if there is a stderr that takes it."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # full or closed
            sys.stderr.write(f"{text}\n")


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def flush() -> None:
    """Flush stdout and stderr as far as they take it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
