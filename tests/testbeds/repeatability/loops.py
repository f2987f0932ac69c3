"""Hand-written trainings with `Loop`, and everyday scripts that once lost state, as programs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.support.loop_harness import MakeLoop, Program
from tests.testbeds.repeatability.own_steps import Variational, net, tracked

RNG = np.random.default_rng(8)
X = RNG.random((64, 12)).astype("float32")
BATCHES = {"batch_size": 16, "epochs": 8}
Result = tuple[Any, dict[str, Any]]


def gan(make: MakeLoop) -> Result:
    """Two networks, one tape each, in one function: as TensorFlow's tutorial has it."""
    artist, critic = net(16, 12, size=4), net(16, 1)
    optimizers = [keras.optimizers.Adam(1e-3, beta_1=0.5) for _ in range(2)]
    for optimizer, model in zip(optimizers, (artist, critic), strict=True):
        optimizer.build(model.trainable_variables)
    seeds = keras.random.SeedGenerator(2)
    entropy = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def step(real: Any) -> Any:
        with tf.GradientTape() as one, tf.GradientTape() as two:
            fake = artist(keras.random.normal((tf.shape(real)[0], 4), seed=seeds))
            said = critic(fake)
            artist_loss = entropy(tf.ones_like(said), said)
            on_real = critic(real)
            critic_loss = entropy(tf.ones_like(on_real), on_real) + entropy(
                tf.zeros_like(said), said
            )
        for optimizer, tape, model, loss in (
            (optimizers[0], one, artist, artist_loss), (optimizers[1], two, critic, critic_loss),
        ):  # fmt: skip
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
        return artist_loss, critic_loss

    state = {"artist": artist, "critic": critic, "optimizers": optimizers, "seeds": seeds}
    loop = make(state, X, **BATCHES)
    for real in loop:
        artist_loss, critic_loss = step(real)
        loop.log(artist=artist_loss, critic=critic_loss)
    return loop, state


def variational(make: MakeLoop) -> Result:
    """A model's own train_step in the caller's function: its losses have trackers as well."""
    model = tracked(Variational)()
    model.optimizer.build(model.trainable_variables)
    step = tf.function(model.train_step)
    state = {"model": model}
    loop = make(state, X, **BATCHES)
    for x in loop:
        loop.log(step((x,)))
    return loop, state


def racing_sum(make: MakeLoop) -> Result:
    """A sum of three whose addends others read too, many times: TensorFlow's race in the open."""
    total = tf.Variable(tf.zeros((16, 16)))
    a, b, c, w = (tf.constant(RNG.standard_normal((16, 16)), tf.float32) for _ in range(4))

    @tf.function(autograph=False)
    def added(a: Any, b: Any, c: Any) -> Any:
        x, y, z = tf.tanh(a), tf.sinh(b), tf.cosh(c) * 7.3
        return tf.linalg.trace(x @ w), tf.linalg.trace(y @ w), (x + y) + z, tf.add_n([x, y, z])

    loop = make({"total": total}, steps_per_epoch=1500, epochs=2)
    for _ in loop:
        traces = added(a + total * 1e-3, b, c)
        total.assign(0.9 * total + 0.05 * (traces[2] + traces[3]))
        loop.log(trace=traces[0])
    return loop, {"total": total}


def actor_critic(make: MakeLoop) -> Result:
    """Three losses over a shared body, eager tapes, a numpy environment."""
    entry = layers.Input((12,))
    h = layers.Dense(16, "relu")(entry)
    model = keras.Model(entry, [layers.Dense(3)(h), layers.Dense(1)(h)])
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    world = np.random.default_rng(3)
    state = {"model": model, "optimizer": optimizer, "world": world}
    loop = make(state, steps_per_epoch=10, epochs=3)
    for _ in loop:
        seen = world.random((16, 12)).astype("float32")
        with tf.GradientTape() as tape:
            logits, value = model(seen)
            chance = ops.log_softmax(logits)
            reward = tf.constant(world.random(16), tf.float32)
            gain = tf.stop_gradient(reward - value[:, 0])
            policy = -ops.mean(chance[:, 0] * gain)
            entropy = ops.mean(ops.sum(ops.exp(chance) * chance, 1))
            loss = policy + ops.mean((reward - value[:, 0]) ** 2) + 0.01 * entropy
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)
        loop.log(loss=loss, policy=policy, entropy=entropy)
    return loop, state


def warmed_up(make: MakeLoop) -> Result:
    """A layer with a variable that Keras does not track."""

    class Warmup(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.calls = tf.Variable(0.0, trainable=False)

        def call(self, x: Any, training: Any = None) -> Any:
            if training:
                self.calls.assign_add(1.0)
            return x * (1 - tf.exp(-self.calls / 10))

    warmup = Warmup()
    model = keras.Sequential([keras.Input((12,)), warmup, layers.Dense(1)])
    model.compile("sgd", "mse")
    loop = make({"model": model}, (X, X.sum(1, keepdims=True)), **BATCHES)
    for x, y in loop:
        loop.log(model.train_on_batch(x, y, return_dict=True))
    return loop, {"model": model, "calls": warmup.calls}


def drawn_in_a_function(make: MakeLoop) -> Result:
    """`tf.random` inside of the caller's function."""
    total = tf.Variable(0.0)

    @tf.function
    def step() -> Any:
        total.assign_add(tf.random.normal(()))
        return total.read_value()

    loop = make({"total": total}, steps_per_epoch=10, epochs=4)
    for _ in loop:
        loop.log(total=step())
    return loop, {"total": total}


def kept_averages(make: MakeLoop) -> Result:
    """Copies of weights and a metric that the script keeps beside the model."""
    model = net(8, 1)
    model.compile("rmsprop", "mse")
    kept = SimpleNamespace(
        mean=keras.metrics.Mean(), copies=[tf.Variable(w) for w in model.weights]
    )
    loop = make({"model": model, "kept": kept}, (X, X.sum(1, keepdims=True)), **BATCHES)
    for x, y in loop:
        loss = model.train_on_batch(x, y)
        kept.mean.update_state(loss)
        for copy, weight in zip(kept.copies, model.weights, strict=True):
            copy.assign(0.9 * copy + 0.1 * weight)
        loop.log(loss=loss, mean=kept.mean.result())
    return loop, {"model": model, "copies": kept.copies}


PROGRAMS: dict[str, Program] = {
    "loop: gan": gan,
    "loop: variational": variational,
    "loop: a racing sum": racing_sum,
    "loop: actor and critic": actor_critic,
    "loop: untracked variable": warmed_up,
    "loop: tf.random": drawn_in_a_function,
    "loop: averages beside the model": kept_averages,
}
