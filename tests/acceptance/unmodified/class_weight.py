"""Imbalanced classes with class_weight and several metrics, after keras.io's fraud example."""

import keras
import numpy as np
from ending import report
from keras import layers

keras.utils.set_random_seed(14)
features = np.random.rand(320, 8).astype("float32")
targets = (features[:, 0] > 0.93).astype("uint8")[:, None]
counts = np.bincount(targets[:, 0])

model = keras.Sequential(
    [
        keras.Input((8,)),
        layers.Dense(16, activation="relu"),
        layers.Dropout(0.3),
        layers.Dense(1, activation="sigmoid"),
    ]
)
metrics = [keras.metrics.FalseNegatives(name="fn"), keras.metrics.Precision(name="precision")]
model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=metrics)
history = model.fit(
    features[:256],
    targets[:256],
    batch_size=32,
    epochs=4,
    verbose=0,
    validation_data=(features[256:], targets[256:]),
    class_weight={0: 1.0 / counts[0], 1: 1.0 / counts[1]},
)
report(model, history)
