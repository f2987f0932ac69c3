"""A short training in variants, as if the user edited the script between two attempts."""

import sys

import keras
import numpy as np
from keras import layers
from moments import FOLDER, Moments, digits, write_history

from outlast import fit

variant = (FOLDER / "variant").read_text()
if variant == "import error":
    import a_module_that_is_not_there  # noqa: F401
if variant == "leaves with 7":
    sys.exit(7)


class Raising(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if variant == "raises" and epoch == 3:
            raise RuntimeError("the script's own trouble")


x, y, *validation = digits()
weight = np.ones(len(x), "float32")
if variant == "nan":
    weight[500] = float("nan")
model = keras.Sequential([layers.Input((8, 8)), layers.Flatten(name="flat")])
model.add(layers.Dense(48 if variant == "wider" else 32, activation="relu", name="hidden"))
if variant == "extra layer":
    model.add(layers.Dense(32, activation="relu", name="extra"))
model.add(layers.Dropout(0.2, name="drop"))
if variant != "missing layer":
    model.add(layers.Dense(16, activation="relu", name="narrow"))
model.add(layers.Dense(10, activation="softmax", name="digit"))
optimizer = keras.optimizers.RMSprop if variant == "other optimizer" else keras.optimizers.Adam
model.compile(optimizer(0.002), "sparse_categorical_crossentropy", metrics=["accuracy"])
write_history(
    fit(
        model,
        x,
        y,
        batch_size=0 if variant == "no batch size" else 32,
        epochs=6,
        sample_weight=weight,
        validation_data=tuple(validation),
        callbacks=[Raising(), Moments()],
    )
)
