"""A small training of one of several kinds, as the file "variant" says: KIND EPOCHS PAUSE.

It pauses after each batch, so that things can happen meanwhile, and ends after as many epochs as
the file "until" says, if that is there. See testbeds/soak.
"""

import time

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from moments import FOLDER, write_history

from outlast import Loop, fit

kind, epochs, pause = (FOLDER / "variant").read_text().split()
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(160, 6)).astype("float32"), RNG.integers(0, 3, 160)


def is_last(epoch):
    try:
        return epoch + 1 >= int((FOLDER / "until").read_text())
    except FileNotFoundError:
        return False


class Pause(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(float(pause))

    def on_epoch_end(self, epoch, logs=None):
        if is_last(epoch):
            self.model.stop_training = True


class Slowest(keras.callbacks.Callback):
    """Keeps state of its own, of several types."""

    def __init__(self):
        super().__init__()
        self.seen, self.worst = {}, np.zeros(3)

    def on_epoch_end(self, epoch, logs=None):
        self.seen[epoch % 7] = logs["loss"]
        self.worst = np.maximum(self.worst, logs["loss"])
        logs["worst"] = float(self.worst.sum() + sum(self.seen.values()))


def generated():
    draw = np.random.default_rng(9)
    while True:
        rows = draw.integers(0, len(X), 8)
        yield X[rows], Y[rows]


def model_of():
    model = keras.Sequential([layers.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.2)])
    model.add(layers.Dense(3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def by_hand():
    model, noise = model_of(), np.random.default_rng(2)
    loop = Loop({"model": model, "noise": noise}, (X, Y), batch_size=8, epochs=int(epochs))
    for x, y in loop:
        x = x + noise.normal(scale=0.1, size=x.shape).astype("float32")
        loop.log(model.train_on_batch(x, y, return_dict=True))
        time.sleep(float(pause))
        if loop.last_batch and is_last(loop.epoch):
            loop.stop()
    return loop.history


def without_data():
    weights = RNG.normal(size=2000)
    loop = Loop({"weights": weights}, None, epochs=int(epochs), steps_per_epoch=20)
    for step in loop:
        weights *= 0.999
        weights += np.random.normal(size=2000) * 0.01 + step % 3
        loop.log(mean=float(weights.mean()))
        time.sleep(float(pause))
        if loop.last_batch and is_last(loop.epoch):
            loop.stop()
    return loop.history


arguments = {"epochs": int(epochs), "callbacks": [Pause()], "verbose": 0}
if kind == "loop":
    history = by_hand()
elif kind == "numpy":
    history = without_data()
elif kind == "generator":
    history = fit(model_of(), generated(), steps_per_epoch=20, **arguments)
elif kind == "tfdata":
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(50).batch(8)
    history = fit(model_of(), data, **arguments)
elif kind == "callbacks":
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1)
    arguments["callbacks"] = [Slowest(), plateau, *arguments["callbacks"]]
    history = fit(model_of(), X, Y, batch_size=8, **arguments)
else:
    history = fit(model_of(), X, Y, batch_size=8, validation_data=(X[:50], Y[:50]), **arguments)
write_history(history)
