"""Warnings about state that a checkpoint cannot contain, once for each place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from outlast.job.log_events import LogEvent
from outlast.training.keras_internals import random_streams
from outlast.training.state.object_graph import Unsaved

_WHY = "it cannot be stored; after a resume, it is as the script creates it"
_INDEX = re.compile(r"(?<=[\w\])])\[[^\]]*\]")


class UnsavedWarnings:
    """Remembers the places that it warned about. Elements of a list count as one place.

    `shown` returns the path for the log line, given the path in the graph.
    """

    def __init__(self, shown: Callable[[str], str] = str, *, why: str = _WHY) -> None:
        self._shown = shown
        self._why = why
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
                    why=self._why,
                    instead=thing.hint,
                )


def warn_of_hidden_ops(log: Any, found: list[str] | None = None) -> None:
    """Log a warning about random ops whose state no checkpoint can contain.

    `found` are those of a traced step. Without it, those that were traced since the last call.
    """
    traced = random_streams.new_hidden_ops()
    if found or (found is None and traced):
        log.warning(
            LogEvent.INEXACT_OPS_FOUND,
            ops=traced if found is None else found,
            why="these random ops keep their state inside TensorFlow, and no checkpoint "
            "contains it; after a resume they draw different numbers",
            instead="use keras.random with a SeedGenerator, or tf.random.stateless_*",
        )
