"""Keeps a full disk from ending a training that prints: the output is lost, not the training.

stdout and stderr of an attempt usually go to a file in the job's folder, on the same disk as the
checkpoints.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any, Final, TextIO

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class Output(io.RawIOBase):
    """A file that discards whatever a full disk does not accept.

    Attributes:
        lost: Bytes discarded so far.
    """

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file
        self.lost = 0

    def fileno(self) -> int:
        return self._file

    def isatty(self) -> bool:
        return os.isatty(self._file)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            try:
                view = view[os.write(self._file, view) :]
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self.lost += len(view)
                break
        return size


def guard_output() -> list[Output]:
    """Replace sys.stdout and sys.stderr by `Output` files; return these."""
    made = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with suppress(AttributeError, OSError, ValueError):  # None, or not a file
            output = Output(stream.fileno())
            stream.flush()
            setattr(sys, name, _text(stream, output))
            made.append(output)
    return made


def _text(stream: TextIO, output: Output) -> io.TextIOWrapper:
    through = bool(getattr(stream, "write_through", False))
    return io.TextIOWrapper(
        output if through else io.BufferedWriter(output),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(getattr(stream, "line_buffering", False)),
        write_through=through,
    )
