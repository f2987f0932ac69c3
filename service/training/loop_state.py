"""The state of a hand-written loop: what the user names, held and put back as a whole."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from checkpoints.errors import UsageError
from checkpoints.layout import check_name
from checkpoints.snapshot import ArrayFile
from service.training.errors import StateMismatch
from service.training.state import LiveState, check_one, hold, raw

Plain = dict[str, Any]

_HINT = (
    "Name models, optimizers, metrics, layers, variables, random generators, or objects with "
    "get_state/set_state or state_dict/load_state_dict."
)


class LoopState:
    """Models (each in a weights file of its own), loose variables, and objects that speak.

    state: a dict from names to parts, or one model. Every model has to be built, every optimizer
    too, so that all variables exist before a restore.
    """

    def __init__(self, state: Any) -> None:
        parts = state if isinstance(state, Mapping) else {"model": state}
        self.models: dict[str, LiveState] = {}
        self.loose: dict[str, Any] = {}
        self.objects: dict[str, tuple[Any, Any]] = {}
        for name, part in parts.items():
            check_name("state", str(name))
            self._sort(str(name), part)
        self._alone = len(self.models) == 1

    def _sort(self, name: str, part: Any) -> None:
        if isinstance(part, keras.Model):
            _require_built(name, part)
            self.models[name] = LiveState(part, prefix=f"variables/{name}")
        elif isinstance(part, keras.Variable | tf.Variable):
            self.loose[f"variables/{name}/0"] = part
        elif isinstance(part, keras.random.SeedGenerator | tf.random.Generator):
            self.loose[f"variables/{name}/0"] = part.state
        elif isinstance(
            part, keras.optimizers.Optimizer | keras.metrics.Metric | keras.layers.Layer
        ):
            _require_built(name, part)
            for i, variable in enumerate(part.variables):
                self.loose[f"variables/{name}/{i}"] = variable
        elif isinstance(part, np.random.Generator):
            bits = part.bit_generator
            self.objects[name] = (lambda: bits.state, lambda s: setattr(bits, "state", s))
        elif isinstance(part, random.Random):
            self.objects[name] = (part.getstate, part.setstate)
        else:
            self.objects[name] = _methods(name, part)

    def files(self) -> dict[str, ArrayFile]:
        """Hold the models, by file name."""
        return {self.file_of(name): live.weights() for name, live in self.models.items()}

    def file_of(self, name: str) -> str:
        return "model.weights.h5" if self._alone else f"{name}.weights.h5"

    def others(self) -> dict[str, Any]:
        """Hold the variables that stand in `state.h5`."""
        held = {path: hold(variable) for path, variable in self.loose.items()}
        for live in self.models.values():
            held |= live.others()
        return held

    def plain(self) -> Plain:
        """Return what else belongs to the state, as plain data."""
        return {
            "models": {name: live.describe() for name, live in self.models.items()},
            "objects": {name: get() for name, (get, _) in self.objects.items()},
        }

    def restore(
        self, checkpoint: str, files: Mapping[str, Any], others: Mapping[str, Any], plain: Plain
    ) -> None:
        """Put everything back. Raises `StateMismatch` before anything is changed."""

        def fail(what: str, problem: str) -> None:
            raise StateMismatch(checkpoint=checkpoint, what=what, problem=problem)

        stored = {*plain["models"], *plain["objects"], *(n.split("/")[1] for n in others)}
        mine = {*self.models, *self.objects, *(n.split("/")[1] for n in self.loose)}
        for name in sorted(stored - mine):
            fail(name, "the checkpoint has it, the script's state does not")
        for name in sorted(mine - stored):
            fail(name, "the script's state has it, the checkpoint does not")
        for name, live in self.models.items():
            live.check(checkpoint, files[self.file_of(name)], others, plain["models"][name])
        for path, variable in self.loose.items():
            if path not in others:
                fail(path, "the script has it, the checkpoint does not")
            check_one(path, others[path], variable, fail)
        for name, live in self.models.items():
            live.assign(files[self.file_of(name)], others)
        for path, variable in self.loose.items():
            raw(variable).assign(others[path])
        for name, (_, put) in self.objects.items():
            put(plain["objects"][name])


def build_compiled(state: Any, batch: Any) -> None:
    """Build compiled models that a batch fits, so that metrics and optimizer exist.

    A model that cannot be built from it (a generator that takes noise, say) is left to the user.
    """
    for part in (state if isinstance(state, Mapping) else {"model": state}).values():
        if isinstance(part, keras.Model) and part.compiled and not _is_built(part):
            part._symbolic_build(data_batch=batch)
        if isinstance(part, keras.Model) and part.compiled and part.optimizer is not None:
            part.optimizer.build(part.trainable_variables)


def _is_built(part: Any) -> bool:
    metrics = getattr(part, "_compile_metrics", None)
    return bool(part.built) and (metrics is None or metrics.built)


def _require_built(name: str, part: Any) -> None:
    if getattr(part, "built", True):
        return
    raise UsageError(
        field="state",
        problem=f"{name!r} is not built: its variables do not exist yet",
        hint="Call a model on a batch or its build(); an optimizer's build(trainable_variables).",
    )


def _methods(name: str, part: Any) -> tuple[Any, Any]:
    for get, put in (("get_state", "set_state"), ("state_dict", "load_state_dict")):
        if callable(getattr(part, get, None)) and callable(getattr(part, put, None)):
            return getattr(part, get), getattr(part, put)
    raise UsageError(
        field="state", problem=f"{name!r} is a {type(part).__name__}, not a state", hint=_HINT
    )
