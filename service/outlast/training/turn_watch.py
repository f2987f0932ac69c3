"""`TurnWatch`: notices where a restarted script goes on after the phases that it passes over.

A search that keeps records of its own skips the trials that it has finished. Nothing is called for
them, so nothing puts back the random generators as the last of them left them, and the next model
would draw other weights than in a run without restarts. The watch follows the lines of the script
until its first `fit` or `Loop`. When a loop begins a turn from which no phase is known, it puts the
generators back as they were when the last phase ended.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any

from outlast.training.call_site import is_of_script, loops_in, place_of


class TurnWatch:
    """Calls `put_back` once, when a loop begins a turn that is in none of `places`.

    Attributes:
        seen: Whether that has happened.
    """

    def __init__(self, places: Iterable[str], put_back: Callable[[], None]) -> None:
        self.seen = False
        self._turns = [place.split(", ") for place in places]
        self._put_back = put_back
        self._names = {name for turn in self._turns for name in _variables(turn)}
        self._watched: dict[tuple[CodeType, int | None], bool] = {}

    def begin(self) -> None:
        """Begin to watch the caller's script; does nothing under a debugger."""
        if sys.gettrace() is not None:
            return
        sys.settrace(self._on_call)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self._is_watched(frame.f_code):
                frame.f_trace = self._on_line
            frame = frame.f_back

    def end(self) -> None:
        """Stop watching."""
        if sys.gettrace() == self._on_call:
            sys.settrace(None)

    def _is_watched(self, code: CodeType, line: int | None = None) -> bool:
        """Return whether this code, or this line of it, may be in a loop of known phases."""
        if (code, line) not in self._watched:
            self._watched[code, line] = is_of_script(code) and any(
                not self._names.isdisjoint(loop.names)
                for loop in loops_in(code.co_filename)
                if line is None or loop.first[0] <= line <= loop.last[0]
            )
        return self._watched[code, line]

    def _on_call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        return self._on_line if self._is_watched(frame.f_code) else None

    def _on_line(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event != "line" or self.seen or not self._is_watched(frame.f_code, frame.f_lineno):
            return self._on_line
        if self._is_new(place_of(frame)):
            self.seen = True
            self.end()
            self._put_back()
        return self._on_line

    def _is_new(self, place: str | None) -> bool:
        """Return whether known phases began in other turns of these loops, and none in this."""
        here = [] if place is None else place.split(", ")
        alike = [
            turn[: len(here)]
            for turn in self._turns
            if here and _variables(turn[: len(here)]) == _variables(here)
        ]
        return bool(alike) and here not in alike


def _variables(turn: list[str]) -> list[str]:
    return [value.partition("=")[0] for value in turn]
