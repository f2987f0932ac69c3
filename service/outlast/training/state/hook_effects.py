"""Changes that callbacks make to a model before its step is traced. A checkpoint stores them.

Keras traces the step after `on_train_begin` and the first `on_epoch_begin`. What these hooks set, a
frozen layer or a learning rate for example, becomes part of the traced step. A resume calls
`on_train_begin` again, but not the `on_epoch_begin` of a past epoch. It therefore sets the stored
attributes before it traces the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from outlast.training.keras_internals.attributes import attributes
from outlast.training.keras_internals.models import all_layers
from outlast.training.state import trees

Plain = dict[str, Any]

_MISSING: Any = object()
_PLAIN = (type(None), bool, int, float, str)
_TRACKING = ("keras.", "tensorflow.")


class HookEffects:
    """Compares the attributes of a model, its layers and optimizers with those at creation."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._before = {(key, name): _mark(value) for key, name, value in self._read()}
        self._parts = {key for key, _ in _parts(model)}
        self._flags = [(variable, variable.trainable) for variable in model.variables]
        self._kept = [
            value for _, _, value in self._read()
        ]  # keeps the objects alive, so that no id is reused
        self._optimizer = getattr(model, "optimizer", None)
        self._replaced: list[tuple[Any, str, Any]] = []  # by `apply`, with the value before

    def changes(self) -> Plain:
        """Return what has changed since creation, as plain data.

        attributes: [part, name, value] of each changed attribute whose value is plain data.
        replaced: names of the other changed attributes. flags: [index, trainable] of the variables
        whose `trainable` changed.
        """
        changed, replaced = [], []
        parts = dict(_parts(self._model))
        for key, name, value in self._read():
            before = self._before.get((key, name))
            # If a hook created the part, the hook will create it again.
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

    def apply(self, changes: Plain, *, in_place: bool = False) -> None:
        """Apply what `changes` returned in an earlier process.

        With `in_place`, keep the objects that the script has made; they are filled later.
        """
        parts = dict(_parts(self._model))
        for key, name, value in changes["attributes"]:
            if key in parts and not (in_place and not isinstance(value, _PLAIN)):
                self._set(parts[key], name, value)
        for index, trainable in changes["flags"]:
            if index < len(self._flags):
                self._set(self._flags[index][0], "trainable", trainable)

    @contextmanager
    def undone_by_error(self) -> Iterator[None]:
        """Undo what `apply` has done, if the block raises an error."""
        try:
            yield
        except BaseException:
            for part, name, value in reversed(self._replaced):
                if value is _MISSING:
                    delattr(part, name)
                else:
                    setattr(part, name, value)
            raise

    def _set(self, part: Any, name: str, value: Any) -> None:
        self._replaced.append((part, name, getattr(part, name, _MISSING)))
        setattr(part, name, value)

    def _read(self) -> Iterator[tuple[str, str, Any]]:
        for key, part in _parts(self._model):
            for name, value in attributes(part):
                yield key, name, value


def _parts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the model, its layers and its optimizers, each with a name that a resume repeats."""
    for i, layer in enumerate(all_layers(model)):
        yield f"{i}:{type(layer).__name__}", layer
    for name, value in list(vars(model).items()):
        while isinstance(value, keras.optimizers.Optimizer):
            yield f"{name}:{type(value).__name__}", value
            name, value = f"{name}.inner", getattr(value, "inner_optimizer", None)


def _plain(value: Any) -> Any:
    """Return the plain list, dict, tuple or set behind Keras' tracking wrapper."""
    for kind in (list, dict, tuple, set):
        if isinstance(value, kind) and type(value).__module__.startswith(_TRACKING):
            return kind(value)
    return value


def _mark(value: Any) -> Any:
    """Return a fingerprint of the value: of its content, or else the identity of the object."""
    try:
        return trees.fingerprint(_plain(value))
    except trees.NotPlain:
        return id(value)
