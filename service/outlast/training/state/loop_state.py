"""`LoopState`: the state that the user passes to a hand-written loop, held and restored."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.errors import NotSupported, StateMismatch
from outlast.training.keras_internals.models import build_symbolically, metrics_are_built
from outlast.training.keras_internals.variables import raw
from outlast.training.state import fingerprint, trees
from outlast.training.state.held_values import Holder
from outlast.training.state.live_variables import LiveState, check_one
from outlast.training.state.object_graph import ObjectGraph, Unsaved
from outlast.training.state.object_kinds import kind_of
from outlast.training.state.object_restore import Restore
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import MODEL_FILE, WEIGHTS_FILE, check_name
from outlast_checkpoints.format.snapshot import ArrayFile

Plain = dict[str, Any]
Fail = Callable[[str, str], None]

_HINT = (
    "Name models, optimizers, metrics, layers, variables, random generators, numpy arrays, lists "
    "and dicts of plain data, or objects with get_state/set_state or state_dict/load_state_dict."
)


class LoopState:
    """Models, each with its weights file, loose variables, and plain data.

    `state` is a dict from names to parts, or one model. The parts in a list, tuple or dict are
    named "<name>.<index or key>". Call `require_built` before any save or restore, so that all
    variables exist.
    """

    def __init__(self, state: Any) -> None:
        self.models: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        self.loose: dict[str, Any] = {}
        self.objects: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {}
        self._live: dict[str, LiveState] = {}
        self._holders: dict[str, Any] = {}  # of the variables in `loose`
        self._roots: dict[str, Any] = {}  # plain data and the user's objects, for the graph
        parts = state if isinstance(state, Mapping) else {"model": state}
        for name, part in parts.items():
            self._sort(check_name("state", str(name)), part)

    def _sort(self, name: str, part: Any) -> None:
        if name in self.kinds:
            raise UsageError(field="state", problem=f"{name!r} names two parts", hint=_HINT)
        self.kinds[name] = type(part).__name__
        if isinstance(part, keras.Model):
            self.models[name] = part
        elif _has_variables(part):
            self._holders[name] = part
        elif isinstance(part, np.ndarray | np.random.RandomState | random.Random):
            self._roots[name] = part
        elif isinstance(part, np.random.Generator):
            self.kinds[name] = type(part.bit_generator).__name__
            self._roots[name] = part
        elif (methods := _methods(part)) is not None:
            self.objects[name] = methods
        else:
            self._sort_plain(name, part)

    def _sort_plain(self, name: str, part: Any) -> None:
        held = part
        is_container = isinstance(held, list | dict | set | deque)
        if kind_of(type(part)) == "object" or (is_container and _is_plain(held)):
            self._roots[name] = part
        elif isinstance(held, list | tuple | Mapping) and len(held) > 0:
            items = held.items() if isinstance(held, Mapping) else enumerate(held)
            for key, child in items:
                self._sort(check_name("state", f"{name}.{key}"), child)
        elif held is None or isinstance(held, bool | int | float | str | bytes | np.generic):
            raise UsageError(
                field="state",
                problem=f"{name!r} is the {type(held).__name__} {held!r}, which never changes",
                hint="Put it into a dict or an array, pass that, and change it there.",
            )
        else:
            problem = f"{name!r} is of type {type(part).__name__}, which has no known state"
            raise UsageError(field="state", problem=problem, hint=_HINT)

    def fingerprint(self, describe: Callable[[Any], Mapping[str, bytes]]) -> Plain:
        """Return the fingerprints of all parts. `describe` returns the documents of a model."""
        found: Plain = {"kinds": self.kinds}
        for name, model in self.models.items():
            found[name] = fingerprint.of_training(model, describe(model).get(MODEL_FILE))
        for name, holder in self._holders.items():
            found[name] = {"optimizer": fingerprint.of_optimizer(holder)}
        return found

    # -- before the first step -------------------------------------------------------------

    def require_built(self, batch: Any) -> None:
        """Build the models, find every variable, and check that plain data can be stored.

        `batch` is the spec of a batch, or None. Raises `UsageError` with the name of the part.
        """
        compiled = [model for model in self.models.values() if model.compiled]
        if len(compiled) == 1 and batch is not None:
            _build_with(compiled[0], batch)  # with several, it is unknown which takes the batch
        for name, model in self.models.items():
            _require(model.built, name, "Call it on a batch, or call its build(), first.")
            optimizer = getattr(model, "optimizer", None)
            if model.compiled and optimizer is not None and not optimizer.built:
                # No variable is trainable while, for example, a discriminator is frozen.
                way = "Call model.optimizer.build(model.trainable_variables) first."
                _require(bool(model.trainable_variables), f"{name}.optimizer", way)
                optimizer.build(model.trainable_variables)
            self._live[name] = LiveState(model, prefix=f"variables/{name}")
        for name, holder in self._holders.items():
            built = getattr(holder, "built", True)
            _require(
                built, name, "Call a layer on a batch, or an optimizer's build(variables), first."
            )
            for i, variable in enumerate(_variables_of(holder)):
                self.loose[f"variables/{name}/{i}"] = variable
        for name, (get, _) in self.objects.items():
            self._check_plain(name, get())
        for name, part in self._roots.items():
            words = isinstance(part, np.ndarray) and part.dtype.kind in "mMUS"
            if kind_of(type(part)) != "object" and not words:
                self._check_plain(name, part)
        elsewhere: Plain = {}
        for name, live in self._live.items():
            elsewhere |= {f"{name}/{key}": value for key, value in live.objects().items()}
        elsewhere |= {f"part {name}": holder for name, holder in self._holders.items()}
        elsewhere |= {f"loose {name}": variable for name, variable in self.loose.items()}
        self._graph = ObjectGraph(self._roots, elsewhere, everything=True)

    @property
    def alone(self) -> Any:
        """The only model, or None if there are several or none."""
        return next(iter(self.models.values())) if len(self.models) == 1 else None

    # -- into a checkpoint -----------------------------------------------------------------

    def files(self) -> dict[str, ArrayFile]:
        """Hold the models' weights, by file name."""
        return {self.file_of(name): live.weights() for name, live in self._live.items()}

    def file_of(self, name: str) -> str:
        """Return the name of a model's weights file."""
        return WEIGHTS_FILE if self.alone is not None else f"{name}.weights.h5"

    def others(self) -> dict[str, Any]:
        """Hold the variables for `state.h5`."""
        held = dict(zip(self.loose, Holder(self.loose.values()).hold(), strict=True))
        for live in self._live.values():
            held |= live.others()
        return held

    def plain(self, variables: Plain) -> Plain:
        """Return the rest of the state, as plain data.

        Adds the variables of the user's objects to `variables`. Raises `NotSupported` if a
        container that the user named holds a value that cannot be stored. Such values in objects
        are in `unsaved`.
        """
        graph = self._graph.capture(variables)
        for thing in self._graph.unsaved:
            name = re.split(r"[.\[,]", thing.path, maxsplit=1)[0]
            if kind_of(type(self._roots.get(name))) != "object":
                raise NotSupported(
                    field="state",
                    problem="it now contains a value that cannot be stored: "
                    f"{thing.kind} at {thing.path}",
                    hint="Keep only numbers, strings, arrays, and lists and dicts of them.",
                )
        return {
            "graph": graph,
            "kinds": self.kinds,
            "models": {name: live.describe() for name, live in self._live.items()},
            "objects": {name: get() for name, (get, _) in self.objects.items()},
        }

    @property
    def unsaved(self) -> list[Unsaved]:
        """What the last call of `plain` found in objects and could not store."""
        return self._graph.unsaved

    def _check_plain(self, name: str, value: Any) -> None:
        try:
            trees.encode(value, {}, name)
        except trees.NotPlain as error:
            raise NotSupported(
                field="state",
                problem=f"the state of {name!r} cannot be stored: {error}",
                hint="Keep only numbers, strings, arrays, and lists and dicts of them.",
            ) from None

    # -- out of a checkpoint ---------------------------------------------------------------

    def check(
        self, checkpoint: str, files: Mapping[str, Any], others: Mapping[str, Any], plain: Plain
    ) -> None:
        """Raise `StateMismatch` with the first difference. Changes nothing."""

        def fail(what: str, problem: str) -> None:
            raise StateMismatch(checkpoint=checkpoint, what=what, problem=problem)

        self._check_kinds(plain["kinds"], fail)
        for name, live in self._live.items():
            live.check(checkpoint, files[self.file_of(name)], others, plain["models"][name])
        self._check_loose(others, fail)
        for path, problem in Restore(self._graph, plain["graph"], others).problems:
            fail(path, problem)

    def restore(self, files: Mapping[str, Any], others: Mapping[str, Any], plain: Plain) -> None:
        """Restore everything. Call `check` first."""
        objects = Restore(self._graph, plain["graph"], others)
        for name, live in self._live.items():
            live.assign(files[self.file_of(name)], others)
        for path, variable in self.loose.items():
            raw(variable).assign(others[path])
        for name, (_, put) in self.objects.items():
            put(plain["objects"][name])
        objects.apply()

    def _check_kinds(self, stored: Mapping[str, str], fail: Fail) -> None:
        for name in sorted({*stored, *self.kinds}):
            if name not in self.kinds:
                fail(name, "the checkpoint has it, the script's state does not")
            if name not in stored:
                fail(name, "the script's state has it, the checkpoint does not")
            if stored[name] != self.kinds[name]:
                fail(
                    name,
                    f"it is {stored[name]} in the checkpoint, {self.kinds[name]} in the script",
                )

    def _check_loose(self, others: Mapping[str, Any], fail: Fail) -> None:
        stored = {path for path in others if path.split("/")[1] in self._holders}
        for path in sorted({*stored, *self.loose}):
            name = path.removeprefix("variables/")
            if path not in others:
                fail(name, "the script has it, the checkpoint does not")
            if path not in self.loose:
                fail(name, "the checkpoint has it, the script does not")
            check_one(name, others[path], self.loose[path], fail)


