"""Small models for the kinds of data."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers


def compiled(model: Any, **options: Any) -> Any:
    """Compile a minimal step that still shows the order of samples: hundreds are traced."""
    model.compile(keras.optimizers.SGD(0.05), **{"loss": "mse", **options})
    return model


def plain_model(dropout: bool = True) -> Any:
    drop = [layers.Dropout(0.3)] if dropout else []
    return compiled(keras.Sequential([layers.Input((4,)), *drop, layers.Dense(1)]))


def two_inputs(dropout: bool = True) -> Any:
    """A model with inputs "a" and "b"."""
    a, b = layers.Input((3,), name="a"), layers.Input((1,), name="b")
    joined = layers.Dropout(0.3)(layers.Concatenate()([a, b]))
    return compiled(keras.Model({"a": a, "b": b}, layers.Dense(1)(joined)))


def listed_inputs(dropout: bool = True) -> Any:
    a, b = layers.Input((3,)), layers.Input((1,))
    joined = layers.Dropout(0.3)(layers.Concatenate()([a, b]))
    return compiled(keras.Model([a, b], layers.Dense(1)(joined)))


def nested_inputs(dropout: bool = True) -> Any:
    """A model with inputs {"pair": [a, b], "one": c} and outputs "sum" and "mean"."""
    a, b, c = layers.Input((1,)), layers.Input((1,)), layers.Input((2,), name="one")
    joined = layers.Dropout(0.3)(layers.Concatenate()([a, b, c]))
    outputs = {"sum": layers.Dense(1, name="sum")(joined), "mean": layers.Dense(1)(joined)}
    model = keras.Model({"pair": (a, b), "one": c}, outputs)
    return compiled(model, loss={"sum": "mse", "mean": "mae"})


def without_targets(dropout: bool = True) -> Any:
    """A model that adds its loss itself."""
    inputs = layers.Input((4,))
    outputs = layers.ActivityRegularization(l2=0.1)(layers.Dense(2)(layers.Dropout(0.3)(inputs)))
    return compiled(keras.Model(inputs, outputs), loss=None)


def ragged_inputs(dropout: bool = True) -> Any:
    """A model on the means of rows of any length."""
    inputs = layers.Input((None,), ragged=True)
    means = layers.Lambda(lambda x: tf.reduce_mean(x, axis=1, keepdims=True), (1,))(inputs)
    return compiled(keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.3)(means))))


class WithOptional(layers.Layer):  # type: ignore[misc]
    """Joins two inputs; the second may be missing."""

    def call(self, a: Any, b: Any = None) -> Any:
        return a if b is None else a + b


def optional_input(dropout: bool = True) -> Any:
    a, b = layers.Input((3,), name="a"), layers.Input((3,), name="b", optional=True)
    joined = layers.Dropout(0.3)(WithOptional()(a, b))
    return compiled(keras.Model({"a": a, "b": b}, layers.Dense(1)(joined)))


def classifier(dropout: bool = True) -> Any:
    """A two-class model whose loss accepts one-hot and sparse targets."""
    model = keras.Sequential([layers.Input((4,)), layers.Dropout(0.3), layers.Dense(2, "softmax")])
    return compiled(model, loss=crossed, weighted_metrics=[crossed], run_eagerly=True)


def crossed(y: Any, p: Any) -> Any:
    y = y if y.shape[-1] == 2 else tf.one_hot(tf.cast(tf.reshape(y, [-1]), tf.int32), 2)
    return keras.losses.categorical_crossentropy(y, p)


def temporal(dropout: bool = True) -> Any:
    """A model with four outputs per sample, each with its weight."""
    drop = layers.Dropout(0.3)
    model = keras.Sequential([layers.Input((4,)), layers.Reshape((4, 1)), drop, layers.Dense(1)])
    return compiled(model, weighted_metrics=["mae"], run_eagerly=True)
