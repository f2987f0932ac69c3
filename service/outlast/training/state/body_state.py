"""What the body of a `Loop` changes and the Loop's state lacks: it is named, because it is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any, Final

from outlast.training.state.body_names import BodyVariables
from outlast.training.state.object_graph import ObjectGraph, Unsaved
from outlast.training.state.object_kinds import may_be_state
from outlast.training.state.unsaved_warnings import UnsavedWarnings

_ROOT: Final = "body"
_STEPS: Final = 3  # after these it looks, and after the first one of the next epoch
_HINT: Final = (
    "put it into the Loop's state; a number, into a dict or an array that the body changes in place"
)


class BodyState:
    """Looks a few times at what the body has changed.

    `frame` is that of the loop, and `elsewhere` are the objects in the Loop's state, by name.
    """

    def __init__(self, frame: FrameType | None, elsewhere: Mapping[str, Any]) -> None:
        self._graph: ObjectGraph | None = None
        if frame is not None:
            variables = BodyVariables(frame, may_be_state)
            self._graph = ObjectGraph({_ROOT: variables}, elsewhere)
        self._warnings = UnsavedWarnings(why="the loop's body changes it, and no checkpoint has it")
        self._steps = 0
        self._first: int | None = None

    def look(self, epoch: int, log: Any) -> None:
        """Log what a step has changed. Call it after each one."""
        if self._graph is None:
            return
        self._steps += 1
        self._first = epoch if self._first is None else self._first
        if self._steps <= _STEPS or epoch > self._first:
            self._warnings.warn(lost_in(self._graph), log)
        if epoch > self._first:
            self._graph = None


def lost_in(graph: ObjectGraph) -> list[Unsaved]:
    """Return what has changed in the variables of a body, each place once."""
    found = {}
    for path, content in graph.capture({})["known"].items():
        place = path.removeprefix(_ROOT).removeprefix(".")
        if content["kind"] != "object":
            found[place] = Unsaved(place, content["kind"], _HINT)
            continue
        for name, item in content["attributes"].items():
            kind = "object" if isinstance(item, list | dict) else type(item).__name__
            at = f"{place}.{name}" if place else name
            found[at] = Unsaved(at, kind, _HINT)
    for thing in graph.unsaved:  # iterators, and objects of libraries that changed
        root, _, name = thing.path.partition(".")
        if root == _ROOT and name.isidentifier():
            found[name] = Unsaved(name, thing.kind, _HINT)
    return list(found.values())


def frame_of_body(is_of_script: Callable[[CodeType], bool]) -> FrameType | None:
    """Return the frame of the script that takes the next value of the caller's generator."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_of_script(frame.f_code):
        frame = frame.f_back
    return frame
