"""`BatchLoss`: the loss of each batch, besides the running mean in Keras' logs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from outlast.training.keras_internals.variables import raw


class BatchLoss:
    """Computes the loss of each batch, besides Keras' running mean.

    With Keras' train_step, it resets the loss tracker before the step and restores the sums
    afterwards. That is exact, and state and logs stay equal to the bit. A custom train_step may
    read its tracker, so nothing is changed: the loss is the difference of the float32 totals, with
    their rounding. Without a mean named "loss", it is the "loss" in the step's logs.
    """

    def __init__(self, model: Any) -> None:
        self.tracker = next(
            (m for m in model.metrics if m.name == "loss" and isinstance(m, keras.metrics.Mean)),
            None,
        )
        kind = type(model)
        stock = all(
            getattr(kind, name) is getattr(keras.Model, name) and name not in vars(model)
            for name in ("train_step", "compute_metrics", "get_metrics_result")
        )
        self.exact = stock and self.tracker is not None

    def before(self) -> tuple[Any, Any] | None:
        """Return the tracker's total and count before a step; reset them if `exact`."""
        if self.tracker is None:
            return None
        sums = (
            tf.identity(_value(self.tracker.total)),
            tf.identity(_value(self.tracker.count)),
        )
        if self.exact:
            self.tracker.total.assign(tf.zeros_like(sums[0]))
            self.tracker.count.assign(tf.zeros_like(sums[1]))
        return sums

    def after(self, sums: tuple[Any, Any] | None, logs: dict[str, Any]) -> Any | None:
        """Return the step's loss, or None if there is none. `sums` is what `before` returned."""
        if self.tracker is None or sums is None:
            return tf.cast(logs["loss"], tf.float64) if _is_scalar(logs.get("loss")) else None
        total, count, mean = self.parts(sums)
        if mean is not None and "loss" in logs:
            logs["loss"] = tf.cast(mean, logs["loss"].dtype)
        return tf.cast(tf.math.divide_no_nan(total, count), tf.float64)

    def parts(self, sums: tuple[Any, Any]) -> tuple[Any, Any, Any | None]:
        """Return the total and the count of the step alone, and if `exact`, the running mean.

        Restores the sums if `exact`.
        """
        assert self.tracker is not None
        total = _value(self.tracker.total)
        count = _value(self.tracker.count)
        if not self.exact:
            before = (tf.cast(part, tf.float64) for part in sums)
            now = (tf.cast(part, tf.float64) for part in (total, count))
            return *(after - first for after, first in zip(now, before, strict=True)), None
        self.tracker.total.assign(sums[0] + total)
        self.tracker.count.assign(sums[1] + count)
        return total, count, self.tracker.result()


def _value(variable: Any) -> Any:
    return raw(variable).read_value()


def _is_scalar(value: Any) -> bool:
    return value is not None and value.shape.rank == 0
