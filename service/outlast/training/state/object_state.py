"""The state of one object of the user, a PyDataset: what training changed in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from outlast.training.errors import NotSupported
from outlast.training.state.object_graph import ObjectGraph
from outlast.training.state.object_restore import Restore


class ObjectState:
    """What changes in one object after this is created."""

    def __init__(self, name: str, value: Any) -> None:
        self._name = name
        self._graph = ObjectGraph({name: value})

    def capture(self) -> dict[str, Any]:
        """Return what has changed, as plain data. Raises `NotSupported` if it cannot be stored."""
        variables: dict[str, Any] = {}
        objects = self._graph.capture(variables)
        for thing in self._graph.unsaved:
            if thing.path == self._name:
                raise NotSupported(
                    field=self._name,
                    problem=f"its get_state() returns a state that cannot be stored ({thing.kind})",
                    hint="Return only numbers, strings, arrays, and lists and dicts of them.",
                )
        arrays = {name: np.asarray(value) for name, value in variables.items()}
        return {"objects": objects, "variables": arrays}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `capture` returned."""
        Restore(self._graph, state["objects"], state["variables"]).apply()
