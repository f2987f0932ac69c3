"""Everyday scripts that once lost state: hooks, generators, pipelines, variables, two phases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tests.support.training_harness import Script

RNG = np.random.default_rng(9)
X = RNG.normal(size=(60, 4)).astype("float32")
Y = X.sum(1, keepdims=True)
FIT: dict[str, Any] = {"x": X, "y": Y, "batch_size": 10, "epochs": 6}


def line(**options: Any) -> Callable[[], Any]:
    def build() -> Any:
        model = keras.Sequential([keras.Input((4,)), layers.Dense(8, "relu"), layers.Dropout(0.5),
                                  layers.Dense(1)])  # fmt: skip
        model.compile("adam", "mse", **options)
        return model

    return build


class Warmup(layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.calls = tf.Variable(0.0, trainable=False)

    def call(self, x: Any, training: Any = None) -> Any:
        if training:
            self.calls.assign_add(1.0)
        return x * (1 - tf.exp(-self.calls / 10))


def warmed_up(**options: Any) -> Callable[[], Any]:
    def build() -> Any:
        model = keras.Sequential([keras.Input((4,)), Warmup(), layers.Dense(1)])
        model.compile("sgd", "mse", **options)
        return model

    return build


def in_numpy(true: Any, found: Any) -> Any:
    return tf.constant(np.abs(np.asarray(true) - np.asarray(found)).max(), tf.float32)


class Begin(keras.callbacks.Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.model.layers[0].trainable = False
        self.model.layers[1].rate = 0.1


class Keeper(keras.callbacks.Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.copies = [tf.Variable(weight) for weight in self.model.get_weights()]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for copy, weight in zip(self.copies, self.model.weights, strict=True):
            copy.assign(0.9 * copy + 0.1 * weight)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["copied"] = float(tf.reduce_sum(self.copies[0]))


def drawn() -> Iterator[Any]:
    while True:
        chosen = np.random.randint(0, 60, 10)
        yield X[chosen], Y[chosen]


def shuffled_and_cached() -> Any:
    rows = tf.data.Dataset.from_tensor_slices((X, Y))
    return rows.shuffle(60, seed=1).batch(10).cache()


def taken() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(60, seed=9).take(40).batch(10)


def mapped() -> Any:
    rows = tf.data.Dataset.range(60).shuffle(60, seed=2)

    def noisy(i: Any) -> Any:
        noise = tf.random.stateless_normal((4,), tf.stack([i, i + 1]))
        return tf.gather(X, i) + 0.1 * noise, tf.gather(Y, i)

    mixed = rows.interleave(tf.data.Dataset.from_tensors, cycle_length=4, num_parallel_calls=2)
    return mixed.map(noisy, num_parallel_calls=tf.data.AUTOTUNE).batch(10).prefetch(2)


STREAM = {"epochs": 6}
SCRIPTS: dict[str, Script] = {
    "case: untracked variable": Script(warmed_up(), FIT),
    "case: untracked variable, eager": Script(warmed_up(run_eagerly=True), {**FIT, "epochs": 2}),
    "case: numpy in a metric": Script(
        line(run_eagerly=True, metrics=[in_numpy]), {**FIT, "epochs": 2}
    ),
    "case: hooks change layers": Script(line(), FIT, lambda: [Begin()]),
    "case: averages in a callback": Script(line(), FIT, lambda: [Keeper()]),
    "case: generator on numpy's": Script(line(), {"x": drawn, "steps_per_epoch": 6, **STREAM}),
    "case: shuffle before cache": Script(line(), {"x": shuffled_and_cached, **STREAM}),
    "case: take of a shuffle": Script(
        line(), {"x": taken, "validation_data": (X[:20], Y[:20]), **STREAM}
    ),
    "case: parallel map and interleave": Script(line(), {"x": mapped, **STREAM}),
}
