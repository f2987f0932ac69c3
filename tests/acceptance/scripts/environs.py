"""A short training whose script sets variables before it imports anything, and draws its data."""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = (Path(sys.argv[1]) / "variant").read_text()

import random

import keras
import numpy as np
from keras import layers
from moments import Moments, digits, write_history

from outlast import fit

# What was drawn before is the same in every attempt, however its process was started.
order = list(range(1000))
random.shuffle(order)
x, y, *validation = digits()
noise = np.random.normal(scale=0.01, size=x.shape).astype("float32")
model = keras.Sequential([layers.Input((8, 8)), layers.Flatten(), layers.Dropout(0.2)])
model.add(layers.Dense(10, activation="softmax"))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
write_history(
    fit(
        model,
        (x + noise)[order],
        y[order],
        batch_size=32,
        epochs=5,
        validation_data=tuple(validation),
        callbacks=[Moments()],
    )
)
