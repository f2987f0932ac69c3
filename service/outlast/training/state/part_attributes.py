"""What training changed in the attributes of layers, metrics and losses.

An eager step reads an attribute each time, and may set it: a counter, a rate, an object. A compiled
step reads it once, when it is traced; but callbacks and Python functions in the step may use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.keras_internals import layer_calls
from outlast.training.keras_internals.models import all_layers, all_metrics, compiled_metrics
from outlast.training.keras_internals.variables import schedule_of
from outlast.training.state import document
from outlast.training.state.code_state import is_code
from outlast.training.state.object_graph import ObjectGraph, Unsaved
from outlast.training.state.object_kinds import Part
from outlast.training.state.object_restore import Restore
from outlast.training.state.script_code import is_defined_by_script

Plain = dict[str, Any]


class PartAttributes:
    """The attributes of the parts of models since this was made.

    `owners` are models, layers and metrics by name. `elsewhere` are objects by name that are saved
    elsewhere; references to them are kept.
    """

    def __init__(
        self, owners: Mapping[str, Any], elsewhere: Plain, *, without_data: bool = False
    ) -> None:
        self._owners = dict(owners)
        self._without_data = without_data
        self._idle: dict[str, tuple[Part, Any]] = {}  # of Keras, unchanged so far
        self.parts: dict[int, Part] = {}  # by the id of the layer, metric or loss
        self._code: dict[int, Any] = {}  # functions that the script gave to `compile`, by id
        self._elsewhere = dict(elsewhere)
        roots = self._new_parts()
        for path, part in roots.items():
            if isinstance(part, Part) and part.is_keras_own and not part.has_code:
                self._idle[path] = part, part.signature()
        roots = {path: part for path, part in roots.items() if path not in self._idle}
        self._graph = ObjectGraph(roots, elsewhere)

    def add_elsewhere(self, objects: Plain) -> None:
        """Add objects by name that are saved elsewhere, and parts that the first step created."""
        self._elsewhere.update(objects)
        self._graph.add_elsewhere(objects)
        for path, part in self._new_parts().items():
            self._graph.add_root(path, part)

    def capture(self, variables: MutableMapping[str, Any], names: dict[int, str]) -> Plain:
        """Return what has changed, as plain data, and hold new variables in `variables`."""
        for path, (part, before) in list(self._idle.items()):
            if part.signature() != before:
                self._observe(path)
        return self._graph.capture(variables, names)

    def _observe(self, path: str) -> None:
        if path in self._idle:
            self._graph.add_root(path, self._idle.pop(path)[0])

    @property
    def unsaved(self) -> list[Unsaved]:
        """What the last capture found and could not store."""
        return self._graph.unsaved

    def restoring(self, state: Plain, variables: Mapping[str, Any]) -> Restore:
        """Return the restore of what `capture` returned."""
        for path in state["known"]:
            self._observe(path)
        return Restore(self._graph, state, variables)

    def kept(self) -> Restore:
        """Return what restores all attributes as they are now."""
        roots = {
            str(i): part for i, part in enumerate([*self.parts.values(), *self._code.values()])
        }
        graph = ObjectGraph(roots, self._elsewhere, everything=True, in_code=True)
        variables: Plain = {}
        packed = document.pack({"objects": graph.capture(variables)}, variables)
        copies = {name: np.array(value) for name, value in packed.arrays.items()}
        plain, stored = document.unpack(copies, "the state before a rehearsal")
        return Restore(graph, plain["objects"], stored)

    def watching(self) -> AbstractContextManager[None]:
        """Return a context that notes what the first trace of a layer reads."""
        return layer_calls.watching(self.parts)

    def _new_parts(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for owner, value in self._owners.items():
            prefix = f"{owner}, " if len(self._owners) > 1 else ""
            for kind, part in _parts_of(value):
                if is_code(part):
                    if id(part) not in self._code:
                        found[f"{prefix}{kind} (function {len(self._code)})"] = part
                        self._code[id(part)] = part
                elif id(part) not in self.parts:
                    number = len(self.parts)
                    made = self.parts[id(part)] = Part(part, without_data=self._without_data)
                    found[f"{prefix}{type(part).__name__} ({kind} {number})"] = made
        return found


def _parts_of(owner: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(owner, keras.layers.Layer):
        for layer in all_layers(owner):
            yield "layer", layer
    elif isinstance(owner, keras.metrics.Metric):
        yield "metric", owner
    elif isinstance(owner, tf.Module) and is_defined_by_script(type(owner)):
        yield "module", owner
    if isinstance(owner, keras.Model) and owner.compiled:
        schedule = schedule_of(getattr(owner, "optimizer", None))
        if schedule is not None and owner.run_eagerly:
            yield "schedule", schedule
        optimizer = getattr(owner, "optimizer", None)
        if optimizer is not None and is_defined_by_script(type(optimizer)):
            yield "optimizer", optimizer
        for metric in all_metrics(owner) if owner.run_eagerly else ():
            yield "metric", metric
        for loss in keras.tree.flatten(owner.loss):
            if isinstance(loss, keras.losses.Loss) or is_code(loss):
                yield "loss", loss
        yield from (("metric", one) for one in compiled_metrics(owner) if is_code(one))
