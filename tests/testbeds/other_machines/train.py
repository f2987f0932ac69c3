"""A training that ends itself and its supervisor at the steps in the file `deaths`.

outlast run train.py KIND
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from outlast import fit

STEPS = 12
RNG = np.random.default_rng(0)


class Killed(keras.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        deaths = [int(step) for step in Path("deaths").read_text().split()]
        if deaths and int(self.model.optimizer.iterations) == deaths[0]:
            Path("deaths").write_text(" ".join(map(str, deaths[1:])))
            time.sleep(2)  # for the save of the step before
            for pid in (int(os.environ["OUTLAST_SUPERVISOR_PID"]), os.getpid()):
                os.kill(pid, signal.SIGKILL)


def dense() -> tuple[Any, tuple[int, ...]]:
    hidden = [layers.Dense(512, "relu"), layers.Dense(256, "tanh")]
    return keras.Sequential([keras.Input((1024,)), *hidden, layers.Dense(1)]), (64, 1024)


def convolutions() -> tuple[Any, tuple[int, ...]]:
    parts = [
        layers.Conv2D(16, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.Conv2D(32, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
    ]
    return keras.Sequential([keras.Input((24, 24, 3)), *parts, layers.Dense(1)]), (16, 24, 24, 3)


def recurrent() -> tuple[Any, tuple[int, ...]]:
    parts = [keras.Input((20, 32)), layers.LSTM(64, dropout=0.2), layers.Dense(1)]
    return keras.Sequential(parts), (32, 20, 32)


def attention() -> tuple[Any, tuple[int, ...]]:
    entry = layers.Input((32, 64))
    h = entry + layers.MultiHeadAttention(4, 16)(layers.LayerNormalization()(entry), entry)
    h = h + layers.Dense(64)(layers.Dense(256, "gelu")(layers.LayerNormalization()(h)))
    return keras.Model(entry, layers.Dense(1)(layers.GlobalAveragePooling1D()(h))), (16, 32, 64)


KINDS = {"dense": dense, "cnn": convolutions, "lstm": recurrent, "transformer": attention}


def main(kind: str) -> None:
    keras.utils.set_random_seed(9)
    model, (size, *shape) = KINDS[kind]()
    x = RNG.standard_normal((size * STEPS, *shape)).astype("float32")
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    y = x.reshape(len(x), -1).sum(1, keepdims=True)
    fit(model, x, y, batch_size=size, epochs=1, verbose=0, callbacks=[Killed()])
    values = [*model.variables, *model.optimizer.variables]
    digest = hashlib.sha256(b"".join(np.asarray(v).tobytes() for v in values))
    Path("digest").write_text(digest.hexdigest())


if __name__ == "__main__":
    main(sys.argv[1])
