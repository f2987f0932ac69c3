"""A Keras model's own account of itself: is it compiled, built, meant for XLA?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from keras.src.utils.naming import to_snake_case
from keras.src.utils.python_utils import pythonify_logs

__all__ = ["pythonify_logs", "to_snake_case"]


def require_compiled(model: Any) -> None:
    """Raise Keras' `ValueError` for a model that is not compiled."""
    model._assert_compile_called("fit")


def build_symbolically(model: Any, batch: Any) -> None:
    """Build the model, its metrics and its optimizer. batch: a structure of tf.TypeSpec."""
    model._symbolic_build(data_batch=batch)


def all_layers(model: Any) -> Iterable[Any]:
    """Return the model and every layer in it, however deep."""
    layers: Iterable[Any] = model._flatten_layers()
    return layers


def metrics_are_built(model: Any) -> bool:
    """Whether the compiled metrics have their variables; True where there are none."""
    metrics = getattr(model, "_compile_metrics", None)
    return metrics is None or bool(metrics.built)


def was_compiled_for_xla(model: Any) -> bool:
    """Whether `compile` was called with `jit_compile=True`, whatever Keras has made of it."""
    config = getattr(model, "_compile_config", None)
    return config is not None and config.config.get("jit_compile") is True


def initial_epoch(model: Any) -> int | None:
    """Return the epoch that BackupAndRestore has chosen, None where it has not."""
    epoch: int | None = model._initial_epoch
    return epoch


def epoch_logs(model: Any, logs: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics at an epoch's end; logs: of the epoch's last step."""
    return dict(model._get_metrics_result_or_logs(logs))