def _has_variables(part: Any) -> bool:
    kinds = (
        keras.Variable
        | tf.Variable
        | keras.random.SeedGenerator
        | tf.random.Generator
        | keras.optimizers.Optimizer
        | keras.metrics.Metric
        | keras.layers.Layer
    )
    return isinstance(part, kinds)


def _variables_of(part: Any) -> list[Any]:
    if isinstance(part, keras.Variable | tf.Variable):
        return [part]
    if isinstance(part, keras.random.SeedGenerator | tf.random.Generator):
        return [part.state]
    return list(part.variables)


def _methods(part: Any) -> tuple[Any, Any] | None:
    for get, put in (("get_state", "set_state"), ("state_dict", "load_state_dict")):
        if callable(getattr(part, get, None)) and callable(getattr(part, put, None)):
            return getattr(part, get), getattr(part, put)
    return None


def _is_plain(value: Any) -> bool:
    try:
        trees.encode(value, {}, "")
    except trees.NotPlain:
        return False
    return True


def _build_with(model: Any, batch: Any) -> None:
    """Build a compiled model and its metrics with a batch, if the model accepts it."""
    if model.built and metrics_are_built(model):
        return
    try:
        build_symbolically(model, batch)
    except Exception:  # noqa: BLE001 - the model's code may raise anything for a foreign batch
        return


def _require(good: bool, name: str, hint: str) -> None:
    if not good:
        problem = f"{name!r} is not built: its variables do not exist yet"
        raise UsageError(field="state", problem=problem, hint=hint)
