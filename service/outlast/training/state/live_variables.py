"""The complete state of a model in training: held for a snapshot, checked and put back.

Weights and optimizer stand in `model.weights.h5` in Keras' layout; what Keras does not save there
(seed generators, metrics, variables that only the train step touches) stands in `state.h5`.
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
from outlast.training.keras_internals.models import to_snake_case
from outlast.training.keras_internals.variables import learning_rate as rate_variable
from outlast.training.keras_internals.variables import raw
from outlast.training.state import weights_layout
from outlast.training.state.held_values import Holder
from outlast_checkpoints.format.snapshot import ArrayFile

_LARGE = 1 << 20  # bytes of an array, for which it is worth while not to copy it
_ALIGNED = 64  # bytes: TensorFlow's kernels take memory that begins at a multiple
_NUMBERED = re.compile(r"_\d+(?=[/:]|$)")


class LiveState:
    """A model's variables by their place in the checkpoint's two array files.

    model: a built Keras model with a built optimizer. extra: further variables that training
    changes (seed generators in closures, say). Variables already in the layout are not repeated.
    learning_rate: what the script gives, where a hook may have changed it since.
    """

    def __init__(
        self,
        model: Any,
        extra: Iterable[Any] = (),
        *,
        prefix: str = "variables",
        learning_rate: float | None = None,
    ) -> None:
        self.prefix = prefix
        self._of = (model, list(extra))
        self.rest: list[Any] = []
        self.loss = _loss_names(getattr(model, "loss", None))
        here = learning_rate_of(model)
        self.learning_rate = here if learning_rate is None else learning_rate
        self.refresh()

    def refresh(self) -> None:
        """Look for the model's variables again: an eager step may have made some."""
        model, extra = self._of
        self.layout = weights_layout.weights_layout(model)
        known = {id(raw(v)) for v in self.layout.variables.values()}
        self.rest = []
        for variable in [*weights_layout.all_variables(model), *extra]:
            if id(raw(variable)) not in known and raw(variable).dtype != tf.string:
                known.add(id(raw(variable)))
                self.rest.append(variable)
        self._weights = Holder(self.layout.variables.values())
        self._others = Holder(self.rest)

    def weights(self) -> ArrayFile:
        """Hold everything that `model.weights.h5` contains."""
        arrays = dict(zip(self.layout.variables, self._weights.hold(), strict=True))
        for group, saveable in self.layout.computed.items():
            for key, value in weights_layout.stored_values(saveable).items():
                arrays[f"{group}/{key}"] = np.array(value)
        return ArrayFile(arrays, self.layout.group_attributes)

    def others(self) -> dict[str, Any]:
        """Hold the variables that stand in `state.h5`, by "<prefix>/<index>"."""
        return {f"{self.prefix}/{i:06d}": held for i, held in enumerate(self._others.hold())}

    def describe(self) -> dict[str, Any]:
        """Return what a restore compares beyond names and shapes: classes and variable paths."""
        return {
            "names": {
                group: re.sub(r"_\d+$", "", attributes["name"])
                for group, attributes in self.layout.group_attributes.items()
                if group.startswith("optimizer") and "name" in attributes
            },
            "rest": [_path(v) for v in self.rest],
            "loss": self.loss,
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
        """Raise `StateMismatch` naming the first difference; change nothing.

        partly: the checkpoint may have variables that the model's next step will make; only those
        of the layers that are there are compared.
        """

        def fail(what: str, problem: str) -> None:
            raise StateMismatch(checkpoint=checkpoint, what=what, problem=problem)

        for group, name in self.describe()["names"].items():
            stored = description["names"].get(group)
            if stored is not None and _plain_name(stored) != _plain_name(name):
                fail(group, f"the checkpoint has {stored!r}, the script has {name!r}")
        self._check_weights(weights, fail, partly=partly)
        paths = self.describe()["rest"]
        if partly:
            return
        self._check_paths(paths, description["rest"], fail)
        for i, variable in enumerate(self.rest):
            check_one(paths[i], others[f"{self.prefix}/{i:06d}"], variable, fail)
        if description["loss"] != self.loss:
            fail("loss", f"the checkpoint has {description['loss']}, the script {self.loss}")

    def _check_paths(self, paths: list[str], stored: list[str], fail: Any) -> None:
        # Without the numbers that Keras adds to make names unique in a process.
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
        """Whether the checkpoint has more variables than there are here."""
        more = {name for name in weights if name.rsplit("/", 1)[0] not in self.layout.computed}
        return not more <= set(self.layout.variables) or len(description["rest"]) > len(self.rest)

    def values(self) -> list[tuple[Any, Any]]:
        """Return copies of all variables' values, to be put back one by one."""
        variables = [*self.layout.variables.values(), *self.rest]
        return [(raw(v), raw(v).numpy()) for v in variables]

    def assign(self, weights: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        """Put checked values into the live variables.

        The memory of large ones becomes the variables' own: they are not to be used any more.
        """
        for path, variable in self.layout.variables.items():
            raw(variable).assign(_as_it_lies(weights[path]))
        for group, saveable in self.layout.computed.items():
            prefix = f"{group}/"
            saveable.load_own_variables(
                {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
            )
        for i, variable in enumerate(self.rest):
            raw(variable).assign(others[f"{self.prefix}/{i:06d}"])
        # TensorFlow makes what reads them now, and not when the first save stops the loop for it.
        self._weights.hold()
        self._others.hold()


def _as_it_lies(array: Any) -> Any:
    """Return a large array as a tensor of the same memory, where that can be one's.

    A variable keeps the memory of the tensor that is assigned to it, so that nothing is copied and
    no more memory is needed; training then writes there.
    """
    fits = array.nbytes >= _LARGE and array.ctypes.data % _ALIGNED == 0
    if fits and array.flags.c_contiguous and array.flags.writeable:
        with suppress(Exception):  # what TensorFlow does not take in this way is copied
            return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
    return array


def check_one(name: str, stored: Any, variable: Any, fail: Any) -> None:
    """Call `fail(what, problem)` when a stored array does not fit a live variable."""
    live = raw(variable)
    if tuple(stored.shape) != tuple(live.shape):
        fail(
            f"{name} ({_path(variable)})",
            f"the checkpoint has shape {tuple(stored.shape)}, the script {tuple(live.shape)}",
        )
    if stored.dtype != live.dtype.as_numpy_dtype:
        fail(
            f"{name} ({_path(variable)})",
            f"the checkpoint has {stored.dtype}, the script {live.dtype.name}",
        )


def _loss_names(loss: Any) -> Any:
    """Return the names of a compiled model's losses, in the structure that they were given in."""
    if isinstance(loss, dict):
        return {str(key): _loss_names(value) for key, value in loss.items()}
    if isinstance(loss, list | tuple):
        return [_loss_names(value) for value in loss]
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return "crossentropy"  # Keras picks the kind by the shape of the targets
    found = keras.losses.get(loss)
    if found is None:
        return None
    return to_snake_case(getattr(found, "__name__", type(found).__name__))


def learning_rate_of(model: Any) -> float | None:
    """Return the learning rate that the script gives; None when it is a schedule."""
    rate = rate_variable(getattr(model, "optimizer", None))
    return None if rate is None else float(raw(rate).numpy())


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name)


def _plain_name(name: str) -> str:
    """Return a name as all versions of Keras have it: AdamW is "adamw" or "adam_w", SGD "SGD"."""
    return name.replace("_", "").lower()


def _natural(name: str) -> list[Any]:
    # Model before optimizer, and vars/10 after vars/9: the first difference a person would name.
    parts = re.split(r"(\d+)", name)
    numbered = [int(p) if i % 2 else p for i, p in enumerate(parts)]
    return [name.startswith("optimizer"), *numbered]
