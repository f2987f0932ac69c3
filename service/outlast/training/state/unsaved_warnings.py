"""Warnings about state that a checkpoint cannot contain, once for each place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from outlast.job.log_events import LogEvent
from outlast.training.state.object_graph import Unsaved

_INDEX = re.compile(r"(?<=[\w\])])\[[^\]]*\]")


class UnsavedWarnings:
    """Remembers the places that it warned about. Elements of a list count as one place.

    `shown` returns the path for the log line, given the path in the graph.
    """

    def __init__(self, shown: Callable[[str], str] = str) -> None:
        self._shown = shown
        self._named: set[str] = set()

    def warn(self, unsaved: list[Unsaved], log: Any) -> None:
        """Log a warning for each place that had none before."""
        for thing in unsaved:
            place = _INDEX.sub("[*]", thing.path)
            if place not in self._named:
                self._named.add(place)
                log.warning(
                    LogEvent.STATE_NOT_SAVED,
                    what=self._shown(thing.path),
                    kind=thing.kind,
                    why="it cannot be stored; after a resume, it is as the script creates it",
                    instead=thing.hint,
                )
