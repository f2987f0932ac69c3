"""Small trainings of every kind in Keras, as scripts for the tests of the batch loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, losses, optimizers

from tests.support.training_harness import Script

RNG = np.random.default_rng(0)
SAMPLES = 19  # batches of 8, 8 and 3
X = RNG.normal(size=(SAMPLES, 6)).astype("float32")
Y = RNG.integers(0, 3, SAMPLES)
IMAGES = RNG.normal(size=(SAMPLES, 8, 8, 1)).astype("float32")
TOKENS = RNG.integers(0, 11, (SAMPLES, 5))
ARRAYS: dict[str, Any] = {"x": X, "y": Y, "batch_size": 8, "epochs": 2, "shuffle": False}


def cross_entropy() -> Any:
    return losses.SparseCategoricalCrossentropy(from_logits=True)


def model_of(
    *parts: Callable[[], Any],
    shape: tuple[int, ...] | None = (6,),
    optimizer: Callable[[], Any] = lambda: optimizers.Adam(0.01),
    jit: bool = False,
    **options: Any,
) -> Callable[[], Any]:
    """Return a function that builds and compiles a Sequential model of the parts."""

    def build() -> Any:
        first = [] if shape is None else [layers.Input(shape)]
        model = keras.Sequential([*first, *(part() for part in parts)])
        model.compile(optimizer(), **{"loss": cross_entropy(), "metrics": ["accuracy"], **options})
        if jit:  # Keras turns XLA off where determinism is on; on the CPU both work together
            model._jit_compile = True
        return model

    return build


def dense(units: int, **options: Any) -> Callable[[], Any]:
    return lambda: layers.Dense(units, **options)


def dropout() -> Any:
    return layers.Dropout(0.3)


MLP = (dense(8, activation="relu"), dropout, dense(3))
TINY = (dropout, dense(3))  # for what is told by eager steps, without a trace


def tiny(**options: Any) -> Callable[[], Any]:
    momentum = {"optimizer": lambda: optimizers.SGD(0.1, momentum=0.9)}
    return model_of(*TINY, **{**momentum, "run_eagerly": True, **options})


class Quick(keras.Model):  # type: ignore[misc]
    """A step of a few operations. Its result shows which batches came in which order.

    It draws at random, and has an optimizer with a slot and a metric besides the loss. For
    what is told of steps, whatever they do: one of Keras' own takes several times as long.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean = self.add_weight((6,), name="mean")
        self.seeds = keras.random.SeedGenerator(3)
        self.trackers = [keras.metrics.Mean(name=name) for name in ("loss", "accuracy")]
        self.built = True

    @property
    def metrics(self) -> list[Any]:
        return self.trackers

    def train_step(self, data: Any) -> dict[str, Any]:
        off = self._off(data)
        self.optimizer.apply([off + keras.random.uniform((6,), seed=self.seeds)], [self.mean])
        return self._told(off)

    def test_step(self, data: Any) -> dict[str, Any]:
        return self._told(self._off(data))

    def _off(self, data: Any) -> Any:
        x, y = data
        return self.mean - tf.reduce_mean(x, 0) - tf.cast(y[0], tf.float32)

    def _told(self, off: Any) -> dict[str, Any]:
        loss, accuracy = self.trackers
        loss.update_state(off**2)
        accuracy.update_state(off > 0)
        return {tracker.name: tracker.result() for tracker in self.trackers}


def quick(**options: Any) -> Callable[[], Any]:
    """Return a function that builds and compiles a model with fast, eager steps."""

    def build() -> Any:
        model = Quick()
        model.compile(optimizers.SGD(0.1, momentum=0.9), run_eagerly=True, **options)
        return model

    return build


def cnn() -> Any:
    parts = (
        layers.RandomFlip,
        lambda: layers.Conv2D(4, 3),
        layers.BatchNormalization,
        lambda: layers.GaussianNoise(0.1),
        layers.Flatten,
        dense(3),
    )
    return model_of(*parts, shape=(8, 8, 1))()


def rotated() -> Any:
    parts = (lambda: layers.RandomRotation(0.2), lambda: layers.RandomZoom(0.2), layers.Flatten)
    return model_of(*parts, dense(3), shape=(8, 8, 1))()


