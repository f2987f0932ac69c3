"""Hand-written trainings of every kind: train_on_batch, GAN, GradientTape, RL."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.support.loop_harness import MakeLoop

SAMPLES, BATCH, EPOCHS = 19, 8, 3  # batches of 8, 8 and 3
BATCHES = 3
_RANDOM = np.random.default_rng(1)
X = _RANDOM.normal(size=(SAMPLES, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("float32")[:, None]
ARRAYS = {"batch_size": BATCH, "epochs": EPOCHS, "seed": 5}

Result = tuple[Any, dict[str, Any]]


def classifier() -> Any:
    model = keras.Sequential(
        [layers.Input((4,)), layers.Dropout(0.3), layers.Dense(5, "relu"), layers.Dense(1)]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def on_batches(make: MakeLoop) -> Result:
    """`train_on_batch`, with validation at each epoch's end, by hand."""
    model = classifier()
    state = {"model": model}
    loop = make(state, (X, Y), **ARRAYS)
    for x, y in loop:
        loop.log(model.train_on_batch(x, y, return_dict=True))
        if loop.last_batch:
            loop.log_epoch(val_loss=model.test_on_batch(X[:5], Y[:5])[0])
    return loop, state


def unshuffled(make: MakeLoop) -> Result:
    """The same on one array, without shuffling, its rows the targets too; numpy draws noise."""
    model = keras.Sequential([layers.Input((4,)), layers.Dense(2), layers.Dense(4)])
    model.compile(keras.optimizers.RMSprop(0.01), "mse")
    loop = make(model, X, batch_size=BATCH, epochs=EPOCHS, shuffle=False)
    for x in loop:
        noise = np.random.normal(size=x.shape) + random.gauss(0, 0.1)
        loop.log(loss=model.train_on_batch(x + noise.astype("float32"), x))
    return loop, {"model": model}


class Noise:
    """Noise for a GAN's generator, with `get_state` and `set_state`."""

    def __init__(self) -> None:
        self.random = np.random.RandomState(3)

    def __call__(self, size: int) -> Any:
        return self.random.normal(size=(size, 3)).astype("float32")

    def get_state(self) -> dict[str, Any]:
        return {"random": self.random}

    def set_state(self, state: dict[str, Any]) -> None:
        self.random = state["random"]


def gan(make: MakeLoop) -> Result:
    """Two models with train_on_batch, the classic way: a third joins them."""
    noise = Noise()
    critic = keras.Sequential([layers.Input((4,)), layers.Dropout(0.2), layers.Dense(1)])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    critic.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    artist = keras.Sequential([layers.Input((3,)), layers.Dense(5, "relu"), layers.Dense(4)])
    both = keras.Sequential([artist, critic])
    both.compile(keras.optimizers.Adam(0.02, beta_1=0.5), loss)
    critic.optimizer.build(critic.trainable_variables)
    state = {"nets": {"critic": critic, "artist": artist, "both": both}, "noise": noise}
    critic.trainable = False
    both.optimizer.build(both.trainable_variables)
    critic.trainable = True
    loop = make(state, X, **ARRAYS)
    for real in loop:
        size = len(real)
        fake = artist(noise(size))
        critic.trainable = True
        on_real = critic.train_on_batch(real, np.ones((size, 1)), return_dict=True)
        on_fake = critic.train_on_batch(fake, np.zeros((size, 1)), return_dict=True)
        critic.trainable = False
        loop.log(
            critic_loss=(on_real["loss"] + on_fake["loss"]) / 2,
            artist_loss=both.train_on_batch(noise(size), np.ones((size, 1))),
        )
    return loop, state


def running_metrics(make: MakeLoop) -> Result:
    """Two compiled models, whose metrics Keras builds at their first batch and nobody resets."""
    entry = layers.Input((4,))
    parts = [layers.Dense(1, name="sign"), layers.Dense(4, name="copy")]
    twin = keras.Model(entry, {part.name: part(entry) for part in parts})
    metrics = {"sign": ["accuracy"], "copy": ["mse"]}
    twin.compile("sgd", {"sign": "mse", "copy": "mae"}, metrics=metrics)
    state = {"nets": [classifier(), twin]}
    for net in state["nets"]:
        net.optimizer.build(net.trainable_variables)
    loop = make(state, (X, Y), **ARRAYS)
    for x, y in loop:
        for net, targets in zip(state["nets"], (y, {"sign": y, "copy": x}), strict=True):
            found = net(x)
            loss = net.compute_loss(x, targets, found)
            loop.log({f"{net.name}_loss": loss})
            means = net.compute_metrics(x, targets, found)
            loop.log_epoch(**{f"{net.name}_{name}": mean for name, mean in means.items()})
    return loop, state


