"""Trainings with a train_step of their own, and uncommon ways to compile: XLA, float16, slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.support.training_harness import Script
from tests.support.training_zoo import model_of, with_policy

RNG = np.random.default_rng(6)
X = RNG.random((64, 12)).astype("float32")
Y = RNG.integers(0, 3, 64)
FIT: dict[str, Any] = {"x": X, "batch_size": 16, "epochs": 8}
LABELLED = {**FIT, "y": Y}


def net(*units: int, size: int = 12) -> Any:
    hidden = [layers.Dense(n, "relu") for n in units[:-1]]
    return keras.Sequential([layers.Input((size,)), *hidden, layers.Dense(units[-1])])


def noise(like: Any, seeds: Any) -> Any:
    return keras.random.normal(ops.shape(like), seed=seeds)


class Tracked(keras.Model):
    """Runs `losses`, a dict of losses that are added up, and tracks each of them and the total.

    `rates` are the optimizers of the parts of the model; by default the one of `compile`.
    """

    names: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(5)
        self.trackers = [keras.metrics.Mean(name=name) for name in ("loss", *self.names)]
        self.make()

    @property
    def metrics(self) -> list[Any]:
        return self.trackers

    def make(self) -> None:
        raise NotImplementedError

    def losses_of(self, x: Any) -> list[Any]:
        raise NotImplementedError

    def train_step(self, data: Any) -> dict[str, Any]:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            parts = self.losses_of(x)
            loss = sum(parts[1:], start=parts[0])
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.track(loss, parts)

    def test_step(self, data: Any) -> dict[str, Any]:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        parts = self.losses_of(x)
        return self.track(sum(parts[1:], start=parts[0]), parts)

    def track(self, loss: Any, parts: list[Any]) -> dict[str, Any]:
        for tracker, value in zip(self.trackers, (loss, *parts), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


class Variational(Tracked):
    names = ("reconstruction", "kl")

    def make(self) -> None:
        self.encode, self.decode = net(16, 8), net(16, 12, size=4)

    def losses_of(self, x: Any) -> list[Any]:
        mean, spread = ops.split(self.encode(x), 2, axis=-1)
        back = self.decode(mean + ops.exp(spread / 2) * noise(mean, self.seeds))
        kl = -0.5 * ops.mean(1 + spread - ops.square(mean) - ops.exp(spread))
        return [ops.mean(ops.square(back - x)) * 12, kl]


class Quantised(Tracked):
    """VQ-VAE: the nearest code, gradients straight through, two more losses."""

    names = ("reconstruction", "codebook", "commitment")

    def make(self) -> None:
        self.encode, self.decode = net(16, 6), net(16, 12, size=6)
        self.codes = self.add_weight((6, 10), initializer="random_uniform", name="codes")

    def losses_of(self, x: Any) -> list[Any]:
        z = self.encode(x)
        far = ops.sum(z**2, 1, keepdims=True) + ops.sum(self.codes**2, 0) - 2 * z @ self.codes
        code = ops.one_hot(ops.argmin(far, 1), 10) @ ops.transpose(self.codes)
        back = self.decode(z + ops.stop_gradient(code - z))
        stopped = ops.stop_gradient
        return [
            ops.mean((back - x) ** 2),
            ops.mean((code - stopped(z)) ** 2),
            0.25 * ops.mean((stopped(code) - z) ** 2),
        ]


class Contrastive(Tracked):
    """SimCLR: two noisy views of each sample are each other's label."""

    names = ("one", "two")

    def make(self) -> None:
        self.encode, self.project = net(16, 8), net(8, 8, size=8)

    def losses_of(self, x: Any) -> list[Any]:
        one, two = (
            ops.normalize(self.project(self.encode(x + 0.1 * noise(x, self.seeds))), axis=1)
            for _ in range(2)
        )
        near = one @ ops.transpose(two) / 0.1
        labels = ops.arange(ops.shape(x)[0])
        loss = keras.losses.sparse_categorical_crossentropy
        return [ops.mean(loss(labels, n, True)) for n in (near, ops.transpose(near))]


