"""The lines of a script's output as a terminal would leave them."""

from __future__ import annotations

import codecs
import re


class Lines:
    """Assembles pieces of output into complete lines.

    Of text that carriage returns overwrite, only the last version is kept.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> list[str]:
        """Add output; return the lines that are complete now."""
        *lines, rest = (self._rest + self._decoder.decode(data)).replace("\r\n", "\n").split("\n")
        # A newline may still follow a carriage return at the end.
        self._rest = rest if rest.endswith("\r") else visible(rest)
        return [visible(line) for line in lines]

    def rest(self) -> list[str]:
        """Return and forget the incomplete last line, if there is one."""
        rest, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        self._decoder.reset()
        shown = visible(rest)
        return [shown] if shown else []


def visible(line: str) -> str:
    """Return what is left of a line on a terminal after its carriage returns."""
    parts = [part for part in re.split("\r", line) if part]
    return parts[-1] if parts else ""
