"""Private attributes of Keras models: whether one is compiled, built, or meant for XLA."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import keras
from keras.src.utils.naming import to_snake_case
from keras.src.utils.python_utils import pythonify_logs

from outlast.training.keras_internals import random_streams

__all__ = ["pythonify_logs", "to_snake_case"]


def require_compiled(model: Any) -> None:
    """Raise Keras' `ValueError` if the model is not compiled."""
    model._assert_compile_called("fit")


def compiled_as(model: Any) -> tuple[Any, ...]:
    """Return the objects that `compile` and `make_train_function(force=True)` replace.

    If one is a different object later, the model was compiled in between.
    """
    names = ("_compile_config", "_compile_loss", "_compile_metrics", "train_function")
    return tuple(getattr(model, name, None) for name in names)


def custom_training(model: Any) -> str | None:
    """Return the name of the method by which a model replaces Keras' training loop, or None.

    A custom `fit` does not count, because it is called, and a custom `evaluate` or
    `make_test_function` does not, because a validation calls it.
    """
    for name in ("make_train_function", "_make_function"):
        if getattr(type(model), name) is not getattr(keras.Model, name) or name in vars(model):
            return name
    made = model.train_function
    if made is not None and getattr(made, "__module__", None) != keras.Model.fit.__module__:
        return "train_function"
    return None


def build_symbolically(model: Any, batch: Any) -> None:
    """Build the model, its metrics and its optimizer. `batch` is a structure of tf.TypeSpec."""
    model._symbolic_build(data_batch=batch)


def build_optimizer(model: Any) -> None:
    """Create the variables of a Keras optimizer as its first step would, if the model is built."""
    optimizer = model.optimizer
    known = isinstance(optimizer, keras.optimizers.Optimizer) and not optimizer.built
    # A step gives the variables of the inner optimizer other names than `build` does.
    known = known and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if known and all(layer.built for layer in all_layers(model)) and model.trainable_variables:
        optimizer.build(model.trainable_variables)


def all_layers(model: Any) -> Iterable[Any]:
    """Return the model and all its layers, at any depth."""
    layers: Iterable[Any] = model._flatten_layers()
    return layers


def all_metrics(model: Any) -> list[Any]:
    """Return the model's metrics, also those that its compiled metric calls."""
    found = list(model.metrics)
    for metric in found:
        for several in getattr(metric, "_flat_metrics", ()):
            found += [one for one in getattr(several, "metrics", ()) if one is not None]
    return found


def compiled_metrics(model: Any) -> list[Any]:
    """Return the metrics as the script gave them to `compile`: objects, functions and names."""
    compiled = getattr(model, "_compile_metrics", None)
    names = ("_user_metrics", "_user_weighted_metrics")
    found: list[Any] = keras.tree.flatten([getattr(compiled, name, None) for name in names])
    return found


def metrics_are_built(model: Any) -> bool:
    """Return whether the compiled metrics have their variables; True without metrics."""
    metrics = getattr(model, "_compile_metrics", None)
    return metrics is None or bool(metrics.built)


def was_compiled_for_xla(model: Any) -> bool:
    """Return whether `compile` was called with `jit_compile=True`, even if Keras reset it."""
    config = getattr(model, "_compile_config", None)
    return config is not None and config.config.get("jit_compile") is True


def initial_epoch(model: Any) -> int | None:
    """Return the epoch that BackupAndRestore chose, or None."""
    epoch: int | None = model._initial_epoch
    return epoch


def epoch_logs(model: Any, logs: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics at an epoch's end. `logs` are those of its last step."""
    return dict(model._get_metrics_result_or_logs(logs))


_compiled: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def random_streams_of(model: Any, phase: int) -> AbstractContextManager[None]:
    """Return a context in which the model's functions draw from random streams of their own.

    A later phase of the same model continues them, unless the script has compiled it again. Keras
    traces the functions again then, and TensorFlow's numbers begin again.
    """
    config = getattr(model, "_compile_config", None)
    owner = model if config is None else config
    return random_streams.scope(_compiled.setdefault(owner, f"phase {phase}"))