class Physics(Tracked):
    """The second derivative of a network in its loss, by nested tapes."""

    names = ("inside", "border", "data")

    def make(self) -> None:
        self.u = keras.Sequential([layers.Input((1,)), *(layers.Dense(8, "tanh") for _ in "ab"),
                                   layers.Dense(1)])  # fmt: skip

    def losses_of(self, x: Any) -> list[Any]:
        at = x[:, :1]
        with tf.GradientTape() as outer:
            outer.watch(at)
            with tf.GradientTape() as inner:
                inner.watch(at)
                u = self.u(at)
            slope = inner.gradient(u, at)
        bend = outer.gradient(slope, at)
        border = ops.mean(self.u(at * 0) ** 2)
        return [ops.mean((bend + u) ** 2), border, ops.mean((u - ops.sin(at)) ** 2)]


class Diffusion(Tracked):
    """Denoising, with a copy of the weights that follows them."""

    names = ("noise", "image")

    def make(self) -> None:
        self.body, self.follower = net(24, 24, 12, size=13), net(24, 24, 12, size=13)
        self.follower.trainable = False

    def losses_of(self, x: Any) -> list[Any]:
        time = keras.random.uniform((ops.shape(x)[0], 1), seed=self.seeds)
        added = noise(x, self.seeds)
        mixed = ops.cos(time) * x + ops.sin(time) * added
        found = self.body(ops.concatenate([mixed, time], 1))
        image = (mixed - ops.sin(time) * found) / ops.cos(time)
        return [ops.mean(ops.abs(found - added)), ops.mean(ops.abs(image - x))]

    def train_step(self, data: Any) -> dict[str, Any]:
        logs = super().train_step(data)
        for slow, fast in zip(self.follower.weights, self.body.weights, strict=True):
            slow.assign(0.99 * slow + 0.01 * fast)
        return logs


class Flow(Tracked):
    """RealNVP: coupling layers, the log determinants are summed."""

    names = ("likelihood", "size")

    def make(self) -> None:
        self.scales = [net(8, 6, size=6) for _ in range(4)]
        self.shifts = [net(8, 6, size=6) for _ in range(4)]

    def losses_of(self, x: Any) -> list[Any]:
        a, b = ops.split(x, 2, axis=1)
        total = 0.0
        for scale, shift in zip(self.scales, self.shifts, strict=True):
            s = ops.tanh(scale(a))
            a, b = b * ops.exp(s) + shift(a), a
            total = total + ops.sum(s, axis=1)
        return [ops.mean(ops.sum(a**2 + b**2, 1) / 2 - total), 1e-3 * ops.mean(ops.abs(a))]


class Adversarial(Tracked):
    """WGAN-GP: two optimizers, several critic steps, the gradient of a gradient."""

    names = ("artist", "critic")

    def make(self) -> None:
        self.artist, self.critic = net(16, 12, size=4), net(16, 1)
        self.second = keras.optimizers.Adam(1e-3, beta_1=0.5)

    def losses_of(self, x: Any) -> list[Any]:
        fake = self.artist(keras.random.normal((ops.shape(x)[0], 4), seed=self.seeds))
        return [
            -ops.mean(self.critic(fake)),
            ops.mean(self.critic(fake)) - ops.mean(self.critic(x)),
        ]

    def train_step(self, data: Any) -> dict[str, Any]:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        for _ in range(2):
            with tf.GradientTape() as tape:
                artist, critic = self.losses_of(x)
                fake = self.artist(keras.random.normal((ops.shape(x)[0], 4), seed=self.seeds))
                between = x + keras.random.uniform((ops.shape(x)[0], 1)) * (fake - x)
                with tf.GradientTape() as inner:
                    inner.watch(between)
                    found = self.critic(between)
                slope = ops.norm(inner.gradient(found, between), axis=1)
                critic = critic + 10 * ops.mean((slope - 1) ** 2)
            weights = self.critic.trainable_weights
            self.optimizer.apply(tape.gradient(critic, weights), weights)
        with tf.GradientTape() as tape:
            artist, _ = self.losses_of(x)
        weights = self.artist.trainable_weights
        self.second.apply(tape.gradient(artist, weights), weights)
        return self.track(artist + critic, [artist, critic])


