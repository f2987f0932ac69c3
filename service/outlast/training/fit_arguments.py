"""The arguments of `fit` and `Loop`, checked by name before a job is opened."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import keras

from outlast.job.save_schedule import SaveEvery
from outlast.training.data.fingerprint import of_data
from outlast.training.data.permutation import Shuffle
from outlast.training.errors import NotSupported
from outlast.training.keras_internals.models import require_compiled
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.retention import Keep

SEEDS = 2**63  # a job's spec holds 64-bit signed integers

_COUNTS = {
    "epochs": 0,
    "initial_epoch": 0,
    "batch_size": 1,
    "max_queue_size": 1,
}
_OPTIONAL = {"batch_size", "seed", "steps_per_epoch", "name", "save_every", "keep", "jit_compile"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of one `fit` call, except the model and the job's folder.

    Raises `UsageError` for the first invalid one. Integers of any kind become Python integers.
    """

    x: Any
    y: Any
    sample_weight: Any
    batch_size: int | None
    epochs: int
    initial_epoch: int
    verbose: str | int
    callbacks: Any
    validation_split: float
    validation_data: Any
    validation_steps: int | None
    validation_batch_size: int | None
    validation_freq: int | list[int]
    shuffle: Shuffle
    class_weight: dict[int, float] | None
    steps_per_epoch: int | None
    max_queue_size: int
    jit_compile: bool | str | None
    view_metrics: bool
    seed: int | None
    name: str | None
    save_every: str | int | None
    keep: str | int | None

    def __post_init__(self) -> None:
        check(**{field.name: getattr(self, field.name) for field in fields(self)})
        for name in ("batch_size", "epochs", "initial_epoch", "seed"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))

    def decisive(self) -> dict[str, Any]:
        """Return the arguments that decide the result, except `epochs`. Data is a fingerprint."""
        weights = self.class_weight
        return {
            "x": of_data(self.x),
            "y": of_data(self.y),
            "sample_weight": of_data(self.sample_weight),
            "class_weight": None if weights is None else {str(k): v for k, v in weights.items()},
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "steps_per_epoch": self.steps_per_epoch,
            "initial_epoch": self.initial_epoch,
            "validation_split": float(self.validation_split),
            "validation_data": of_data(self.validation_data),
            "validation_steps": self.validation_steps,
            "validation_batch_size": self.validation_batch_size,
            "validation_freq": self.validation_freq,
        }


def check(**arguments: Any) -> None:
    """Raise `UsageError` for the first invalid argument of `fit` or `Loop`."""
    for field, value in arguments.items():
        if value is not None or field not in _OPTIONAL:
            _check_one(field, value)


def check_model(model: Any) -> None:
    """Raise for a model that is not compiled, or whose custom training would be bypassed."""
    require_compiled(model)
    if type(model).make_train_function is not keras.Model.make_train_function:
        raise NotSupported(
            field="model",
            problem=f"{type(model).__name__} overrides make_train_function, which `fit` does not "
            "call",
            hint="Override train_step instead.",
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1:
        raise NotSupported(
            field="model",
            problem=f"it was made under a strategy with {replicas} replicas",
            hint="Make it outside of strategy.scope(); a job trains on one device.",
        )


def _check_one(field: str, value: Any) -> None:
    match field:
        case "epochs" | "initial_epoch" | "batch_size" | "max_queue_size":
            least = _COUNTS[field]
            _require(_is_count(value, least), field, value, f"Use an integer of at least {least}.")
        case "steps_per_epoch":
            good = _is_count(value, -1)
            _require(good, field, value, "Use an integer, or -1 to train until the data ends.")
        case "seed":
            good = _is_count(value, 0) and int(value) < SEEDS
            _require(good, field, value, "Use an integer from 0 to 2**63 - 1.")
        case "validation_split":
            good = isinstance(value, Real) and 0 <= float(value) < 1
            _require(good, field, value, "Use a number that is at least 0 and less than 1.")
        case "validation_freq":
            good = _is_count(value, 1) or isinstance(value, list)
            _require(good, field, value, "Use a positive integer, or a list of epochs.")
        case "shuffle":
            good = isinstance(value, bool) or (isinstance(value, str) and value == "batch")
            _require(good, field, value, 'Use True, False or "batch".')
        case "verbose":
            good = _is_count(value, 0, 2) or isinstance(value, bool) or str(value) == "auto"
            _require(good, field, value, 'Use "auto", 0, 1 or 2.')
        case "jit_compile":
            good = isinstance(value, bool) or value == "auto"
            _require(good, field, value, 'Use True, False, "auto", or None (as compiled).')
        case "name":
            good = isinstance(value, str) and value != ""
            _require(good, field, value, "Use a non-empty string.")
        case "save_every":
            SaveEvery.parse(value)
        case "keep":
            Keep.parse(value)


def _is_count(value: Any, least: int, most: int | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, Integral):
        return False
    return int(value) >= least and (most is None or int(value) <= most)


def _require(good: bool, field: str, value: Any, hint: str) -> None:
    if not good:
        raise UsageError(field=field, problem=f"invalid value {value!r}", hint=hint)
