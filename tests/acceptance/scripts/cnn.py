"""A CNN with augmentation and BatchNorm under SGD with momentum."""

import keras
from keras import layers
from moments import Moments, digits, stop_late, write_history

from outlast import fit

x, y, *_ = digits()
model = keras.Sequential(
    [
        layers.Input((8, 8)),
        layers.Reshape((8, 8, 1)),
        layers.RandomFlip("horizontal"),
        layers.GaussianNoise(0.1),
        layers.Conv2D(16, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dropout(0.2),
        layers.Dense(10),
    ]
)
model.compile(
    keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
write_history(
    fit(
        model,
        x,
        y,
        batch_size=24,
        epochs=40,
        validation_split=0.25,
        callbacks=[*stop_late(), Moments()],
    )
)