class Distilled(keras.Model):
    """A student learns a teacher's outputs, with a loss and metrics of Keras beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = net(32, 3), net(8, 3)
        self.teacher.trainable = False

    def call(self, x: Any) -> Any:
        return self.student(x)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, **_: Any
    ) -> Any:
        soft = ops.softmax(self.teacher(x) / 3)
        loss = super().compute_loss(x, y, y_pred, sample_weight)
        return 0.3 * loss + 0.7 * ops.mean(
            keras.losses.kl_divergence(soft, ops.softmax(y_pred / 3))
        )


def tracked(kind: type[Tracked], **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        model = kind()
        model.compile(keras.optimizers.Adam(1e-3), **options)
        model.built = True
        return model

    return build


def distilled() -> Any:
    model = Distilled()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def measured() -> Any:
    model = keras.Sequential([layers.Input((12,)), layers.Dense(8, "relu"), layers.Dropout(0.3),
                              layers.Dense(1, "sigmoid")])  # fmt: skip
    names = ("AUC", "Precision", "Recall", "BinaryAccuracy", "MeanAbsoluteError")
    metrics = [getattr(keras.metrics, name)() for name in names]
    model.compile("ftrl", "binary_crossentropy", metrics=metrics, weighted_metrics=["mse"])
    return model


def stack(*, size: int = 12, **options: Any) -> Callable[[], Any]:
    parts = [lambda: layers.Dense(16, "relu"), layers.BatchNormalization,
             lambda: layers.Dropout(0.3), lambda: layers.Dense(3)]  # fmt: skip
    return model_of(*parts, shape=(size,), **options)


def wide() -> Any:
    """Large enough for every op to be split between threads."""
    model = net(1024, 1024, 1, size=1024)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    return model


WIDE = RNG.standard_normal((256, 1024)).astype("float32")
OPTIMIZERS = {
    "lion": lambda: keras.optimizers.Lion(0.001),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "muon": lambda: keras.optimizers.Muon(0.01),
    "loss scaling by hand": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    "averages": lambda: keras.optimizers.AdamW(use_ema=True, ema_overwrite_frequency=4),
    "accumulation and clipping": lambda: keras.optimizers.SGD(
        0.1, 0.9, gradient_accumulation_steps=3, global_clipnorm=0.5
    ),
}
KINDS = (Variational, Quantised, Contrastive, Physics, Diffusion, Flow, Adversarial)
SCRIPTS: dict[str, Script] = {
    **{f"own step: {kind.__name__.lower()}": Script(tracked(kind), FIT) for kind in KINDS},
    "own step: validated": Script(tracked(Variational), {**FIT, "validation_data": (X[:40],)}),
    "own step: steps_per_execution": Script(tracked(Quantised, steps_per_execution=3), FIT),
    "own step: eager": Script(tracked(Variational, run_eagerly=True), {**FIT, "epochs": 2}),
    "own step: a pipeline": Script(
        tracked(Variational),
        {"x": lambda: tf.data.Dataset.from_tensor_slices(X).shuffle(32, seed=3).repeat()
         .map(lambda x: x * 2 - 1, num_parallel_calls=2).batch(16).prefetch(2),
         "steps_per_epoch": 8, "epochs": 6},
    ),
    "distillation": Script(distilled, LABELLED),
    "weights and many metrics": Script(
        measured,
        {**FIT, "y": (Y > 0) * 1.0, "sample_weight": X[:, 0], "validation_split": 0.25},
    ),
    **{f"optimizer: {n}": Script(stack(optimizer=o), LABELLED) for n, o in OPTIMIZERS.items()},
    "xla, by step": Script(stack(jit=True), {**LABELLED, "jit_compile": True}),
    "xla: variational": Script(tracked(Variational), {**FIT, "jit_compile": True}),
    "mixed_float16": Script(with_policy("mixed_float16", stack()), LABELLED),
    "mixed_bfloat16": Script(with_policy("mixed_bfloat16", stack()), LABELLED),
    "float64": Script(with_policy("float64", stack()), LABELLED),
    "wide mlp": Script(wide, {"x": WIDE, "y": WIDE.sum(1), "batch_size": 64, "epochs": 4}),
    "xla: wide mlp": Script(
        wide, {"x": WIDE, "y": WIDE.sum(1), "batch_size": 64, "epochs": 4, "jit_compile": True}
    ),
}  # fmt: skip