def tape(make: MakeLoop) -> Result:
    """GradientTape with a separate optimizer, epoch metrics, a variable and random draws."""
    model = keras.Sequential([layers.Input((4,)), layers.Dropout(0.4), layers.Dense(1)])
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.build(model.trainable_variables)
    accuracy = keras.metrics.BinaryAccuracy(threshold=0.0)
    mean = keras.metrics.Mean()
    seen = tf.Variable(0, dtype=tf.int64)
    seeds = keras.random.SeedGenerator(4)
    generator = tf.random.Generator.from_seed(2)
    state = {
        "model": model, "optimizer": optimizer, "metrics": [accuracy, mean], "seen": seen,
        "seeds": seeds, "generator": generator,
    }  # fmt: skip

    @tf.function  # type: ignore[untyped-decorator]
    def step(x: Any, y: Any) -> Any:
        x = x + keras.random.normal(ops.shape(x), stddev=0.1, seed=seeds)
        x = x + generator.normal(tf.shape(x), stddev=0.1)
        with tf.GradientTape() as running:
            found = model(x, training=True)
            loss = ops.mean(keras.losses.binary_crossentropy(y, found, from_logits=True))
        gradients = running.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        accuracy.update_state(y, found)
        mean.update_state(loss, ops.shape(x)[0])
        seen.assign_add(tf.shape(x, tf.int64)[0])
        return loss

    loop = make(state, (X, Y), **ARRAYS)
    for x, y in loop:
        if loop.batch == 0:
            accuracy.reset_state()
            mean.reset_state()
        loop.log(loss=step(tf.convert_to_tensor(x), tf.convert_to_tensor(y)))
        if loop.last_batch:
            loop.log_epoch(accuracy=accuracy.result(), running_loss=mean.result())
    return loop, state


class Walk:
    """A random walk on nine places, the goal at one end: an environment without Keras."""

    def __init__(self) -> None:
        self.random = np.random.RandomState(8)
        self.place = 4

    def observe(self) -> Any:
        return np.eye(9, dtype="float32")[self.place]

    def act(self, action: int) -> tuple[float, bool]:
        move = 1 if action == 1 or self.random.rand() < 0.2 else -1
        self.place = int(np.clip(self.place + move, 0, 8))
        return (1.0 if self.place == 8 else -0.01), self.place in (0, 8)

    def reset(self) -> None:
        self.place = int(self.random.randint(2, 7))

    def state_dict(self) -> dict[str, Any]:
        return {"random": self.random.get_state(), "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random.set_state(state["random"])
        self.place = state["place"]


def rl(make: MakeLoop) -> Result:
    """Q-learning without any data: an environment, a replay buffer in arrays, a target network."""
    walk, explore = Walk(), np.random.default_rng(6)
    net = keras.Sequential([layers.Input((9,)), layers.Dense(2)])
    net.compile(keras.optimizers.Adam(0.02), "mse")
    target = keras.models.clone_model(net)
    target.set_weights(net.get_weights())
    seen = np.zeros((16, 9), "float32")
    then = np.zeros((16, 9), "float32")
    replay = {"seen": seen, "then": then, "act": np.zeros(16, int), "reward": np.zeros(16)}
    counts = SimpleNamespace(filled=0, epsilon=1.0, episodes=[0.0])
    state = {
        "net": net, "target": target, "walk": walk, "explore": explore, "replay": replay,
        "counts": counts,
    }  # fmt: skip
    loop = make(state, steps_per_epoch=7, epochs=3)
    for step in loop:
        # one move, into the buffer; `seen` and `then` are filled by their own names
        before = walk.observe()
        greedy = int(np.argmax(net(before[None])[0]))
        action = int(explore.integers(2)) if explore.random() < counts.epsilon else greedy
        reward, over = walk.act(action)
        counts.episodes[-1] += reward
        at = counts.filled % 16
        seen[at], then[at] = before, walk.observe()
        replay["act"][at], replay["reward"][at] = action, reward
        counts.filled += 1
        if over:
            walk.reset()
            counts.episodes.append(0.0)
        # and one update
        chosen = explore.integers(0, min(counts.filled, 16), 4)
        wanted = np.array(net(seen[chosen]))
        ahead = np.array(target(then[chosen])).max(axis=1)
        wanted[np.arange(4), replay["act"][chosen]] = replay["reward"][chosen] + 0.9 * ahead
        loop.log(loss=net.train_on_batch(seen[chosen], wanted), epsilon=counts.epsilon)
        counts.epsilon *= 0.9
        if step % 5 == 4:
            target.set_weights(net.get_weights())
        if loop.last_batch:
            loop.log_epoch(episodes=len(counts.episodes))
    return loop, state


PROGRAMS = {
    "train_on_batch": on_batches,
    "one array, unshuffled": unshuffled,
    "gan": gan,
    "running metrics": running_metrics,
    "tape": tape,
    "rl": rl,
}
