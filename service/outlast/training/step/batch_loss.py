"""Each batch's own loss, found beside the running mean that Keras' logs give."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from outlast.training.keras_internals.variables import raw


class OwnLoss:
    """Each batch's own loss, beside Keras' running mean.

    With Keras' own train_step the loss tracker is emptied before the step and the sums are put
    back afterwards: exact, and state and logs stay equal to the bit. With a custom train_step,
    which may read its tracker, nothing is touched: the loss is the difference of the totals, which
    rounds (float32 totals). Where no mean named "loss" exists, the step's own "loss" log is it.
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
        if self.tracker is None or sums is None:
            return tf.cast(logs["loss"], tf.float64) if _is_scalar(logs.get("loss")) else None
        total = _value(self.tracker.total)
        count = _value(self.tracker.count)
        if not self.exact:
            return tf.math.divide_no_nan(
                tf.cast(total, tf.float64) - tf.cast(sums[0], tf.float64),
                tf.cast(count, tf.float64) - tf.cast(sums[1], tf.float64),
            )
        own = tf.cast(tf.math.divide_no_nan(total, count), tf.float64)
        self.tracker.total.assign(sums[0] + total)
        self.tracker.count.assign(sums[1] + count)
        if "loss" in logs:
            logs["loss"] = tf.cast(self.tracker.result(), logs["loss"].dtype)
        return own


def _value(variable: Any) -> Any:
    return raw(variable).read_value()


def _is_scalar(value: Any) -> bool:
    return value is not None and value.shape.rank == 0
