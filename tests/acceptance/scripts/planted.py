"""Short trainings, one phase each. The first and the last are exact, the others are not."""

import os
import random
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from outlast import Loop, fit
from outlast.attempt import context

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(96, 6)).astype("float32"), RNG.integers(0, 3, 96)
CHANCE = random.SystemRandom()  # it has no state that a checkpoint could hold


def model_of(kind: Any = keras.Sequential) -> Any:
    model = kind([layers.Input((6,)), layers.Dense(8, activation="relu"), layers.Dropout(0.2)])
    model.add(layers.Dense(3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def wait_for_start() -> None:
    """Wait until the phase's start is saved, so that the save of step 5 is made at step 5."""
    job = context.current()
    assert job is not None
    while not (job.status.last_checkpoint or "").startswith(f"{job.status.phase:02d}-"):
        time.sleep(0.01)


class Wait(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        wait_for_start()


def trained(
    name: str, data: Any = (X, Y), model: Any = None, callbacks: Any = (), **more: Any
) -> None:
    x, y = data if isinstance(data, tuple) else (data, None)
    options: dict[str, Any] = {"batch_size": 8} if y is not None else {"steps_per_epoch": 12}
    model = model or model_of()
    options.update(callbacks=[*callbacks, Wait()], **more)
    fit(model, x, y, epochs=2, verbose=0, name=name, **options)


class Noise(keras.callbacks.Callback):
    """Moves a weight at random, outside of every generator that has a state."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        bias = self.model.layers[0].bias
        bias.assign_add([CHANCE.gauss(0, 1e-3)] * 8)


class Tickets(keras.callbacks.Callback):
    """Draws from an iterator, which cannot be stored."""

    def __init__(self) -> None:
        super().__init__()
        self.last = 0
        self.tickets = iter(range(10_000))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.last = next(self.tickets)


class Racy(keras.Sequential):
    """Adds three numbers in another order in another process, as a race may decide it."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        parts = [loss * 1e3, loss * 1e-4, loss * -1e3]
        order = [0, 2, 1] if "OUTLAST_AUDIT" in os.environ else [0, 1, 2]
        total = tf.py_function(lambda *p: sum(p[i] for i in order), parts, tf.float32)
        return loss + tf.stop_gradient(tf.reshape(total, ()))


class Augmented(keras.utils.PyDataset):
    """Adds noise of a generator that nobody seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = CHANCE.random

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        part = slice(8 * index, 8 * index + 8)
        return X[part] + np.float32(1e-3 * self.noise()), Y[part]


class InTurn(keras.utils.PyDataset):
    """Gives batches that a counter in the environment decides, anew in each process."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        turn = int(os.environ.get("TURN", "0")) + 1
        os.environ["TURN"] = str(turn)
        part = slice(8 * index, 8 * index + 8)
        return X[part] * np.float32(1 + turn / 100), Y[part]


class Counted(keras.utils.PyDataset):
    """Has a state: how often it was asked, a generator, and a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.generator = np.random.default_rng(4)
        self.scale = tf.Variable(1.0)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        self.scale.assign_add(0.01)
        noise = self.generator.normal() * float(self.scale) / 100
        part = slice(8 * index, 8 * index + 8)
        return X[part] + np.float32(noise), Y[part]


trained("exact", callbacks=[keras.callbacks.ReduceLROnPlateau(patience=0, monitor="loss")])
trained("weights", callbacks=[Noise()])
trained("callback", callbacks=[Tickets()])
trained("race", model=model_of(Racy))
trained("numpy", Augmented())

rate = 0.1
weight = tf.Variable(np.ones(6, "float32"))
for x, _ in (loop := Loop({"weight": weight}, (X, Y), batch_size=8, epochs=2, verbose=0)):
    wait_for_start()
    weight.assign(weight * (1 - rate) + rate * tf.reduce_mean(x, 0))
    rate *= 0.95  # neither in the loop's state nor in a checkpoint
    loop.log(mean=float(tf.reduce_mean(weight)))

trained("order", InTurn())
trained("dataset", Counted(), validation_data=Counted())