def lstm() -> Any:
    parts = (lambda: layers.Embedding(11, 4), lambda: layers.LSTM(5, dropout=0.1), dense(3))
    return model_of(*parts, shape=(5,))()


def stateful_lstm() -> Any:
    model = keras.Sequential(
        [layers.Input(batch_shape=(8, 5, 1)), layers.LSTM(4, stateful=True), layers.Dense(3)]
    )
    model.compile("adam", cross_entropy())
    return model


def transformer() -> Any:
    x = layers.Input((5,))
    h = layers.Embedding(11, 8)(x)
    h = layers.LayerNormalization()(h + layers.MultiHeadAttention(2, 4, dropout=0.1)(h, h))
    h = layers.GlobalAveragePooling1D()(layers.Dense(8, activation="gelu")(h))
    model = keras.Model(x, layers.Dense(3)(h))
    model.compile(optimizers.AdamW(0.01), cross_entropy(), metrics=["accuracy"])
    return model


def many_inputs_and_outputs() -> Any:
    a, b = layers.Input((6,), name="a"), layers.Input((5,), name="b")
    h = layers.Concatenate()([layers.Dense(4)(a), layers.Embedding(11, 1)(b)[..., 0]])
    outputs = {"p": layers.Dense(3, name="p")(h), "q": layers.Dense(1, name="q")(h)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        "adam",
        loss={"p": cross_entropy(), "q": "mse"},
        loss_weights={"p": 1.0, "q": 0.3},
        metrics={"p": ["accuracy"], "q": ["mae"]},
        weighted_metrics={"q": ["mse"]},
    )
    return model


def listed_outputs() -> Any:
    """Losses, their weights and metrics as lists, by the outputs' order."""
    x = layers.Input((6,))
    h = layers.Dropout(0.3)(x)
    model = keras.Model(x, [layers.Dense(3)(h), layers.Dense(1)(h)])
    model.compile(
        optimizers.SGD(0.1),
        loss=[cross_entropy(), "mse"],
        loss_weights=[1.0, 0.3],
        metrics=[["accuracy"], ["mae", "mse"]],
        run_eagerly=True,
    )
    return model


def falling_and_growing_scale() -> Any:
    """Loss scaling that starts far too high and grows after every second good step."""
    return optimizers.LossScaleOptimizer(
        optimizers.SGD(0.1, momentum=0.9), initial_scale=2.0**18, dynamic_growth_steps=2
    )


MANY = {
    **ARRAYS,
    "x": {"a": X, "b": TOKENS},
    "y": {"p": Y, "q": X[:, :1]},
    "sample_weight": {"p": np.ones(SAMPLES), "q": np.arange(float(SAMPLES))},
    "validation_split": 0.2,
}


class Own(keras.Model):  # type: ignore[misc]
    """A custom train_step that returns the mean of its own tracker."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.drop, self.out = layers.Dense(8), layers.Dropout(0.2), layers.Dense(3)
        self.tracker = keras.metrics.Mean(name="loss")

    def call(self, x: Any, training: bool = False) -> Any:
        return self.out(self.drop(self.hidden(x), training=training))

    @property
    def metrics(self) -> list[Any]:
        return [self.tracker]

    def step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            each = losses.sparse_categorical_crossentropy(y, self(x, training=True), True)
            loss = tf.reduce_mean(each)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return loss

    def train_step(self, data: Any) -> dict[str, Any]:
        self.tracker.update_state(self.step(data))
        return {"loss": self.tracker.result()}


class Raw(Own):
    """A train_step that returns the batch's loss itself, and an integer."""

    @property
    def metrics(self) -> list[Any]:
        return []

    def train_step(self, data: Any) -> dict[str, Any]:
        return {"loss": self.step(data), "constant": tf.constant(3)}


class OwnTest(Own):
    """A custom test_step, too."""

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        hits = tf.argmax(self(x), 1, output_type=y.dtype) == y
        self.tracker.update_state(tf.cast(hits, "float32"))
        return {"accuracy": self.tracker.result()}


class Pair(Own):
    """Two optimizers, as a GAN has; the second one is built by its first step."""

    def compile(self, second: Any, **options: Any) -> None:
        super().compile(**options)
        self.second = second

    def train_step(self, data: Any) -> dict[str, Any]:
        logs = super().train_step(data)
        x, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.square(self.hidden(x) + keras.random.normal(tf.shape(x)[:1])[:, None])
            )
        kernel = self.hidden.kernel
        self.second.apply_gradients([(tape.gradient(loss, kernel), kernel)])
        return {**logs, "nested": {"other": loss}}


