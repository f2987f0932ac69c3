"""`LiveState`: all variables of a model in training, to hold, check and restore.

Weights and optimizer go to `model.weights.h5`, in Keras' layout. Variables that Keras does not save
there (seed generators, metrics, variables that only the train step uses) go to `state.h5`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.errors import StateMismatch
from outlast.training.keras_internals.distribution import copies, may_differ
from outlast.training.keras_internals.models import all_layers, metrics_are_built, to_snake_case
from outlast.training.keras_internals.variables import learning_rate as rate_variable
from outlast.training.keras_internals.variables import raw
from outlast.training.state import replica_values, trees, weights_layout
from outlast.training.state.held_values import Holder
from outlast.training.state.replica_values import ReplicaValues, StackedValue
from outlast_checkpoints.format.snapshot import ArrayFile

_LARGE = 1 << 20  # bytes; a larger array is assigned without a copy
_ALIGNED = 64  # bytes; TensorFlow's kernels need memory that starts at a multiple
_REPLICAS = "replicas"
_NUMBERED = re.compile(r"_\d+(?=[/:]|$)")


class LiveState:
    """A model's variables, by their path in the checkpoint's two array files.

    `model` is a Keras model; a compiled step needs it built, with a built optimizer. `extra` are
    further variables that training changes, for example seed generators in closures. Variables in
    both count once. With `traced`, `extra` has all variables that a step touches; otherwise they
    are looked for in attributes. `learning_rate` is the one in the script, if a hook may have
    changed it since.
    """

    def __init__(
        self,
        model: Any,
        extra: Iterable[Any] = (),
        *,
        prefix: str = "variables",
        traced: bool = False,
        learning_rate: float | None = None,
    ) -> None:
        self.prefix = prefix
        self._traced = traced
        self._of = (model, list(extra))
        self.rest: list[Any] = []
        self.loss = _loss_names(getattr(model, "loss", None))
        here = learning_rate_of(model)
        self.learning_rate = here if learning_rate is None else learning_rate
        self.refresh()

    def refresh(self) -> None:
        """Collect the model's variables again, because an eager step may have created some."""
        model, extra = self._of
        self.layout = weights_layout.weights_layout(model)
        known = {id(raw(v)) for v in self.layout.variables.values()}
        self.rest = []
        untracked = [] if self._traced else weights_layout.untracked_variables(model)
        for variable in [*weights_layout.all_variables(model), *extra, *untracked]:
            if id(raw(variable)) not in known and raw(variable).dtype != tf.string:
                known.add(id(raw(variable)))
                self.rest.append(variable)
        self._names = {
            group: re.sub(r"_\d+$", "", attributes["name"])
            for group, attributes in self.layout.group_attributes.items()
            if group.startswith("optimizer") and "name" in attributes
        }
        self._paths = [_path(v) for v in self.rest]
        everything = [*self.layout.variables.values(), *self.rest]
        self._replicas = replica_values.replicas_of(everything)
        # An optimizer updates all replicas at once, so its variables never differ.
        self._own = [
            path
            for path, variable in self.layout.variables.items()
            if may_differ(raw(variable)) and not path.startswith("optimizer/")
        ]
        self._constant = {"names": trees.Constant(self._names), "rest": trees.Constant(self._paths)}
        self._weights = Holder(self.layout.variables.values())
        self._others = ReplicaValues(self.rest)
        self._by_replica = ReplicaValues(self.layout.variables[path] for path in self._own)

    def objects(self) -> dict[str, Any]:
        """Return the model's layers, metrics, optimizer and variables, by name."""
        model, _ = self._of
        found: dict[str, Any] = {f"model/{i}": layer for i, layer in enumerate(all_layers(model))}
        for i, metric in enumerate(model.metrics):
            found[f"metrics/{i}"] = metric
        found["optimizer"] = getattr(model, "optimizer", None)
        for variable in [*self.layout.variables.values(), *self.rest]:
            found[f"variables/{len(found)}"] = variable
            found[f"variables/{len(found)}"] = raw(variable)
        return {name: value for name, value in found.items() if value is not None}

    def weights(self) -> ArrayFile:
        """Hold the content of `model.weights.h5`."""
        arrays = dict(zip(self.layout.variables, self._weights.hold(), strict=True))
        for group, saveable in self.layout.computed.items():
            for key, value in weights_layout.stored_values(saveable).items():
                arrays[f"{group}/{key}"] = np.array(value)
        return ArrayFile(arrays, self.layout.group_attributes)

    def others(self) -> dict[str, Any]:
        """Hold the variables for `state.h5`, by "<prefix>/<index>".

        Weights that differ by replica, such as the moments of BatchNormalization, are there in
        full, by "<prefix>/replicas/<path>"; `weights` has those of the first replica.
        """
        found = {f"{self.prefix}/{i:06d}": held for i, held in enumerate(self._others.hold())}
        for path, held in zip(self._own, self._by_replica.hold(), strict=True):
            if isinstance(held, StackedValue):
                found[f"{self.prefix}/{_REPLICAS}/{path}"] = held
        return found

    def describe(self) -> dict[str, Any]:
        """Return the facts that a restore compares besides names and shapes: classes and paths."""
        return {
            **self._constant,
            "replicas": self._replicas,
            "loss": self.loss,
            "metrics_built": metrics_are_built(self._of[0]),
            "learning_rate": self.learning_rate,
        }

    def check(
        self,
        checkpoint: str,
        weights: Mapping[str, Any],
        others: Mapping[str, Any],
        description: Mapping[str, Any],
        *,
        partly: bool = False,
    ) -> None:
        """Raise `StateMismatch` with the first difference. Changes nothing.

        With `partly`, the model's next step may create variables that the checkpoint has, so this
        compares only those of the layers that exist.
        """

        def fail(what: str, problem: str) -> None:
            raise StateMismatch(checkpoint=checkpoint, what=what, problem=problem)

        replicas = description.get("replicas", 1)
        if replicas != self._replicas:
            problem = f"the checkpoint has {replicas}, the script has {self._replicas}"
            fail("replicas", problem)
        for group, name in self._names.items():
            stored = description["names"].get(group)
            if stored is not None and _plain_name(stored) != _plain_name(name):
                fail(group, f"the checkpoint has {stored!r}, the script has {name!r}")
        self._check_weights(weights, fail, partly=partly)
        paths = self._paths
        if partly:
            return
        self._check_paths(paths, description["rest"], fail)
        for i, variable in enumerate(self.rest):
            check_one(paths[i], others[f"{self.prefix}/{i:06d}"], variable, fail)
        if description["loss"] != self.loss:
            fail("loss", f"the checkpoint has {description['loss']}, the script has {self.loss}")

    def _check_paths(self, paths: list[str], stored: list[str], fail: Any) -> None:
        # Compare without the numbers that make Keras' names unique in a process.
        mine, theirs = ([_NUMBERED.sub("", path) for path in each] for each in (paths, stored))
        for i, (one, other) in enumerate(zip_longest(mine, theirs)):
            if one == other:
                continue
            if one is not None and one not in theirs[i:]:
                fail(paths[i], "the script has it, the checkpoint does not")
            if other is not None and other not in mine[i:]:
                fail(stored[i], "the checkpoint has it, the script does not")
            fail(str(one), f"the checkpoint has {other} in its place")

    def _check_weights(self, weights: Mapping[str, Any], fail: Any, *, partly: bool) -> None:
        groups = set(self.layout.computed)
        names = set(self.layout.variables) | {n for n in weights if n.rsplit("/", 1)[0] in groups}
        for name in sorted({*names, *weights}, key=_natural):
            if partly and name.startswith("optimizer"):
                continue
            if name not in weights:
                fail(name, "the script has it, the checkpoint does not")
            if name not in names and not partly:
                fail(name, "the checkpoint has it, the script does not")
            if name in self.layout.variables:
                check_one(name, weights[name], self.layout.variables[name], fail)

    def lacks(self, weights: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
        """Return whether the checkpoint has variables that the model lacks."""
        more = {name for name in weights if name.rsplit("/", 1)[0] not in self.layout.computed}
        return not more <= set(self.layout.variables) or len(description["rest"]) > len(self.rest)

    def values(self) -> list[tuple[Any, Any]]:
        """Return all variables with copies of their values, for a later `assign` of each."""
        variables = [*self.layout.variables.values(), *self.rest]
        return [(copy, copy.numpy()) for v in variables for copy in copies(raw(v))]

    def assign(self, weights: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        """Assign checked values to the variables.

        The variables take over the memory of large arrays, so do not use the arrays afterwards.
        """
        for path, variable in self.layout.variables.items():
            stacked = others.get(f"{self.prefix}/{_REPLICAS}/{path}")
            value = _as_it_lies(weights[path]) if stacked is None else stacked
            replica_values.assign(variable, value)
        for group, saveable in self.layout.computed.items():
            prefix = f"{group}/"
            saveable.load_own_variables(
                {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
            )
        for i, variable in enumerate(self.rest):
            replica_values.assign(variable, others[f"{self.prefix}/{i:06d}"])
        # TensorFlow prepares the reading ops now, not while the first save stops the loop.
        self._weights.hold()
        self._others.hold()
        self._by_replica.hold()


def _as_it_lies(array: Any) -> Any:
    """Return a large array as a tensor that shares its memory, if the memory allows that.

    A variable takes over the memory of a tensor that is assigned to it. So nothing is copied, no
    further memory is needed, and training then writes to that memory.
    """
    fits = array.nbytes >= _LARGE and array.ctypes.data % _ALIGNED == 0
    if fits and array.flags.c_contiguous and array.flags.writeable:
        with suppress(Exception):  # if TensorFlow refuses the array, it is copied
            return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return array


def check_one(name: str, stored: Any, variable: Any, fail: Any) -> None:
    """Call `fail(what, problem)` if a stored array does not match a variable."""
    live = raw(variable)
    if not replica_values.fits(stored, variable):
        fail(
            f"{name} ({_path(variable)})",
            f"the checkpoint has shape {tuple(stored.shape)}, the script has {tuple(live.shape)}",
        )
    if stored.dtype != live.dtype.as_numpy_dtype:
        fail(
            f"{name} ({_path(variable)})",
            f"the checkpoint has {stored.dtype}, the script has {live.dtype.name}",
        )


def _loss_names(loss: Any) -> Any:
    """Return the names of a compiled model's losses, in the structure passed to `compile`."""
    if isinstance(loss, dict):
        return {str(key): _loss_names(value) for key, value in loss.items()}
    if isinstance(loss, list | tuple):
        return [_loss_names(value) for value in loss]
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return "crossentropy"  # Keras chooses the kind from the shape of the targets
    found = keras.losses.get(loss)
    if found is None:
        return None
    return to_snake_case(getattr(found, "__name__", type(found).__name__))


def learning_rate_of(model: Any) -> float | None:
    """Return the learning rate in the script, or None if it is a schedule."""
    rate = rate_variable(getattr(model, "optimizer", None))
    return None if rate is None else float(raw(rate).numpy())


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name)


def _plain_name(name: str) -> str:
    """Normalize a name across versions of Keras, where AdamW is "adamw" or "adam_w"."""
    return name.replace("_", "").lower()


def _natural(name: str) -> list[Any]:
    # Model before optimizer, and vars/10 after vars/9, so that the reported difference is helpful.
    parts = re.split(r"(\d+)", name)
    numbered = [int(p) if i % 2 else p for i, p in enumerate(parts)]
    return [name.startswith("optimizer"), *numbered]
