"""An MLP with dropout under Adam."""

import keras
from keras import layers
from moments import Moments, digits, stop_late, write_history

from outlast import fit

x, y, *validation = digits()
model = keras.Sequential(
    [
        layers.Input((8, 8)),
        layers.Flatten(),
        layers.Dense(256, activation="relu"),
        layers.Dropout(0.3),
        layers.Dense(128, activation="relu"),
        layers.Dropout(0.2),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
write_history(
    fit(
        model,
        x,
        y,
        batch_size=32,
        epochs=40,
        validation_data=tuple(validation),
        callbacks=[*stop_late(), Moments()],
    )
)
