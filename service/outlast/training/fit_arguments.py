"""The arguments of `fit` and `Loop`, checked by name before a job is opened."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import numpy as np

from outlast.job.save_schedule import SaveEvery
from outlast.training.data.fingerprint import of_data
from outlast.training.data.permutation import Shuffle
from outlast.training.errors import NotSupported
from outlast.training.keras_internals.models import compiled_as, custom_training, require_compiled
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.retention import Keep

SEEDS = 2**63  # a job's spec holds 64-bit signed integers

# The least value of each argument that is a count.
_COUNTS = {
    "epochs": 0,
    "initial_epoch": 0,
    "batch_size": 1,
    "max_queue_size": 1,
    "steps_per_epoch": -1,
    "validation_steps": -1,
    "validation_batch_size": 0,
}
# Arguments that may be None.
_OPTIONAL = {
    "batch_size",
    "seed",
    "steps_per_epoch",
    "validation_steps",
    "validation_batch_size",
    "validation_split",
    "shuffle",
    "verbose",
    "name",
    "save_every",
    "keep",
    "jit_compile",
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of one `fit` call, except the model and the job's folder.

    Raises `UsageError` for the first invalid one. Numbers of NumPy and TensorFlow, and arrays with
    one value, become Python numbers.
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
    max_queue_size: int = 10
    jit_compile: bool | str | None = None
    view_metrics: bool = False
    seed: int | None = None
    name: str | None = None
    save_every: str | int | None = None
    keep: str | int | None = None

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in checked(**given).items():
            object.__setattr__(self, name, value)

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


def checked(**arguments: Any) -> dict[str, Any]:
    """Return these arguments of `fit` or `Loop` as plain Python values.

    Raises `UsageError` for the first invalid one.
    """
    plain = {name: _plain(name, value) for name, value in arguments.items()}
    for name, value in plain.items():
        if value is not None or name not in _OPTIONAL:
            _check_one(name, value)
    return {name: _as_keras_reads_it(name, value) for name, value in plain.items()}


def check_model(model: Any) -> None:
    """Raise for a model that is not compiled, or whose custom training would be bypassed."""
    require_compiled(model)
    own = custom_training(model)
    if own is not None:
        raise NotSupported(
            field="model",
            problem=f"{type(model).__name__} overrides {own}, which a job does not call",
            hint="Move what it does to the data into the script, and what it does to a batch into "
            f"train_step; then remove {own}.",
        )


def require_same_compile(model: Any, before: tuple[Any, ...]) -> None:
    """Raise `NotSupported` if a hook compiled the model again; Keras cannot continue either.

    `before` is what `compiled_as` returned when `fit` was called.
    """
    if any(now is not then for now, then in zip(compiled_as(model), before, strict=True)):
        raise NotSupported(
            field="callbacks",
            problem="one of them called the model's compile() or make_train_function(force=True) "
            "while fit trains the model",
            hint="End this fit, compile the model, and call fit again; each fit is a phase.",
        )


def _plain(field: str, value: Any) -> Any:
    """Return a Python number if the field takes one, and otherwise the value itself.

    A float32 `validation_split` stays float32, because Keras multiplies with it.
    """
    if field in _COUNTS or field == "seed":
        return _as_int(value)
    match field:
        case "validation_freq" if isinstance(value, list):
            return [_as_int(one) for one in value]
        case "verbose" if isinstance(value, str) and value in ("0", "1", "2"):
            return int(value)
        case "verbose" | "validation_freq" | "shuffle" | "jit_compile" | "save_every" | "keep":
            return _item(value)
        case "name" if isinstance(value, str):
            return str(value)
    return value


def _as_int(value: Any) -> Any:
    """Return an integer of any kind, which Python accepts as an index, as an int."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    try:
        return operator.index(value)
    except TypeError:
        return value


def _item(value: Any) -> Any:
    """Return the Python value of a NumPy or TensorFlow scalar, and anything else unchanged."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "__array__", None)):
        return np.asarray(value).item()
    return str(value) if isinstance(value, str) else value


def _as_keras_reads_it(field: str, value: Any) -> Any:
    """Return the value that Keras takes a loosely typed argument for."""
    match field:
        case "shuffle":
            return value if value == "batch" else bool(value)
        case "verbose" if value != "auto":
            return int(value or 0)
        case "validation_split":
            return 0.0 if value is None else value
    return value


def _check_one(field: str, value: Any) -> None:
    match field:
        case "steps_per_epoch" | "validation_steps":
            good = _is_count(value, _COUNTS[field])
            _require(good, field, value, "Use an integer, or -1 to train until the data ends.")
        case field if field in _COUNTS:
            least = _COUNTS[field]
            _require(_is_count(value, least), field, value, f"Use an integer of at least {least}.")
        case "seed":
            good = _is_count(value, 0) and value < SEEDS
            _require(good, field, value, "Use an integer from 0 to 2**63 - 1.")
        case "validation_split":
            good = isinstance(_item(value), Real) and 0 <= float(value) < 1
            _require(good, field, value, "Use a number that is at least 0 and less than 1.")
        case "validation_freq":
            good = _is_count(value, 1) or isinstance(value, list)
            _require(good, field, value, "Use a positive integer, or a list of epochs.")
        case "shuffle":
            good = _is_one_of(value, False, True, "batch")
            _require(good, field, value, 'Use True, False or "batch".')
        case "verbose":
            good = _is_one_of(value, 0, 1, 2, "auto")
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


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_one_of(value: Any, *choices: Any) -> bool:
    return isinstance(value, bool | int | float | str) and value in choices


def _require(good: bool, field: str, value: Any, hint: str) -> None:
    if not good:
        raise UsageError(field=field, problem=f"invalid value {value!r}", hint=hint)
