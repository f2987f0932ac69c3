"""What hooks have changed on a model before its step was traced: a resume traces the same step.

Keras traces the step after the `on_train_begin` and the first `on_epoch_begin`, so that a layer
frozen there stays as it is, and a rate set there counts. A resume calls `on_train_begin` again, but
not the begin of an epoch that is over. So the attributes are stored, and set before the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from outlast.training.keras_internals.attributes import attributes
from outlast.training.keras_internals.models import all_layers
from outlast.training.state import trees

Plain = dict[str, Any]

_TRACKING = ("keras.", "tensorflow.")


class HookEffects:
    """The attributes of a model, its layers and optimizers since this was made."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._before = {(key, name): _mark(value) for key, name, value in self._read()}
        self._parts = {key for key, _ in _parts(model)}
        self._flags = [(variable, variable.trainable) for variable in model.variables]
        self._kept = [value for _, _, value in self._read()]  # so that no id is used again
        self._optimizer = getattr(model, "optimizer", None)

    def changes(self) -> Plain:
        """Return what has changed since then, as plain data.

        attributes: [part, name, value] of each that is plain data. replaced: names of the others.
        flags: [index, trainable] of variables.
        """
        changed, replaced = [], []
        parts = dict(_parts(self._model))
        for key, name, value in self._read():
            before = self._before.get((key, name))
            # A part that a hook has made is made again by it.
            if key not in self._parts or before == _mark(value):
                continue
            try:
                trees.fingerprint(_plain(value))
            except trees.NotPlain:
                replaced.append(f"{parts[key].name}.{name}")
            else:
                changed.append([key, name, _plain(value)])
        flags = [
            [i, variable.trainable]
            for i, (variable, before) in enumerate(self._flags)
            if variable.trainable != before
        ]
        swapped = getattr(self._model, "optimizer", None) is not self._optimizer
        return {
            "attributes": changed,
            "replaced": [*replaced, *(["optimizer"] if swapped else [])],
            "flags": flags,
        }

    def apply(self, changes: Plain) -> None:
        """Set what `changes` has returned in an earlier process."""
        parts = dict(_parts(self._model))
        for key, name, value in changes["attributes"]:
            if key in parts:
                setattr(parts[key], name, value)
        for index, trainable in changes["flags"]:
            if index < len(self._flags):
                self._flags[index][0].trainable = trainable

    def _read(self) -> Iterator[tuple[str, str, Any]]:
        for key, part in _parts(self._model):
            for name, value in attributes(part):
                yield key, name, value


def _parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the model, its layers and its optimizers, each by a name that a resume gives it too."""
    for i, layer in enumerate(all_layers(model)):
        yield f"{i}:{type(layer).__name__}", layer
    for name, value in list(vars(model).items()):
        while isinstance(value, keras.optimizers.Optimizer):
            yield f"{name}:{type(value).__name__}", value
            name, value = f"{name}.inner", getattr(value, "inner_optimizer", None)


def _plain(value: Any) -> Any:
    """Return a list, dict or tuple that Keras tracks as the plain one that was set."""
    for kind in (list, dict, tuple, set):
        if isinstance(value, kind) and type(value).__module__.startswith(_TRACKING):
            return kind(value)
    return value


def _mark(value: Any) -> Any:
    """Return what tells a value from another one: its content, or which object it is."""
    try:
        return trees.fingerprint(_plain(value))
    except trees.NotPlain:
        return id(value)
