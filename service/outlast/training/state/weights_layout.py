"""`Layout`: the path of each variable in Keras' `.weights.h5` layout.

It follows Keras' walk through a model (`keras_internals.saving`): the layers of a Sequential or
Functional model under "layers/<snake_class[_n]>", then every attribute that is a saveable or a
container of saveables. Where Keras writes a value, this walk records the variable. So a snapshot
holds it without a copy, and a restore assigns to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from keras import Variable, optimizers

from outlast.training.keras_internals import saving
from outlast.training.keras_internals.models import all_layers
from outlast.training.keras_internals.saved_models import AutoTrackable, variables_below
from outlast.training.state.object_kinds import kind_of


@dataclass
class Layout:
    """Variables by dataset path, attributes by group, and saveables that compute their values."""

    variables: dict[str, Any] = field(default_factory=dict)
    group_attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    computed: dict[str, Any] = field(default_factory=dict)  # "<path>/vars" -> saveable


def weights_layout(model: Any) -> Layout:
    """Return the layout of everything that `model.save_weights` would write."""
    layout = Layout()
    _visit(model, "", layout, set())
    return layout


def stored_values(saveable: Any) -> dict[str, Any]:
    """Return the values that the saveable's `save_own_variables` stores, by key."""
    if (
        isinstance(saveable, optimizers.Optimizer)
        and type(saveable).save_own_variables is optimizers.Optimizer.save_own_variables
    ):
        # Keras' method stores the same variables, but copies every slot with .numpy().
        return {str(i): variable for i, variable in enumerate(saveable.variables)}
    store: dict[str, Any] = {}
    saveable.save_own_variables(store)
    return store


def _visit(saveable: Any, path: str, layout: Layout, visited: set[int]) -> None:
    if id(saveable) in visited:
        return
    if hasattr(saveable, "save_own_variables"):
        group = f"{path}/vars" if path else "vars"
        name = getattr(saveable, "name", None)
        if isinstance(name, str):
            layout.group_attributes[group] = {"name": name}
        values = stored_values(saveable)
        if all(isinstance(v, Variable) for v in values.values()):
            for key, variable in values.items():
                layout.variables[f"{group}/{key}"] = variable
        else:
            layout.computed[group] = saveable
    visited.add(id(saveable))
    for attribute, child in saving.attributes(saveable):
        child_path = f"{path}/{attribute}" if path else attribute
        if saving.is_saveable(child):
            _visit(child, child_path, layout, visited)
        elif isinstance(child, list | dict | tuple):
            _visit_container(child, child_path, layout, visited, set())


def _visit_container(
    container: Any, path: str, layout: Layout, visited: set[int], containers: set[int]
) -> None:
    if id(container) in containers:
        return
    containers.add(id(container))
    for name, child in saving.members(container):
        if saving.is_saveable(child):
            _visit(child, f"{path}/{name}", layout, visited)
        else:
            _visit_container(child, f"{path}/{name}", layout, visited, containers)


def all_variables(model: Any) -> Iterator[Any]:
    """Yield the variables of the model, its metrics and its optimizer, some of them twice."""
    yield from model.variables
    yield from model.metrics_variables
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        yield from optimizer.variables


def untracked_variables(model: Any) -> Iterator[Any]:
    """Yield what Keras does not list: variables in attributes of the model and its parts.

    A traced step tells which variables it touches; one that runs eagerly tells nothing.
    """
    optimizer = getattr(model, "optimizer", None)
    seen: set[int] = set()
    stack = [*all_layers(model), *model.metrics, optimizer, getattr(model, "loss", None)]
    parts = {id(part) for part in stack}
    while stack:
        value = stack.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, tf.Variable | Variable):
            yield value
        elif type(value) in (list, tuple) or isinstance(value, list):
            stack += value
        elif isinstance(value, dict):
            stack += value.values()
        elif id(value) in parts or kind_of(type(value)) == "object":
            stack += vars(value).values() if hasattr(value, "__dict__") else ()
        elif isinstance(value, AutoTrackable):
            stack += variables_below(value)
