"""Warnings about what a checkpoint cannot hold: once for each place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from outlast.job.log_events import LogEvent
from outlast.training.state.object_graph import Unsaved

_INDEX = re.compile(r"(?<=[\w\])])\[[^\]]*\]")


class UnsavedWarnings:
    """Remembers what was named, whatever its index in a list.

    shown: turns the path of an object into the one that a person reads.
    """

    def __init__(self, shown: Callable[[str], str] = str) -> None:
        self._shown = shown
        self._named: set[str] = set()

    def warn(self, unsaved: list[Unsaved], log: Any) -> None:
        """Log each thing that was not named before."""
        for thing in unsaved:
            place = _INDEX.sub("[*]", thing.path)
            if place not in self._named:
                self._named.add(place)
                log.warning(
                    LogEvent.STATE_NOT_SAVED,
                    what=self._shown(thing.path),
                    kind=thing.kind,
                    why="it cannot be stored; a resume has it as the script makes it",
                    instead=thing.hint,
                )
