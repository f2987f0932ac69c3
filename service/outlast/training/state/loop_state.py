"""`LoopState`: the state that the user passes to a hand-written loop, held and restored."""

from __future__ import annotations

import random
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.errors import NotSupported, StateMismatch
from outlast.training.keras_internals.late_metrics import LateMetrics
from outlast.training.keras_internals.models import build_symbolically, metrics_are_built
from outlast.training.keras_internals.saved_models import AutoTrackable
from outlast.training.replicas.replica_steps import shared
from outlast.training.replicas.strategies import check_scopes, scope_of, strategy_of_all
from outlast.training.state import fingerprint, replica_values, trees
from outlast.training.state.live_variables import LiveState, check_one
from outlast.training.state.object_graph import ObjectGraph, Unsaved
from outlast.training.state.object_kinds import kind_of, variables_of
from outlast.training.state.object_restore import Restore
from outlast.training.state.part_attributes import PartAttributes
from outlast.training.state.replica_values import ReplicaValues
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
        self._speaking: dict[str, Any] = {}  # the parts of `objects`
        self._live: dict[str, LiveState] = {}
        self._late: dict[str, LateMetrics] = {}  # of the models
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
            self._speaking[name] = part
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

    def trained(self) -> tuple[Any, ...]:
        """Return weak references to the models, layers and optimizers."""
        return tuple(weakref.ref(part) for part in (*self.models.values(), *self._layers()))

    def _layers(self) -> Iterator[Any]:
        kinds = keras.Layer | keras.optimizers.Optimizer
        return (part for part in self._holders.values() if isinstance(part, kinds))

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
        check_scopes((*self.models.values(), *self._holders.values()))
        compiled = [model for model in self.models.values() if model.compiled]
        if len(compiled) == 1 and batch is not None:
            kept = PartAttributes({"": compiled[0]}, {}).kept()
            _build_with(compiled[0], batch)  # with several, it is unknown which takes the batch
            kept.apply()  # because an eager loop never calls the model for that
        for name, model in self.models.items():
            _require(model.built, name, "Call it on a batch, or call its build(), first.")
            optimizer = getattr(model, "optimizer", None)
            if model.compiled and optimizer is not None and not optimizer.built:
                # No variable is trainable while, for example, a discriminator is frozen.
                way = "Call model.optimizer.build(model.trainable_variables) first."
                _require(bool(model.trainable_variables), f"{name}.optimizer", way)
                with scope_of(model):
                    optimizer.build(model.trainable_variables)
            self._live[name] = LiveState(model, prefix=f"variables/{name}")
            self._late[name] = LateMetrics(model)
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
        self.parts = PartAttributes({**self.models, **self._holders}, elsewhere)
        self.known = {**elsewhere, **self._graph.places, **self.models, **self._speaking}

    def shared(self, batch: Any) -> Any:
        """Return a batch as the loop's body gets it: a share per replica under a strategy."""
        return shared(batch, strategy_of_all((*self.models.values(), *self._holders.values())))

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
        """Hold the variables for `state.h5`. Call it before the other methods of a save."""
        self._find_late_metrics()
        held = dict(zip(self.loose, ReplicaValues(self.loose.values()).hold(), strict=True))
        for live in self._live.values():
            held |= live.others()
        return held

    def plain(self, variables: Plain) -> Plain:
        """Return the rest of the state, as plain data.

        Adds the variables of the user's objects to `variables`. Raises `NotSupported` if a
        container that the user named holds a value that cannot be stored. Such values in objects
        are in `unsaved`.
        """
        names: dict[int, str] = {}
        graph = self._graph.capture(variables, names)
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
            "parts": self.parts.capture(variables, names),
            "kinds": self.kinds,
            "models": {name: live.describe() for name, live in self._live.items()},
            "late_metrics": {name: late.recorded for name, late in self._late.items()},
            "objects": {name: get() for name, (get, _) in self.objects.items()},
        }

    def _find_late_metrics(self) -> None:
        for name, late in self._late.items():
            if late.new:
                self._live[name].refresh()
                late.new = False

    @property
    def unsaved(self) -> list[Unsaved]:
        """What the last call of `plain` found in objects and could not store."""
        return self._graph.unsaved + self.parts.unsaved

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
        """Raise `StateMismatch` with the first difference. Changes no value.

        Metrics that Keras had built after `require_built` are built alike.
        """

        def fail(what: str, problem: str) -> None:
            raise StateMismatch(checkpoint=checkpoint, what=what, problem=problem)

        self._check_kinds(plain["kinds"], fail)
        for name, recorded in plain.get("late_metrics", {}).items():
            self._late[name].build_as(recorded)
        self._find_late_metrics()
        for name, live in self._live.items():
            live.check(checkpoint, files[self.file_of(name)], others, plain["models"][name])
        self._check_loose(others, fail)
        for path, problem in Restore(self._graph, plain["graph"], others).problems:
            fail(path, problem)
        for path, problem in self.parts.restoring(plain["parts"], others).problems:
            fail(path, problem)

    def restore(self, files: Mapping[str, Any], others: Mapping[str, Any], plain: Plain) -> None:
        """Restore everything. Call `check` first."""
        objects = Restore(self._graph, plain["graph"], others)
        parts = self.parts.restoring(plain["parts"], others)
        for name, live in self._live.items():
            live.assign(files[self.file_of(name)], others)
        for path, variable in self.loose.items():
            replica_values.assign(variable, others[path])
        for name, (_, put) in self.objects.items():
            put(plain["objects"][name])
        objects.apply()
        parts.apply()

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
        | AutoTrackable
    )
    return isinstance(part, kinds)


def _variables_of(part: Any) -> list[Any]:
    if isinstance(part, keras.Variable | tf.Variable):
        return [part]
    return variables_of(part)


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
        with scope_of(model):
            build_symbolically(model, batch)
    except Exception:  # noqa: BLE001 - the model's code may raise anything for a foreign batch
        return


def _require(good: bool, name: str, hint: str) -> None:
    if not good:
        problem = f"{name!r} is not built: its variables do not exist yet"
        raise UsageError(field="state", problem=problem, hint=hint)
