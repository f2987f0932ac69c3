"""Trainings whose data makes the loss infinite or not a number at some steps.

The file "faults" has these steps by phase: "0:5,12 1:1 2:9,10,11,12". Steps count from 1.
"""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast import Loop, fit

FOLDER = Path(sys.argv[1])
BATCH, STEPS, EPOCHS = 8, 12, 3
FAULTS: dict[int, list[int]] = {}
for part in (FOLDER / "faults").read_text().split():
    phase, _, steps = part.partition(":")
    FAULTS[int(phase)] = [int(step) for step in steps.split(",")]


def data_of(phase: int) -> tuple[Any, Any]:
    """Return data of one long epoch, in which the batches of the faulty steps are infinite."""
    rng = np.random.default_rng(phase)
    x = rng.normal(size=(BATCH * STEPS * EPOCHS, 4)).astype("float32")
    y = (x @ rng.normal(size=(4, 1))).astype("float32")
    for step in FAULTS.get(phase, ()):
        x[BATCH * (step - 1)] = np.inf
    return x, y


def model_of(**more: Any) -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.layers.Dense(8), keras.layers.Dropout(0.2)])
    model.add(keras.layers.Dense(1))
    model.build((None, 4))
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], **more)
    return model


class Counts(keras.callbacks.Callback):
    """Counts what it sees, which makes the loop go batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(batch)


found: dict[str, Any] = {}


def note(name: str, history: Any, *variables: Any) -> None:
    found[name] = {**history, "weights": [np.asarray(v).tobytes().hex() for v in variables]}


options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}

# One long pass in three epochs, several steps a call.
model = model_of()
history = fit(model, *data_of(0), steps_per_epoch=STEPS, epochs=EPOCHS, **options)
note("arrays", history.history, *model.weights)

# Batch by batch, in executions of three steps, with validation.
model, counts = model_of(steps_per_execution=3), Counts()
x, y = data_of(1)
options |= {"callbacks": [counts], "validation_data": (x[-8:], y[-8:])}
history = fit(model, x, y, epochs=1, **options)
note("executions", {**history.history, "batches": counts.batches}, *model.weights)

# tf.data with a shuffle, from a phase whose first step may be faulty.
model = model_of()
dataset = tf.data.Dataset.from_tensor_slices(data_of(2)).batch(BATCH).shuffle(2, seed=4)
history = fit(model, dataset, epochs=2, verbose=0)
note("tf.data", history.history, *model.weights)

# A loop.
model = model_of()
loop = Loop({"model": model}, data_of(3), batch_size=BATCH, epochs=1, shuffle=False, verbose=0)
for batch in loop:
    loss, _ = model.train_on_batch(*batch)
    loop.log(loss=float(loss))
note("loop", loop.history.history, *model.weights)

(FOLDER / "history.json").write_text(json.dumps(found))