def own(kind: type[Own] = Own, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        model = kind()
        extra = {"second": optimizers.RMSprop(0.01)} if kind is Pair else {}
        model.compile(optimizer=optimizers.Adam(0.01), **extra, **options)
        return model

    return build


class Activity(layers.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * keras.ops.mean(x**2))
        return x


def added_loss(compiled_loss: str | None = "mse") -> Callable[[], Any]:
    def build() -> Any:
        x = layers.Input((6,))
        h = layers.Dense(6, kernel_regularizer="l2", activity_regularizer="l1")(x)
        model = keras.Model(x, Activity()(h))
        model.compile("adam", compiled_loss)
        return model

    return build


class Shaped(keras.Model):  # type: ignore[misc]
    """A model whose trace needs a known batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.out = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(x + keras.random.normal(x.shape))


def shaped() -> Any:
    model = Shaped()
    model.compile("adam", cross_entropy())
    return model


def with_policy(policy: str, make: Callable[[], Any]) -> Callable[[], Any]:
    def build() -> Any:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            return make()
        finally:
            keras.config.set_dtype_policy(before)

    return build


def vector_metric() -> Any:
    model = keras.Sequential([layers.Input((6,)), layers.Dense(3, activation="softmax")])
    metrics = [keras.metrics.F1Score(), keras.metrics.AUC(num_thresholds=5)]
    model.compile("adam", "categorical_crossentropy", metrics=metrics)
    return model


def sgd_on_a_schedule() -> Any:
    schedule = optimizers.schedules.CosineDecay(0.1, 10)
    return optimizers.SGD(schedule, momentum=0.9, nesterov=True, clipnorm=1.0)


# Trainings whose compiled step is worth a trace of its own.
TRACED: dict[str, Script] = {
    "mlp with dropout": Script(model_of(*MLP), ARRAYS),
    "cnn, normalized and augmented": Script(cnn, {**ARRAYS, "x": IMAGES}),
    "lstm": Script(lstm, {**ARRAYS, "x": TOKENS}),
    "transformer": Script(transformer, {**ARRAYS, "x": TOKENS}),
    "many inputs and outputs": Script(many_inputs_and_outputs, MANY),
    "own train_step": Script(own(), ARRAYS),
    "train_step of raw losses": Script(own(Raw), ARRAYS),
    "two optimizers": Script(own(Pair), ARRAYS),
    "weight averaging": Script(
        model_of(*MLP, optimizer=lambda: optimizers.AdamW(use_ema=True, ema_overwrite_frequency=4)),
        ARRAYS,
    ),
    "gradient accumulation": Script(
        model_of(*MLP, optimizer=lambda: optimizers.Adam(gradient_accumulation_steps=4)), ARRAYS
    ),
    "mixed_float16": Script(with_policy("mixed_float16", model_of(*MLP)), ARRAYS),
    "xla": Script(model_of(*MLP, jit=True), ARRAYS),
    "steps_per_execution": Script(model_of(*MLP, steps_per_execution=2), ARRAYS),
    "stateful lstm": Script(
        stateful_lstm, {**ARRAYS, "x": RNG.normal(size=(16, 5, 1)), "y": Y[:16]}
    ),
}

# More of them, for comparisons with Keras.
MORE_TRACED: dict[str, Script] = {
    "loss scaling": Script(
        with_policy("mixed_float16", model_of(*TINY, optimizer=falling_and_growing_scale)), ARRAYS
    ),
    "not built before": Script(model_of(*MLP, shape=None), ARRAYS),
    "rotated and zoomed": Script(rotated, {**ARRAYS, "x": IMAGES}),
    "regularizers and add_loss": Script(added_loss(), {**ARRAYS, "y": X}),
    "add_loss alone, no targets": Script(added_loss(None), {**ARRAYS, "y": None}),
    "sgd on a schedule": Script(model_of(*MLP, optimizer=sgd_on_a_schedule), ARRAYS),
    "static batch size": Script(shaped, {**ARRAYS, "x": X[:16], "y": Y[:16]}),
    "metric with many values": Script(vector_metric, {**ARRAYS, "y": np.eye(3)[Y]}),
}
