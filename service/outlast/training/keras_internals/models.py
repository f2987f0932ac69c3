"""Private attributes of Keras models: whether one is compiled, built, or meant for XLA."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
from keras.src.utils.naming import to_snake_case
from keras.src.utils.python_utils import pythonify_logs

__all__ = ["pythonify_logs", "to_snake_case"]


def require_compiled(model: Any) -> None:
    """Raise Keras' `ValueError` if the model is not compiled."""
    model._assert_compile_called("fit")


def compiled_as(model: Any) -> tuple[Any, ...]:
    """Return what `compile` and `make_train_function(force=True)` make anew, to be compared."""
    names = ("_compile_config", "_compile_loss", "_compile_metrics", "train_function")
    return tuple(getattr(model, name, None) for name in names)


def own_training(model: Any) -> str | None:
    """Return the name of what a model has of its own in place of Keras' way to a step, or None.

    An own `evaluate` or `make_test_function` is none of these: a validation calls them.
    """
    for name in ("fit", "make_train_function", "_make_function"):
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
    """Make the optimizer's variables, as its first step would, where the model has its own."""
    optimizer = model.optimizer
    known = isinstance(optimizer, keras.optimizers.Optimizer) and not optimizer.built
    # Its inner optimizer's variables have other names when a step makes them.
    known = known and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if known and all(layer.built for layer in all_layers(model)) and model.trainable_variables:
        optimizer.build(model.trainable_variables)


def all_layers(model: Any) -> Iterable[Any]:
    """Return the model and all its layers, at any depth."""
    layers: Iterable[Any] = model._flatten_layers()
    return layers


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
